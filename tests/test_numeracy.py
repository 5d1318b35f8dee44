"Laws of the examination: models whose arithmetic is known get exactly the marks that they deserve."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from malles.elicitation import LMChoice
from malles.facts import log_price
from malles.numeracy import GAPS, RIGHT, TIE, Simulator, ask, around_whole, cheaper, elasticity, examination, examine, in_units, price_lead, left_digit, numeracy, one_at_a_time, progress, right, town
from malles.occasions import Occasions
from malles.predictions import ChoiceModel, Predictions, Uniform, softmax

ORDER = [f"order {g:.0%}" for g in GAPS]


class Utility(ChoiceModel):
    "A logit in any function of the price, with constants; it can be told the unit of money in which it thinks."
    name = "utility"
    def __init__(self, of): self.of = of
    def predict(self, occasions, mu=None):
        u = np.sin(3 * occasions.product) - self.of(np.where(occasions.mask, occasions.price, 1.))
        return Predictions(softmax(np.where(occasions.mask, u, -np.inf)), name=self.name)

def logit(b): return Utility(lambda p: b * np.log(p))


@pytest.fixture(scope="module")
def markets(): return [examination(town(k, 30, 5)) for k in range(5)]


def test_the_truth_gets_every_mark(markets):
    found = numeracy(Simulator(), markets)
    assert (abs(found.answers[list(RIGHT)] - pd.Series(RIGHT)).max() < 1e-9).all()
    assert np.allclose(found.figures[["correlation", "products", "households", "slope", "ratio"]], 1)
    for k, (_, asked) in enumerate(markets):
        for g, s in zip(GAPS, found.answers[found.answers.market == k].filter(like="cheaper").to_numpy().T):
            assert np.allclose(s, 1 / (1 + (1 + g)**-asked.column("true_price")))


def test_who_sees_no_prices_guesses_and_does_not_respond(markets):
    f = numeracy(Uniform(), markets).figures
    assert (f[ORDER + ["distance", "transitivity"]] == .5).all() and (f[["units", "left digit", "slope", "ratio"]].abs() < 1e-12).all()
    assert f[["level", "correlation", "products", "households"]].isna().all()
    true = numeracy(Simulator(), markets).pairs.true
    assert np.isclose(numeracy(Uniform(), markets).pairs.model.abs().max(), 0) and (true < 0).all()


def test_who_likes_it_dear_is_wrong_throughout(markets):
    f = numeracy(logit(-2.), markets).figures
    assert (f[ORDER + ["distance", "transitivity"]] == 0).all() and f["ratio"] < 0 and f["level"] < 1e-9


def test_a_logit_answers_with_its_coefficient(markets):
    "Twice the coefficient, twice the lean; elasticities by their formula."
    crowd, asked = markets[0]
    pair = np.tile([0, 1], (len(asked), 1))
    d = price_lead(ask(logit(2.), asked, cheaper(asked, pair, GAPS)), pair)
    assert np.allclose(d, 2 * np.log1p(GAPS)) and np.allclose(price_lead(ask(logit(4.), asked, cheaper(asked, pair, GAPS)), pair), 2 * d)
    assert np.allclose(price_lead(ask(logit(2.), asked, cheaper(asked, pair, GAPS, shelf=3.)), pair), d)
    p = logit(2.).predict(asked).choice
    up, down = (p * m**-2. / (1 - p + p * m**-2.) for m in (1.1, .9))
    assert np.allclose(elasticity(ask(logit(2.), asked, one_at_a_time(asked)))[asked.mask], (np.log(up / down) / np.log(1.1 / .9))[asked.mask])


def test_a_logit_in_prices_is_found_out(markets):
    "It answers the same ratio a quarter more strongly on a shelf a quarter dearer, and a hundred times in cents."
    answers = numeracy(Utility(lambda p: .5 * p), markets).answers
    assert np.allclose(answers.level, 1 / 9) and (answers.units > .01).all() and (answers[ORDER + ["distance"]] == 1).all(axis=None)


def test_a_left_digit_is_found_to_the_nat(markets):
    crowd, asked = markets[0]
    own = np.zeros(len(asked), int)
    floors = Utility(lambda p: 2 * np.log(p) + .7 * np.floor(p))
    assert np.allclose(left_digit(ask(floors, asked, around_whole(asked, own)), own), .7)
    assert np.abs(left_digit(ask(logit(2.), asked, around_whole(asked, own)), own)).max() < 1e-9
    assert np.allclose(numeracy(floors, markets).answers["left digit"], .7)


def test_who_rounds_prices_orders_by_chance_what_is_rounded_alike(markets):
    "Prices in steps of a twentieth of their logarithm: ties count a half, and a gap of one step or more is never missed."
    answers = numeracy(Utility(lambda p: 3 * np.round(np.log(p) * 20) / 20), markets).answers
    assert .5 < answers["order 1%"].mean() < answers["order 2%"].mean() < 1 and (answers["order 10%"] == 1).all() and .5 < answers.distance.mean() < 1
    assert right(np.array([2 * TIE, TIE / 2, -TIE / 2, -2 * TIE])).tolist() == [1, .5, .5, 0]


