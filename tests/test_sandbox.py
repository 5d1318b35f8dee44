"The sandbox: what-ifs keep the laws of demand, shares add up, pasts stay as they were, and what cannot be told is refused."
from dataclasses import replace
import json, shutil

import numpy as np
import pandas as pd
import pytest

from malles.assortment import Shelf
from malles.calibration import calibrate
from malles.covariates import ready
from malles.crowd import SocialLogit
from malles.elasticities import compare, coupling
from malles.elicitation import LMChoice
from malles.facts import log_price
from malles.lm import WEIGHTS
from malles.logits import Logit, LoyaltyLogit
from malles.occasions import Occasions, chosen_product
from malles.posttraining import PostTrained
from malles.predictions import ChoiceModel, Popularity, Predictions, Uniform, softmax
from malles.samples import sample_market
from malles.sandbox import Delist, Discount, Display, Feature, Markup, NewProduct, Price, Sandbox, StockOut
from malles.shoppers import simulate, simulate_market
from malles.worlds import TRAITS, sample_world

WORLD = replace(sample_world(np.random.default_rng(4), 5), spread=0., devoted=0., price_spread=0., price=2.5, drift=.15, deal=0., display=0., feature=0., deal_rate=np.full(5, .1), reference=0., inertia=0., habit=0.,
                loadings=np.zeros((5, 1)), absent=.1, turnover=0., empty=0., gaps=0., shock=0., outside=-np.inf, priced=True, marked=True, counted=True, pieces=.3, pieces_spread=.2)
IDS = [f"product0.{j}" for j in range(5)]


@pytest.fixture(scope="module")
def occasions():
    return ready(simulate(WORLD, 80, 6, rng=1)[0])


@pytest.fixture(scope="module")
def logit(occasions):
    model = Logit()
    model.settings = [dict(price="log", ridge=.3)]
    return model.fit(occasions)


@pytest.fixture(scope="module")
def box(occasions, logit):
    return Sandbox(occasions, logit, draws=50)


def shares(outcome):
    return outcome.table()["share"]


def test_now_is_what_the_model_says(box, occasions, logit):
    now, p = box.run(), logit.predict(occasions).choice
    assert np.array_equal(now.choice, p)
    by_hand = np.bincount(occasions.product[occasions.mask].astype(int), p[occasions.mask]) / len(p)
    assert np.allclose(shares(now), by_hand) and np.isclose(shares(now).sum(), 1)
    assert np.allclose(np.nansum(now.measure("share"), 1), 1), "shares of every draw add up"
    assert (now.table()["inside"] == 1).all()


@pytest.mark.parametrize("product", IDS[:2] + ["category0"])
def test_price_law(box, product):
    told = [shares(o) for o in box.runs(*[(Price(product, p),) for p in np.linspace(1, 3, 9)])] if product != "category0" else [shares(o) for o in box.runs(*[(Markup(product, by),) for by in np.linspace(-.2, .2, 9)])]
    table = pd.DataFrame(told)
    if product == "category0": assert np.allclose(table, table.iloc[0], atol=1e-9), "a logit in log prices does not change when all prices move alike"
    else:
        assert (table[product].diff().dropna() < 0).all()
        assert (table.drop(columns=product).diff().dropna() > 0).all().all()
    assert np.allclose(table.sum(axis=1), 1)


def test_delisting_sends_customers_to_the_others_in_proportion(box, occasions):
    gone = box.run(Delist(IDS[1]))
    assert shares(gone)[IDS[1]] == 0 and np.isclose(shares(gone).sum(), 1) and np.isnan(gone.table().price[IDS[1]])
    p = np.where(gone.code == 1, 0, gone.now.choice)
    assert np.allclose(gone.choice, p / p.sum(1, keepdims=True)), "IIA"
    both = box.run(Delist((IDS[1], IDS[2])))
    assert shares(both)[[IDS[1], IDS[2]]].sum() == 0 and np.isclose(shares(both).sum(), 1)
    with pytest.raises(ValueError, match="nothing left to choose from"): box.run(Delist("category0"))


