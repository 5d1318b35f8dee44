"The judge of weights, judged: models whose faults are known get the figures that they deserve."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from malles import validation
from malles.facts import log_price
from malles.lm import WEIGHTS
from malles.occasions import mean_field, with_popularity
from malles.predictions import ChoiceModel, Predictions, softmax
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate
from malles.validation import describe, laws, price_law, priced_pairs, unseen_market


class Knows(ChoiceModel):
    "The truth to some power, moved by the price at which one asks; `tilt` nats for the letter that the seed picks."
    name = "knows"
    def __init__(self, power=1., slope=2., tilt=0., orders=1, seed=0): self.power, self.slope, self.tilt, self.orders, self.seed, self.asked = power, slope, tilt, orders, seed, []
    def predict(self, occasions, mu=None):
        self.asked.append(self.orders)
        was = log_price(occasions.whole()[occasions.rows])
        u = self.power * np.log(np.maximum(occasions.alternative("true_probability", 0.), 1e-12)) - self.slope * np.nan_to_num(log_price(occasions) - was)
        u = u + self.tilt * (np.arange(u.shape[1]) == self.seed % occasions.sizes[:, None])
        return Predictions(softmax(np.where(occasions.mask, u, -np.inf)))


def shelf(J=4, n=6, households=20, **kw):
    world = replace(sample_world(np.random.default_rng(0), J), priced=True, absent=0., turnover=0., ghosts=False, gaps=0., drift=.2, **kw)
    occ, _ = simulate(world, households, n, rng=0)
    return with_profiles(with_popularity(occ, mean_field(occ)))


def test_the_truth_is_calibrated_lawful_and_has_no_place():
    said = laws(Knows(), 8)
    assert said["calibration_slope"] == said["slope_of_truth"] and abs(said["slope_of_truth"] - 1) < .1
    assert said["price_law"] == 1 and said["position_effect"] < 1e-12 and said["pairs"] > 200 and said["choices"] > 1000


def test_faults_are_found():
    bold, contrary, placed = laws(Knows(power=2.), 3), laws(Knows(slope=-2.), 3), laws(Knows(tilt=1.), 3)
    assert np.isclose(bold["calibration_slope"], bold["slope_of_truth"] / 2, rtol=.01)
    assert contrary["price_law"] < .5 and bold["price_law"] == 1
    assert placed["position_effect"] > .05 and placed["calibration_slope"] < bold["slope_of_truth"]


def test_the_price_law_is_asked_in_one_order_and_leaves_the_model_as_it_was():
    model = Knows(orders=3)
    price_law(model, shelf()[:5])
    assert set(model.asked) == {1} and model.orders == 3


def test_a_what_if_is_judged_where_it_is():
    "Ten times as dear: the nine prices are those of the what-if, and its other columns stay."
    occ, seen = shelf()[::10], []
    class Listens(Knows):
        def predict(self, occasions, mu=None):
            seen.append(occasions)
            return super().predict(occasions, mu)
    whatif = occ.replace(price=occ.price * 10, discount=.4)
    assert price_law(Listens(), whatif) == 1
    assert np.nanmin(seen[0].price) > 5 * np.nanmin(occ.price) and np.allclose(seen[0].alternative("discount")[seen[0].mask], .4)


def test_what_has_no_letter_does_not_count():
    occ = shelf(J=30)[:4]
    i, j = priced_pairs(occ)
    assert len(i) == 4 * 12 and len(priced_pairs(shelf()[:4])[0]) == 16
    class Flat(Knows):
        "Lawful but for the alternatives on the shortlist."
        def predict(self, occasions, mu=None):
            listed = np.zeros(occ.mask.shape[1]); listed[j] = 1
            u = 2 * listed * np.nan_to_num(log_price(occasions))
            return Predictions(softmax(np.where(occasions.mask, u, -np.inf)))
    assert price_law(Flat(), occ) < .1 and np.isnan(price_law(Flat(), occ.without("price")))


def test_the_card_says_what_was_measured_once(tmp_path):
    card, table = tmp_path/"README.md", pd.DataFrame(dict(n=[3, 4], truth=[.5, .61234]), index=pd.Index(["first visit", "all"], name="past"))
    card.write_text("# nano\n\nA model.\n")
    lawful = dict(price_law=.9871, pairs=1234, position_effect=.0123, calibration_slope=1.076, slope_of_truth=1.012, choices=4321)
    for _ in range(2): describe(table, lawful, card)
    text = card.read_text()
    assert text.startswith("# nano\n\nA model.\n\n## How good\n") and text.count("## How good") == 1
    assert "| past | n | truth |\n| --- | --- | --- |\n| first visit | 3 | 0.5 |\n| all | 4 | 0.612 |\n" in text
    for said in ("98.7% of 1,234", "by 0.012 at most", "slope 1.08 on 4,321 choices", "draws: 1.01)"): assert said in text


@pytest.mark.parametrize("weights, folder", [("nano", WEIGHTS/"nano"), ("there/mine", None)])
def test_the_card_of_the_default_weights_is_the_shipped_one(monkeypatch, tmp_path, capsys, weights, folder):
    written, table = [], pd.DataFrame(dict(n=[1], truth=[.5]), index=["all"])
    monkeypatch.setattr("malles.lm.LM.from_pretrained", lambda name: name)
    monkeypatch.setattr(validation, "LMChoice", lambda lm, orders: lm)
    for name, value in dict(validate=table, laws={}, field_value=table).items(): monkeypatch.setattr(validation, name, lambda *a, value=value: value)
    monkeypatch.setattr(validation, "describe", lambda table, lawful, readme: written.append(readme))
    validation.main(["--weights", weights, "--card"])
    assert written == [(folder or validation.Path(weights))/"README.md"]


def test_the_price_law_of_sets_of_several_sizes():
    "The largest sets hold no price at all, so nothing of them is tried out."
    from malles.validation import price_law, unseen_market
    from malles.predictions import Uniform
    for k in range(60):
        occ = unseen_market(k)
        large = occ.sizes == occ.sizes.max() if len(occ) else np.zeros(0, bool)
        if not len(occ) or large.all() or not np.isfinite(occ.price[~large]).any(): continue
        blind = occ.replace(price=np.where(large[:, None], np.nan, occ.price))
        assert np.isnan(law := price_law(Uniform(), blind)) or law == 1
        return
    raise AssertionError("no market with sets of several sizes and prices")