def test_only_arithmetic_by_halves_is_intransitive(markets):
    "Who responds to any difference alike, whatever its size, is right about the order and about nothing else."
    class Lexicographic(ChoiceModel):
        name = "lexicographic"
        def predict(self, occasions, mu=None):
            p = np.where(occasions.mask, occasions.price, np.inf)
            return Predictions(softmax(np.where(occasions.mask, 1. * (p == p.min(1, keepdims=True)), -np.inf)))
    class Rank(ChoiceModel):
        name = "rank"
        def predict(self, occasions, mu=None):
            p = np.where(occasions.mask, occasions.price, np.inf)
            return Predictions(softmax(np.where(occasions.mask, -.1 * p.argsort(1, kind="stable").argsort(1), -np.inf)))
    for model in (Lexicographic(), Rank()):
        found = numeracy(model, markets)
        assert found.figures["transitivity"] < 1 and found.figures["distance"] < .9, model.name


def test_elasticities_that_are_right_on_average_and_know_nobody(markets):
    "Half of everybody's coefficient: correlation stays, slope and ratio do not. One coefficient for all: products yes, households no."
    class Half(Simulator):
        name = "half"
        def predict(self, occasions, mu=None): return super().predict(occasions.with_columns(dict(true_price=occasions.log.occasion["true_price"] / 2)))
    half = numeracy(Half(), markets)
    assert np.allclose(np.median(half.pairs.model / half.pairs.true), .5, atol=.06) and half.figures["correlation"] > .99 and .4 < half.figures["slope"] < .6 and .4 < half.figures["ratio"] < .6
    class Alike(Simulator):
        name = "alike"
        def predict(self, occasions, mu=None): return super().predict(occasions.with_columns(dict(true_price=np.full(len(occasions.log.offsets) - 1, 3.))))
    alike = numeracy(Alike(), markets).figures
    assert alike.households < .95 and alike.correlation < half.figures["correlation"] and alike["elasticity error"] > 0


def test_what_a_product_sells_weighs_its_households(markets):
    "The elasticity of a product's demand, taken from demand itself; what few households would buy at all is left out of the pairs."
    crowd, asked = markets[1]
    p = ask(Simulator(), asked, one_at_a_time(asked))
    pairs = numeracy(Simulator(), [markets[1]]).pairs
    J, demand = asked.mask.shape[1], p.sum(1)
    direct = np.log(demand[:J].diagonal() / demand[J:].diagonal()) / np.log(1.1 / .9)
    mine = (pairs.true * pairs.true_share).groupby(pairs["product"]).sum() / pairs.true_share.groupby(pairs["product"]).sum()
    assert np.allclose(mine, direct[mine.index.astype(int)], rtol=0, atol=.05)


def test_progress_names_what_got_worse_and_only_that(markets):
    truth, rough = numeracy(Simulator(), markets), numeracy(Utility(lambda p: 3 * np.round(np.log(p) * 20) / 20), markets)
    down, up = progress(truth, rough), progress(rough, truth)
    assert down.worse["order 1%"] and not up.worse.any() and np.allclose(down.change, -up.change)
    same = progress(rough, rough)
    assert not same.worse.any() and (same.change == 0).all()
    alone = progress(*(replace(x, answers=x.answers[x.answers.market == 0]) for x in (truth, rough)), "customer")
    assert np.isfinite(alone.low["order 1%"]) and np.isnan(progress(*(replace(x, answers=x.answers[x.answers.market == 0]) for x in (truth, rough))).low["order 1%"])


def test_units_reach_the_past(markets):
    crowd, _ = markets[0]
    cents = in_units(crowd, 100.)
    assert np.allclose(cents.price[crowd.mask], 100 * crowd.price[crowd.mask]) and np.allclose(cents.whole().price[5:8], 100 * crowd.whole().price[5:8], equal_nan=True)


def test_nano_answers_nothing_with_nothing(markets):
    "A gap of nothing is a tie to the model inside the package, and money's unit does not matter to it."
    crowd, asked = markets[0]
    model, pair = LMChoice.nano().fit(crowd), np.tile([0, 1], (len(asked), 1))
    assert np.abs(price_lead(ask(model, asked, cheaper(asked, pair, (0.,))), pair)).max() < TIE
    f = numeracy(model, markets[:1]).figures
    assert f["order 50%"] > .9 and f["units"] < 1e-3 and f["correlation"] > .5


def test_who_is_asked_is_none_of_the_crowd_and_comes_once(markets):
    for crowd, asked in markets:
        assert not set(crowd.customer) & set(asked.customer) and len(set(asked.customer)) == len(asked) and (asked.column("n_past") == 4).all()


def test_what_cannot_be_examined_says_so():
    one = town(0, 30, 5)
    blind = one.without("price")
    with pytest.raises(ValueError, match="three alternatives or more, one occasion has 0"): examination(blind)
    log = one.log
    bare = Occasions(replace(log, occasion={k: v for k, v in log.occasion.items() if k != "true_price"}))
    with pytest.raises(ValueError, match="no true_price"): examination(bare)