def test_stock_outs(box):
    now = box.run()
    assert np.array_equal(box.run(StockOut(IDS[0], share=0.)).choice, now.choice)
    some, all_ = box.run(StockOut(IDS[0], share=.4, seed=3)), box.run(StockOut(IDS[0]))
    assert np.array_equal(all_.choice, box.run(Delist(IDS[0])).choice) and shares(all_)[IDS[0]] == 0 < shares(some)[IDS[0]] < shares(now)[IDS[0]]
    assert np.array_equal(some.choice, box.run(StockOut(IDS[0], share=.4, seed=3)).choice), "seeds repeat"
    there = (now.code == 0).any(1)
    lost = there & ((some.choice * (some.code == 0)).sum(1) == 0)
    assert abs(lost.sum() / there.sum() - .4) < .08


def test_a_twin_shares_with_its_original(box, occasions):
    new = box.run(NewProduct("twin", like=IDS[2]))
    p, q = box.run().choice, new.choice
    at = (new.code[:, :-1] == 2)
    plain = ~(at & (occasions.alternative("discount") > 0)).any(1)          # a new product has no deal
    assert np.allclose((q[:, :-1] * at).sum(1)[plain], q[plain, -1]) and plain.mean() > .8, "as likely as its original"
    original = (p * at).sum(1)
    assert np.allclose(q[plain, -1], (original / (1 + original))[plain]), "and a logit takes it for one alternative more"
    assert (q[~at.any(1), -1] == 0).all(), "offered only where its original is"
    dear, cheap = (shares(o)["twin"] for o in box.runs((NewProduct("twin", like=IDS[2], price=3.),), (NewProduct("twin", like=IDS[2], price=1.),)))
    assert dear < shares(new)["twin"] < cheap
    repriced = box.run(NewProduct("twin", like=IDS[2], price=3.), Price("twin", 1.))
    assert np.isclose(shares(repriced)["twin"], cheap) and np.isnan(repriced.table().low["twin"]) and repriced.table()["inside"]["twin"] == 0
    with pytest.raises(ValueError, match="sold already"): box.run(NewProduct(IDS[1], like=IDS[2]))
    with pytest.raises(ValueError, match="carry no weight"): box.run(NewProduct("x", like=IDS[2], attributes=dict(weight=1)))


def test_own_elasticity_in_the_limit(box, logit):
    now, found = box.run(), box.elasticities(step=1e-4)
    beta = dict(zip(logit.parts["category0"][1].names, logit.parts["category0"][1].coefficient))["log price"]
    for j, p in enumerate(IDS):
        own = (now.choice * (now.code == j)).sum(1)
        assert np.isclose(found.own.estimate[p], beta * (own * (1 - own)).sum() / own.sum(), atol=1e-4)
        for k, other in enumerate(IDS):
            if k != j: assert np.isclose(found.estimate.loc[other, p], -beta * (own * (now.choice * (now.code == k)).sum(1)).sum() / (now.choice * (now.code == k)).sum(), atol=1e-4)
    assert (found.low <= found.estimate).all().all() and (found.estimate <= found.high).all().all()
    with pytest.raises(ValueError, match="between 0 and 1"): box.elasticities(step=1.)


def test_refits_make_intervals_wider(occasions, logit):
    known, both = (Sandbox(occasions, logit, train=t, draws=30).elasticities() for t in (None, occasions))
    assert np.allclose(known.estimate, both.estimate)
    assert ((both.own.high - both.own.low) > 1.5 * (known.own.high - known.own.low)).all()
    again = Sandbox(occasions, logit, train=occasions, draws=30).elasticities()
    assert np.array_equal(again.draws, both.draws)
    few = occasions.customers[:20]
    apart = Sandbox(occasions, logit, customers=few, train=occasions[occasions.customer >= 20], draws=5).run()
    assert len(apart.choice) == (occasions.customer < 20).sum() and np.isfinite(apart.measure("share")).all()
    with pytest.raises(ValueError, match="of the log that is asked about"): Sandbox(occasions, logit, train=ready(simulate(WORLD, 7, 3, rng=2)[0]))


def test_totals_are_refused_unless_they_are_known(occasions, logit, box):
    for name in ("units", "revenue", "margin"):
        with pytest.raises(ValueError, match="volume=.*outside="): box.run().measure(name)
    assert "units" not in box.run().table()
    costs = pd.DataFrame(dict(product_id=IDS, cost=[.5] * 5))
    with_volume = Sandbox(occasions, logit, volume={"category0": 900.}, draws=20)
    now = with_volume.run()
    assert np.isclose(now.measure("units").sum(1), 900).all()
    with pytest.raises(ValueError, match="margin cannot be told: give costs"): now.measure("margin")
    full = Sandbox(occasions, logit, volume=900, costs=costs, draws=20).run(Discount(IDS[0], .2))
    assert np.allclose(full.measure("margin"), full.measure("revenue") - .5 * full.measure("units"))
    assert np.isclose(full.measure("units").sum(1), 900).all(), "the volume is held"
    some = Sandbox(occasions, logit, volume=900, costs=costs.iloc[1:], draws=5).run().measure("margin")[0]
    assert np.isnan(some[0]) and np.isfinite(some[1:]).all(), "an unknown cost is an unknown margin"
    for wrong in (dict(volume=-1), dict(volume={"tea": 3}), dict(volume=9, outside=IDS[0])):
        with pytest.raises(ValueError, match="volume"): Sandbox(occasions, logit, **wrong)


def test_an_option_of_buying_nothing(occasions, logit):
    box = Sandbox(occasions, logit, outside=IDS[4], draws=20)
    now, cheaper = box.runs((), (Discount(IDS[0], .3),))
    assert IDS[4] not in now.table().index and np.isclose(shares(now).sum(), 1)
    p = (now.choice * (now.code < 4)).sum()
    assert np.isclose(now.totals[0, 0, :4].sum(), p)
    assert cheaper.measure("units")[0, :4].sum() > now.measure("units")[0, :4].sum(), "those who bought nothing may come"
    assert compare(now, cheaper).flows.loc[IDS[4], IDS[0]] > 0


def test_several_categories():
    worlds, rng = [replace(WORLD, appeal=WORLD.appeal[:J], base=WORLD.base[:J], loadings=WORLD.loadings[:J], deal_rate=WORLD.deal_rate[:J], bulk=None) for J in (3, 4)], np.random.default_rng(0)
    occasions = ready(simulate_market(worlds, rng.standard_normal((60, len(TRAITS))), rng, 6)[0])
    box = Sandbox(occasions, Logit().fit(occasions), volume={"category0": 100, "category1": 300}, draws=10)
    told = box.run(Markup("category0", -.2), Discount("product1.2", .2))
    t = told.table()
    assert np.allclose(t["share"].groupby(t.category).sum(), 1) and np.allclose(t.units.groupby(t.category).sum(), [100, 300])
    moved = compare(told.now, told)
    assert moved.flows.loc[t.index[t.category == "category0"], t.index[t.category == "category1"]].to_numpy().sum() == 0
    assert moved.change("share")["product1.2"][0] > 0 and told.asked() == ["product0.0", "product0.1", "product0.2", "product1.2"]
    with pytest.raises(ValueError, match="says nothing of category1"): Sandbox(occasions, Uniform(), volume={"category0": 100})
    both = occasions.products.assign(product_id=["a", "b", "c", "a", "d", "e", "f"])
    with pytest.raises(ValueError, match="sold in the categories category0, category1"): Sandbox(Occasions(replace(occasions.log, products=both)), Uniform()).run(Delist("a"))


def test_a_calibrated_model_is_asked_like_any(occasions, logit):
    told = Sandbox(occasions, calibrate(logit, occasions, strength=1e-6), draws=5)
    observed = np.bincount(chosen_product(occasions), minlength=5) / len(occasions)
    assert np.abs(shares(told.run()) - observed).max() < .01
    assert (told.elasticities().own.estimate < 0).all()


def test_names_and_values_that_make_no_sense(box, occasions):
    with pytest.raises(ValueError, match="did you mean 'product0.3'"): box.run(Price("product0_3", 1.))
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive"): Price(IDS[0], bad)
    for bad in (0, 1, -.1):
        with pytest.raises(ValueError, match="between 0 and 1"): Discount(IDS[0], bad)
    with pytest.raises(ValueError, match="0 to 1"): StockOut(IDS[0], share=2)
    with pytest.raises(ValueError, match="no customers nobody"): Sandbox(occasions, Uniform(), customers=["nobody"])
    with pytest.raises(ValueError, match="no measure 'sales'"): box.run().measure("sales")


def test_what_a_model_does_not_read_is_an_error(box, occasions):
    with pytest.raises(ValueError, match="does not read display"): box.run(Display(IDS[0]))
    with pytest.raises(ValueError, match="does not read feature"): box.run(Feature(IDS[0]))
    with pytest.raises(ValueError, match="does not read price"): Sandbox(occasions, Popularity()).run(Price(IDS[0], 1.))
    with pytest.raises(ValueError, match="no price is known"): Sandbox(occasions.without("price"), Popularity()).run(Price(IDS[0], 1.))


def test_prices_beyond_those_observed_are_marked(box):
    low, high = box.run().table().loc[IDS[0], ["low", "high"]]
    inside = [o.table()["inside"][IDS[0]] for o in box.runs(*[(Price(IDS[0], p),) for p in (low, (low + high) / 2, high, 1.01 * high, .99 * low)])]
    assert inside == [1, 1, 1, 0, 0]
    assert "beyond" in box.run(Price(IDS[0], 1.01 * high))._repr_markdown_() and "inside" in box.run(Price(IDS[0], high))._repr_markdown_()


def test_discounts_are_marked_where_deals_are(occasions):
    shelf = Shelf(occasions, [Discount(IDS[0], .5), Discount(IDS[0], .5)])
    mine = shelf.hit(IDS[0])
    assert np.allclose(shelf.get("price")[mine], .25 * occasions.price[mine])
    assert np.allclose(1 - shelf.get("discount")[mine], .25 * (1 - occasions.alternative("discount")[mine]))
    assert np.array_equal(shelf.get("price")[~mine & occasions.mask], occasions.price[~mine & occasions.mask])
    forever = Shelf(occasions, [Price(IDS[0], 1.5, permanent=True)])
    assert (forever.get("discount")[mine] == 0).all() and (forever.get("price")[mine] == 1.5).all() and (occasions.alternative("discount")[mine] > 0).any(), "a permanent price is no deal"
    unmarked = Shelf(occasions.without("discount"), [Discount(IDS[0], .5)])
    assert set(unmarked.columns) == {"price"}


def test_flows_add_up_to_both_margins(box):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 50), rng.dirichlet(np.ones(6), 50)
    p[:, 2], q[:, 4] = 0, 0
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    flows = coupling(p, q)
    assert (flows >= 0).all() and np.allclose(flows.sum(1), p.sum(0)) and np.allclose(flows.sum(0), q.sum(0))
    assert np.isclose(np.trace(flows), np.minimum(p, q).sum()), "as many stay as can"
    for scenario in ((Price(IDS[0], 1.),), (Delist(IDS[3]),), (NewProduct("new", like=IDS[1], price=1.5), StockOut(IDS[0], .5))):
        moved = compare(box.run(), box.run(*scenario))
        before, after = (shares(o).reindex(moved.flows.index, fill_value=0) for o in (moved.before, moved.after))
        assert (moved.flows.to_numpy() >= 0).all() and np.allclose(moved.flows.sum(axis=1), before) and np.allclose(moved.flows.sum(axis=0), after)
        assert np.isclose(moved.change("share").iloc[0].sum(), 0) and len(moved.table()) == len(moved.flows) and moved._repr_markdown_()
    a, b = box.runs((NewProduct("one", like=IDS[1]),), (NewProduct("two", like=IDS[2]),))
    moved = compare(a, b).flows
    assert moved["one"].sum() == 0 and moved.loc["one"].sum() > 0 and np.isclose(moved.to_numpy().sum(), 1)
    came = compare(box.run(), a).cannibalised("one")
    assert np.isclose(came.sum(), 1) and set(came.index) == set(IDS)
    with pytest.raises(ValueError, match="wins nothing"): compare(box.run(), box.run(Delist(IDS[3]))).cannibalised(IDS[3])


def test_only_one_sandbox_is_compared(box, occasions, logit):
    with pytest.raises(ValueError, match="different sandboxes"): compare(box.run(), Sandbox(occasions, logit, draws=50).run())


def test_pasts_of_changed_sets_are_those_of_the_log(occasions):
    for ordered in (True, False):
        some = ready(simulate(replace(WORLD, absent=0.), 12, 6, rng=3, ordered=ordered)[0])
        some = some[np.random.default_rng(0).permutation(len(some))[:40]]
        seen = Shelf(some, [Delist(IDS[1])]).occasions
        assert (np.diff(seen.log.occasion["past_start"]) >= 0).all()
        for i in range(len(some)):
            before, now = some.past(i), seen.past(i)
            now = now[now.chosen >= 0]
            assert np.array_equal(chosen_product(now), chosen_product(before)) and np.array_equal(now.price, before.price) and np.array_equal(now.column("n_past"), before.column("n_past"))


def test_a_crowd_that_follows_itself(occasions):
    class Follows(ChoiceModel):
        name = "follows"
        def predict(self, o, mu=None):
            social = SocialLogit(np.zeros(5), 1.)
            u = np.log(np.maximum(social.predict(o, mu).choice, 1e-300)) - 2 * np.nan_to_num(log_price(o))
            return Predictions(softmax(np.where(o.mask, u, -np.inf)), name=self.name)
    alone, crowd = (Sandbox(occasions, Follows(), social=s, draws=5) for s in (False, True))
    gain = [compare(b.run(), b.run(Discount(IDS[0], .2))).change("share")[IDS[0]][0] for b in (alone, crowd)]
    assert gain[1] > 1.05 * gain[0] > 0, "others follow those who came for the price"
    with pytest.raises(ValueError, match="new product"): crowd.run(NewProduct("x", like=IDS[0]))


def test_a_twin_has_no_past():
    world = replace(WORLD, spread=2., absent=0.)                              # households that keep to what they like
    occasions = ready(simulate(world, 80, 8, rng=5)[0])
    model = LoyaltyLogit()
    model.settings = [dict(price="log", ridge=.3)]
    q = Sandbox(occasions, model.fit(occasions), draws=5).run(NewProduct("twin", like=IDS[2])).choice
    loyal = occasions.alternative("own_share")[:, 2] > .5
    assert loyal.sum() > 10 and q[loyal, 2].mean() > 2 * q[loyal, -1].mean(), "who has bought the original does not know the twin"


def test_a_market_in_three_lines():
    market = sample_market()
    coffee = market.choices[market.choices.category == "coffee"]
    market.choices, market.volume = coffee, 5000.
    box = Sandbox(market, Logit(), customers=coffee.customer_id.unique()[:60], draws=20)
    now = box.run()
    told = box.run(Price("COF01", 4.5))
    assert np.isfinite(told.measure("margin")).all() and np.isclose(told.measure("units")[0].sum(), 5000)
    assert 0 <= (told.draws("margin").sum(axis=1) > now.draws("margin").sum(axis=1)).mean() <= 1
    assert told._repr_markdown_().startswith("**COF01:") and now._repr_markdown_().startswith("**")


def test_prices_that_only_buyers_paid_are_said():
    market = sample_market()
    coffee = market.choices[market.choices.category == "coffee"].drop(columns=["discount", "display", "feature"])
    coffee = coffee.assign(price=coffee.price.where(~coffee.chosen, (coffee.price * .9173).round(4)))
    market.choices, market.transactions = coffee, None
    told = Sandbox(market, Logit(), draws=2).run()
    assert any("too strong" in note for note in told.notes)


def test_nano_reads_all_scenarios_of_a_past_once(occasions):
    few = occasions[occasions.customer < 60]
    model = LMChoice.nano().fit(few)
    asked = occasions.customers[60:66]
    box = Sandbox(occasions, model, customers=asked, draws=20)
    now, cheap, dear, forever, gone, new = box.runs((), (Markup(IDS[0], -.2),), (Markup(IDS[0], .2),), (Price(IDS[0], 1.5, permanent=True),), (Delist(IDS[1]),), (NewProduct("new", like=IDS[2], price=1.5),))
    those = occasions[np.isin(occasions.customers[occasions.customer], asked)]
    assert np.allclose(now.choice, model.predict(those).choice, atol=1e-5)
    assert shares(cheap)[IDS[0]] > shares(now)[IDS[0]] > shares(dear)[IDS[0]]
    assert not np.array_equal(forever.choice, box.run(Price(IDS[0], 1.5)).choice), "nano reads the mark of a deal, which a permanent price has not"
    assert shares(gone)[IDS[1]] == 0 and np.isclose(shares(gone).sum(), 1) and 0 < shares(new)["new"] < 1 and np.isclose(shares(new).sum(), 1)
    assert (now.table()["quantity"] >= 1).all() and not np.isclose(now.table()["quantity"].std(), 0), "nano tells pieces"
    unchanged = box.run(StockOut(IDS[1], share=1e-9)).choice
    assert np.allclose(unchanged, now.choice, atol=1e-5)
    with pytest.raises(ValueError, match="does not read weight"): Sandbox(occasions.with_columns(alternative=dict(weight=np.ones(occasions.log.offsets[-1]))), model, customers=asked).run(NewProduct("x", like=IDS[0], attributes=dict(weight=2.)))


def test_nano_reads_a_rebuilt_set_as_it_reads_that_set(occasions):
    "Sets of last visits may be changed in the log itself, for nobody's past holds them: the same answers as beside them."
    model = LMChoice.nano()
    last = np.r_[occasions.customer[1:] != occasions.customer[:-1], True]
    some = occasions[last][:8]
    there = some.product != 1
    beside = model.predict(Shelf(some, [Delist(IDS[1])]).occasions).choice
    L, flat = some.log, np.ones(some.log.offsets[-1], bool)
    flat[some._grid[0][some.mask & ~there]] = False
    chosen = L.occasion["chosen"].copy()
    chosen[some.rows] = 0
    left = np.where(there, some.alternative("popularity"), 0)
    popularity = L.alternative["popularity"].copy()
    popularity[some._grid[0][some.mask]] = (some.alternative("popularity") * np.nansum(some.alternative("popularity"), 1, keepdims=True) / np.nansum(left, 1, keepdims=True))[some.mask]
    log = replace(L, offsets=np.r_[0, np.cumsum(flat)][L.offsets], occasion={**L.occasion, "chosen": chosen}, alternative={k: v[flat] for k, v in {**L.alternative, "popularity": popularity}.items()})
    inside = model.predict(type(some)(log, some.rows)).choice
    assert np.allclose(beside, inside, atol=1e-5)


def test_a_folder_of_models(occasions, tmp_path):
    for k in range(5):
        shutil.copytree(WEIGHTS/"nano", tmp_path/f"fold{k}")
        card = json.loads((WEIGHTS/"nano"/"card.json").read_text()) | dict(folds={occasions.market: k}, base="nano", name="nano+post")
        (tmp_path/f"fold{k}"/"card.json").write_text(json.dumps(card))
    box = Sandbox(occasions, PostTrained(tmp_path).fit(occasions), customers=occasions.customers[:5], draws=5)
    now, cheap, gone = box.runs((), (Markup(IDS[0], -.2),), (Delist(IDS[1]),))
    assert shares(cheap)[IDS[0]] > shares(now)[IDS[0]]
    assert shares(gone)[IDS[1]] == 0 and np.isclose(shares(gone).sum(), 1)
