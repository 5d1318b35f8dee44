"Calibration: never further from what it was fitted on, the identity where nothing is wrong, and nearer to what it has not seen; weights, order and intervals keep their promises."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import approx_fprime

from malles.calibration import STRENGTHS, Calibrated, calibrate, fit_map
from malles.crowd import settle
from malles.divergence import divergence_table, divergences, kl, piece_shares, price_ground, product_shares, share_table, transport
from malles.intervals import bootstrap_shares, conformal_shares
from malles.metrics import kl_divergence
from malles.occasions import MeanField, Occasions
from malles.predictions import SUPPORT, ChoiceModel, Dirichlet, Popularity, Predictions, softmax
from malles.covariates import ready
from malles.raking import rake
from malles.sharemap import ShareMap, bend, choice_problem, descend, pieces_problem
from malles.shoppers import pieces_probability, sample_world, simulate, simulate_market
from malles.worlds import TRAITS

seeds = st.integers(0, 10**6)
few = settings(max_examples=12, deadline=None, derandomize=True)


def random_market(rng, categories=2, periods=3, n=80):
    "Occasions with sets of different sizes, some prices, choices from Dirichlet shares; and predictions that have nothing to do with them."
    J = rng.integers(2, 6, categories)
    first = np.r_[0, np.cumsum(J)]
    products = pd.DataFrame(dict(product_id=[f"p{j}" for j in range(first[-1])], category=np.repeat([f"c{c}" for c in range(categories)], J)))
    category = rng.integers(0, categories, n)
    sets = [np.sort(rng.choice(np.arange(first[c], first[c + 1]), rng.integers(2, J[c] + 1), replace=False)) for c in category]
    sizes = np.array([len(s) for s in sets])
    shop = Occasions.from_arrays("random", [f"h{i}" for i in range(12)], [f"c{c}" for c in range(categories)], products, rng.integers(0, 12, n), category, rng.integers(0, periods, n),
        np.r_[0, np.cumsum(sizes)], np.concatenate(sets), rng.integers(0, sizes), 1 + rng.poisson(1., n), dict(price=rng.uniform(1, 4, sizes.sum())))
    p = softmax(np.where(shop.mask, 1.5 * rng.normal(size=shop.mask.shape), -np.inf))
    q = rng.dirichlet(np.ones(20), (n, 1))
    return shop, Predictions(p, q, SUPPORT, name="random")


def distance_of(name, shares, ground):
    return kl if name == "kl" else transport(shares, ground)


def total(distance, shares, p):
    return float(distance(shares, shares.simulated(p))[0] @ shares.purchases)


@few
@given(seeds, st.sampled_from(["kl", "wasserstein"]), st.sampled_from([None, "time"]), st.sampled_from([None, 0., 3., 100.]), st.sampled_from([("temperature",), ("bias",), ("temperature", "bias", "quantity"), ("quantity",)]))
def test_never_further_from_what_it_was_fitted_on(seed, distance, period, strength, fitted):
    rng = np.random.default_rng(seed)
    shop, p = random_market(rng)
    weight = rng.uniform(.2, 3, len(shop))
    after = fit_map(p, shop, fitted, period, distance, weight=weight, strength=strength)(p, shop)
    products, pieces = product_shares(shop, period, weight), piece_shares(shop, SUPPORT, period, weight)
    assert (after.choice[~shop.mask] == 0).all() and np.allclose(after.choice.sum(1), 1) and np.allclose(after.quantity.sum(2), 1)
    for shares, ground, q in ((products, price_ground(shop), lambda p: p.choice), (pieces, SUPPORT[:, None] * 1., lambda p: p.quantity_of(shop.chosen))):
        d = distance_of(distance, shares, ground)
        assert total(d, shares, q(after)) <= total(d, shares, q(p)) * (1 + 1e-9) + 1e-9


@few
@given(seeds, st.sampled_from(["kl", "wasserstein"]))
def test_what_is_not_fitted_stays(seed, distance):
    shop, p = random_market(np.random.default_rng(seed))
    only = {k: fit_map(p, shop, (k,), distance=distance, strength=1.) for k in ("temperature", "bias", "quantity")}
    assert (only["bias"].temperature == 1).all() and (only["temperature"].bias == 0).all()
    assert np.allclose(only["quantity"](p, shop).choice, p.choice) and np.allclose(only["bias"](p, shop).quantity, p.quantity)


@few
@given(seeds, st.sampled_from(["kl", "wasserstein"]), st.sampled_from([None, "time"]))
def test_identity_where_shares_are_equal(seed, distance, period):
    "Every customer of a group is given the observed shares of its group: as wrong as can be about him, and right about the market."
    rng = np.random.default_rng(seed)
    n, J = 120, 4
    shop = Occasions.from_arrays("equal", list("abcdefgh"), ["tea", "jam"], pd.DataFrame(dict(product_id=list("stuvwxyz"), category=["tea"] * 4 + ["jam"] * 4)), rng.integers(0, 8, n), np.arange(n) % 2, rng.integers(0, 3, n),
        np.arange(0, n * J + 1, J), (np.arange(n) % 2 * 4)[:, None].repeat(J, 1).ravel() + np.tile(np.arange(J), n), rng.integers(0, J, n), rng.integers(1, 4, n), dict(price=np.tile([1., 2, 4, 8], n)))
    shares, pieces = product_shares(shop, period), piece_shares(shop, SUPPORT, period)
    p = Predictions(shares.observed[shares.group], pieces.observed[pieces.group][:, None], SUPPORT)
    same = fit_map(p, shop, period=period, distance=distance)
    assert (same.temperature == 1).all() and (same.bias == 0).all() and (same.pieces == 1).all().all()
    assert np.allclose(same(p, shop).choice, p.choice)


@few
@given(seeds, st.sampled_from(["kl", "wasserstein"]), st.sampled_from(["choice", "pieces"]))
def test_slopes_are_those_of_differences(seed, distance, what):
    rng = np.random.default_rng(seed)
    shop, p = random_market(rng, n=40)
    shares, f = (choice_problem if what == "choice" else pieces_problem)(p, shop, "time", rng.uniform(.5, 2, len(shop)))
    d = distance_of(distance, shares, price_ground(shop) if what == "choice" else SUPPORT[:, None] * 1.)
    theta = .3 * rng.normal(size=len(shop.categories) + len(shop.products) if what == "choice" else 2 * len(shop.categories))
    q, back = f(theta)
    slope = back(shares.backwards(d(shares, shares.simulated(q))[1] * shares.purchases[:, None]))
    numeric = approx_fprime(theta, lambda t: total(d, shares, f(t)[0]), 1e-7)
    assert np.abs(slope - numeric).max() < 1e-3 * max(1, np.abs(numeric).max())


@few
@given(seeds)
def test_maps_of_a_descent_equal_those_by_name(seed):
    shop, p = random_market(np.random.default_rng(seed))
    found = fit_map(p, shop, strength=2.)
    shares, f = choice_problem(p, shop)
    theta = descend(shares, f, np.ones(len(shop.categories) + len(shop.products), bool), kl, 2.)
    assert np.allclose(f(theta)[0], found(p, shop).choice)
    late = shop[shop.time == shop.time.max()]
    view = Predictions(p.choice[shop.time == shop.time.max()][:, :late.mask.shape[1]])
    assert np.allclose(found(view, late).choice, found(p, shop).choice[shop.time == shop.time.max()][:, :late.mask.shape[1]]), "the map depends on which occasions stand beside"


@few
@given(seeds, st.sampled_from([None, "time"]))
def test_a_purchase_that_counts_thrice_is_three_purchases(seed, period):
    rng = np.random.default_rng(seed)
    shop, p = random_market(rng)
    each, weight = rng.integers(1, 4, len(shop)), rng.uniform(.2, 3, len(shop))
    again = np.repeat(np.arange(len(shop)), each)
    for make, told in ((lambda o, w: product_shares(o, period, w), p.choice), (lambda o, w: piece_shares(o, SUPPORT, period, w), p.quantity_of(shop.chosen))):
        counted, repeated = make(shop, weight).counted(each.astype(float)), make(shop[again], weight[again])
        assert np.allclose(counted.observed, repeated.observed) and np.allclose(counted.purchases, repeated.purchases)
        assert np.allclose(counted.simulated(told), repeated.simulated(told[again]))


@few
@given(seeds, st.sampled_from([.3, 1., 10.]), st.sampled_from([None, 3.]))
def test_half_life(seed, half_life, strength):
    "Nearer than before to what it was fitted on, which is what sold last; half-lives without end are none."
    shop, p = random_market(np.random.default_rng(seed))
    each = .5**((shop.time.max() - shop.time) / half_life)
    shares = product_shares(shop).counted(each)
    after = fit_map(p, shop, strength=strength, half_life=half_life)(p, shop)
    assert total(kl, shares, after.choice) <= total(kl, shares, p.choice) * (1 + 1e-9) + 1e-9
    assert np.allclose(fit_map(p, shop, strength=3., half_life=1e12)(p, shop).choice, fit_map(p, shop, strength=3.)(p, shop).choice, atol=1e-4)


@few
@given(seeds, st.sampled_from([0., .7, 2.]))
def test_news_of_prices(seed, news):
    "At the prices of the fit nothing is new; whatever prices become, nobody takes more of what is dearer; a deal that is over is forgotten, whatever is lost at a price stays lost."
    rng = np.random.default_rng(seed)
    shop, p = random_market(rng)
    shop = shop.replace(price=rng.uniform(1, 4, len(shop.products))[np.maximum(shop.product, 0).astype(int)])            # one price each
    still, map = fit_map(p, shop, strength=3.), fit_map(p, shop, strength=3., news=news)
    assert map.bias.equals(still.bias) and np.allclose(map(p, shop).choice, still(p, shop).choice)
    j, rows = rng.integers(shop.sizes), np.arange(len(shop))
    told = [map(p, shop.replace(price=np.where(np.arange(shop.mask.shape[1]) == j[:, None], f, 1.) * shop.price)).choice[rows, j] for f in (.8, .93, 1., 1.04, 1.3)]
    assert (np.diff(told, axis=0) <= 1e-12).all()
    over = map.shift(shop.replace(price=2 * shop.price))
    assert np.allclose(over[shop.mask], np.minimum(still.shift(shop), 0)[shop.mask])
    assert np.allclose(map.shift(shop.replace(price=.5 * shop.price))[shop.mask], (still.shift(shop) + news)[shop.mask])


def test_news_are_against_the_last_prices():
    "With a half-life of a day against yesterday's price, not against that of a year ago; a what-if is asked at its own prices."
    shop, p = random_market(np.random.default_rng(2), n=200)
    cheap = shop.replace(price=np.where((shop.time == shop.time.max())[:, None], 1., 3.))
    assert np.allclose(np.exp(fit_map(p, cheap, strength=3., half_life=.01, news=1.).price), 1.) and (np.exp(fit_map(p, cheap, strength=3., news=1.).price) > 1.3).all()
    dear = shop.replace(price=3.)
    model = Calibrated(Popularity().fit(dear), fit_map(Popularity().fit(dear).predict(dear), dear, strength=3., news=1.))
    cut = dict(price=np.where(np.arange(dear.mask.shape[1]) == 0, 2., 3.))
    assert np.allclose(model.what_if(dear, [{}, cut])[1].choice, model.predict(dear.replace(**cut)).choice) and model.what_if(dear, [cut])[0].choice[:, 0].sum() > model.predict(dear).choice[:, 0].sum() + 1


def test_half_life_of_days():
    "Dates are days: what sold on the first day of a month is forgotten at its end, and a year of it costs no underflow."
    shop, p = random_market(np.random.default_rng(1), n=200)
    swapped = shop.with_columns(dict(time=np.datetime64("2001-01-01") + shop.time * np.timedelta64(400, "D")))
    last = shop.time == shop.time.max()
    recent = Predictions(p.choice[last][:, :shop[last].mask.shape[1]]), shop[last]
    assert np.allclose(fit_map(Predictions(p.choice), swapped, strength=3., half_life=1.)(p, shop).choice, fit_map(*recent, strength=3.)(p, shop).choice, atol=1e-4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seeds, st.floats(-2, 2), st.floats(-2, 2))
def test_stochastic_order_is_kept(seed, log_a, log_b):
    rng = np.random.default_rng(seed)
    low = rng.dirichlet(np.full(20, .4))
    survival = np.maximum(1 - low.cumsum(), rng.uniform(0, 1) * np.sort(rng.uniform(0, 1, 20))[::-1])   # pointwise above: takes more
    survival[-1] = 0
    high = -np.diff(np.r_[1, survival])
    one, two = (bend(q, np.exp(log_a), np.exp(log_b)) for q in (low, high))
    assert np.isclose(one.sum(), 1) and np.isclose(two.sum(), 1) and (one >= 0).all() and (two >= 0).all()
    assert (one.cumsum() >= two.cumsum() - 1e-9).all()


class Truth(ChoiceModel):
    name = "truth"
    def predict(self, occasions, mu=None):
        return Predictions(occasions.alternative("true_probability", 0.), pieces_probability(*(occasions.column(f"true_{k}") for k in ("usual", "extra", "habit")))[:, None], SUPPORT, name=self.name)


class Distorted(Truth):
    name = "distorted"
    def __init__(self, map): self.map = map
    def predict(self, occasions, mu=None): return self.map(super().predict(occasions, mu), occasions)


def planted_market(seed, households=400, categories=2):
    rng = np.random.default_rng(seed)
    worlds = [replace(sample_world(rng, int(rng.integers(3, 7))), turnover=0., empty=0., outside=-np.inf, priced=True, counted=True, pieces=rng.uniform(-1, 1), drift=.15) for _ in range(categories)]
    shop, _ = simulate_market(worlds, rng.standard_normal((households, len(TRAITS))), rng, 10)
    shop = shop.with_columns(dict(month=shop.time // 128 // 4))
    names = pd.MultiIndex.from_frame(shop.products[["category", "product_id"]])
    wrong = ShareMap(pd.Series(np.exp(rng.normal(size=categories) * .4), shop.categories.astype(str)), pd.Series(rng.normal(size=len(names)) * .7, names), pd.DataFrame(np.exp(rng.normal(size=(categories, 2)) * .4), shop.categories.astype(str), ["a", "b"]))
    return shop, Distorted(wrong)


@pytest.mark.parametrize("distance", ["kl", "wasserstein"])
def test_held_out_divergence_falls(distance):
    "Planted temperature, bias and bend: nearer on other customers and on later months, in each market and by much in all."
    ratios = []
    for seed in range(dict(kl=5, wasserstein=2)[distance]):   # the work of a transport is computed by linear programming
        shop, model = planted_market(seed, dict(kl=400, wasserstein=250)[distance])
        known, early = shop.customer % 4 > 0, shop.column("month") < 9
        parts = {"others": shop[~known & early], "later": shop[known & ~early]}
        table = divergence_table({"before": model, "after": calibrate(model, shop[known & early], period="month", distance=distance)}, parts, "month")
        before, after = (table.xs(k, level=1) for k in ("before", "after"))
        assert (after.excess < before.excess).all() and (after.kl_pieces < before.kl_pieces + 1e-3).all(), f"seed {seed}: {table}"
        ratios.append(after.excess.clip(lower=0) / before.excess)
    assert np.median(ratios) < .2, np.round(ratios, 2)


def test_planted_map_is_undone():
    shop, model = planted_market(1, households=1000)
    found = calibrate(model, shop, period="month").map
    centred = lambda bias: bias - bias.groupby(level=0).transform("mean")                # only differences within a category mean anything
    inverse = -model.map.bias * model.map.temperature.reindex(model.map.bias.index.get_level_values(0)).to_numpy()
    assert np.abs(np.log(found.temperature * model.map.temperature)).max() < .25
    assert np.abs(centred(found.bias).to_numpy() - centred(inverse).to_numpy()).max() < .3


def test_the_truth_is_left_nearly_alone():
    "Nothing is wrong, so what is fitted is chance: it must cost less than chance is."
    worse = []
    for seed in range(6):
        shop, _ = planted_market(seed, households=250)
        known = shop.customer % 4 > 0
        table = divergence_table({"before": Truth(), "after": calibrate(Truth(), shop[known], period="month")}, {"others": shop[~known]}, "month")
        worse.append(table.kl.iloc[1] / table.kl.iloc[0] - 1)
    assert np.mean(worse) < .05, np.round(worse, 3)


def test_a_calibrated_model_is_a_choice_model():
    shop, _ = simulate(replace(sample_world(np.random.default_rng(1), 4), absent=.2, turnover=0., empty=0., outside=-np.inf, counted=True), 60, 5, rng=1)
    shop = ready(shop)
    model = Calibrated(Dirichlet()).fit(shop)
    assert model.name == "dirichlet, calibrated" and len(model.map.grid) == len(STRENGTHS) and model.map.grid.picked.eq("*").sum() == 1
    p = model.predict(shop)
    assert p.quantity is None and p.name == model.name
    mu = MeanField(np.array([.7, .1, .1, .1]), np.full(4, np.nan), np.full(4, np.nan), np.zeros(4))
    assert not np.allclose(model.predict(shop, mu).choice, p.choice), "mu does not reach the model"
    assert np.allclose(model.map(model.model.predict(shop, mu), shop).choice, model.predict(shop, mu).choice)
    none, other = model.what_if(shop, [{}, dict(popularity=np.where(np.arange(shop.mask.shape[1]) == 0, .9, .05))])
    assert np.allclose(none.choice, p.choice) and not np.allclose(other.choice, p.choice)
    assert settle(model, shop, step=.5).settled
    again = Calibrated(Dirichlet()).fit(shop)
    assert model.map.bias.equals(again.map.bias) and model.map.temperature.equals(again.map.temperature), "the same call, another map"


def test_the_map_of_a_fit_is_not_taken_from_its_own_customers():
    "A model that has learned the choices of its customers by heart is as sure as can be of them, and knows nothing of others."
    class ByHeart(ChoiceModel):
        name = "by-heart"
        def fit(self, occasions):
            self.known = set(zip(occasions.customer.tolist(), occasions.time.tolist()))
            return self
        def predict(self, occasions, mu=None):
            sure = np.where(np.arange(occasions.mask.shape[1]) == occasions.chosen[:, None], 1., 0)
            seen = np.array([k in self.known for k in zip(occasions.customer.tolist(), occasions.time.tolist())])
            wrong = softmax(np.where(occasions.mask, np.where(occasions.product == 0, 4., 0), -np.inf))
            return Predictions(np.where(seen[:, None], sure, wrong))
    shop, _ = simulate(replace(sample_world(np.random.default_rng(1), 4), absent=0., turnover=0., empty=0., outside=-np.inf), 90, 5, rng=1)
    in_sample, fresh = calibrate(ByHeart().fit(shop), shop).map, Calibrated(ByHeart(), fitted=("bias",)).fit(shop).map
    assert (in_sample.bias == 0).all() and fresh.bias.iloc[0] < -1


def test_settings_that_make_no_sense():
    shop, p = random_market(np.random.default_rng(0))
    with pytest.raises(ValueError, match="temperature, bias and quantity, got slope"): fit_map(p, shop, ("bias", "slope"))
    with pytest.raises(ValueError, match="kl or wasserstein, got 'tv'"): fit_map(p, shop, distance="tv")
    with pytest.raises(ValueError, match="half_life must be above 0, got 0"): fit_map(p, shop, half_life=0)
    with pytest.raises(ValueError, match="none is the last"): fit_map(p, Occasions(replace(shop.log, ordered=False)), half_life=1.)
    with pytest.raises(ValueError, match="news must be 0 or more.*got -1"): fit_map(p, shop, news=-1)
    with pytest.raises(ValueError, match="no price can have moved"): fit_map(p, Occasions(replace(shop.log, ordered=False)), news=1.)
    with pytest.raises(ValueError, match="no price is known"): fit_map(p, shop.without("price"), news=1.)
    one = shop[shop.customer == 0]
    cut = Predictions(p.choice[shop.customer == 0][:, :one.mask.shape[1]])
    with pytest.raises(ValueError, match="pass strength"): fit_map(cut, one)
    assert fit_map(cut, one, strength=1.).bias.abs().max() > 0
    blind = shop.without("price")
    with pytest.raises(ValueError, match="no place on the ground"): fit_map(p, blind, distance="wasserstein", strength=1.)
    assert fit_map(p, blind, distance="wasserstein", strength=1., ground=np.arange(len(shop.products))[:, None]).bias.abs().max() > 0


def test_sampling_floor():
    "Over many draws from the truth the excess is nothing."
    shop, _ = planted_market(3, households=150)
    p, excess = Truth().predict(shop), []
    for seed in range(40):
        drawn = p.sample(1000 + seed)[0]
        log = replace(shop.log, occasion={**shop.log.occasion, "chosen": drawn.astype(np.int32)})
        d = divergences(p, Occasions(log), "month")
        excess.append(d["excess"] / d["floor"])
    assert abs(np.mean(excess)) < .1


def test_wasserstein_on_a_line_is_the_area_between_the_distributions():
    rng = np.random.default_rng(0)
    shop, p = random_market(rng, 1, 1)
    shares = product_shares(shop)
    x = price_ground(shop)[shares.item[0], 0]
    s, order = shares.simulated(p.choice), np.argsort(x)
    area = (np.abs((shares.observed - s)[0, order].cumsum()[:-1]) * np.diff(x[order])).sum()
    assert np.isclose(transport(shares, price_ground(shop))(shares, s)[0][0], area)
    assert np.isclose(kl(shares, s)[0][0], kl_divergence(shares.observed[0], s[0]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seeds)
def test_weights_meet_the_margins(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 400))
    traits = pd.DataFrame(dict(age=rng.choice(list("abc"), n), town=rng.choice([True, False], n), spend=rng.lognormal(0, .7, n), rare=rng.random(n) < .1), index=[f"h{i}" for i in range(n)])
    hidden = rng.dirichlet(np.full(n, 2.))   # that some positive weights meet the margins
    margins = {k: {v: float(hidden[traits[k] == v].sum()) for v in traits[k].unique()} for k in ("age", "town", "rare")} | dict(spend=float(hidden @ traits.spend))
    raked = rake(traits, margins)
    assert (raked.weight > 0).all() and np.isclose(raked.weight.mean(), 1) and np.abs(raked.margins.after - raked.margins.target).max() < 1e-6
    w = raked.weight / n
    assert 1 <= raked.effective <= n + 1e-9 and (w * np.log(w)).sum() <= (hidden * np.log(hidden)).sum() + 1e-9, "other weights are more equal"
    for level, share in margins["age"].items(): assert np.isclose(w[traits.age == level].sum(), share)


def test_raking_is_iterative_proportional_fitting():
    rng = np.random.default_rng(5)
    traits = pd.DataFrame(dict(age=rng.choice(list("abc"), 300, p=[.5, .3, .2]), town=rng.choice(["yes", "no"], 300)))
    margins = dict(age=dict(a=.2, b=.3, c=.5), town=dict(yes=.3, no=.7))
    w = np.ones(300) / 300
    for _ in range(200):
        for name, target in margins.items(): w = w * traits[name].map(target).to_numpy() / pd.Series(w).groupby(traits[name]).transform("sum").to_numpy()
    assert np.allclose(rake(traits, margins).weight, w * 300)
    assert np.isclose(rake(traits, {k: traits[k].value_counts(normalize=True).to_dict() for k in margins}).effective, 300)


@pytest.mark.parametrize("margins, said", [
    (dict(age=dict(a=.5, b=.3, d=.2)), "'age'.*'c'|'age'.*'d'"),
    (dict(age=dict(a=.5, b=.5)), "'age'.*'c' should have a share of 0"),
    (dict(age=dict(a=.5, b=.3, c=.3)), "'age'.*sum to 1"),
    (dict(spend=99.), "'spend'.*99 cannot be met"),
    (dict(income=1.), "'income'.*no such trait"),
    (dict(hole=1.), "'hole'.*unknown for"),
    (dict(age=dict(a=.9, b=.05, c=.05), same=.2), "cannot be met together.*(age|same)"),
])
def test_margins_that_cannot_be_met(margins, said):
    traits = pd.DataFrame(dict(age=list("abc") * 10, spend=np.arange(30.), hole=[np.nan] + [1.] * 29))
    traits["same"] = (traits.age == "a") * 1.
    with pytest.raises(ValueError, match=said): rake(traits, margins)


def moody_table(rng, weeks, J=6, n=120, mood=.35):
    "Shares of weeks that differ by a mood that the model does not know."
    base = rng.normal(size=J)
    s = softmax(base + mood * rng.normal(size=(weeks, J)))
    count, mean = np.stack([rng.multinomial(n, p) for p in s]), softmax(base + mood * rng.normal(size=(4000, J))).mean(0)
    return pd.DataFrame(dict(category="c", period=np.repeat(np.arange(weeks), J), product=np.tile([f"p{j}" for j in range(J)], weeks), purchases=n, observed=(count / n).ravel(), simulated=np.tile(mean, weeks)))


@pytest.mark.parametrize("level", [.8, .9])
@pytest.mark.parametrize("mood", [0., .35, .8])
def test_conformal_intervals_cover_coming_weeks(level, mood):
    rng, inside = np.random.default_rng(0), []
    for _ in range(300):
        table = moody_table(rng, 18, mood=mood)
        t = conformal_shares(table[table.period < 12], table[table.period >= 12], level)
        inside.append(t.observed.between(t.low, t.high).mean())
    assert abs(np.mean(inside) - level) < .025, np.mean(inside)


def test_conformal_needs_a_past_and_reads_no_future():
    table = moody_table(np.random.default_rng(0), 12)
    past, coming = table[table.period < 6], table[table.period >= 6]
    with pytest.raises(ValueError, match="at least 9 past shares, got 8"): conformal_shares(past[:8], coming)
    a, b = (conformal_shares(past, c) for c in (coming, coming.assign(observed=np.nan)))
    assert a.low.equals(b.low) and a.high.equals(b.high) and (a.low >= 0).all() and (a.high <= 1).all()


def test_bootstrap_covers_the_share_of_the_whole_population():
    shop, _ = planted_market(4, households=2000, categories=1)
    p, inside = Truth().predict(shop), []
    whole = share_table(p, shop).set_index("product").simulated
    for seed in range(60):
        some = np.isin(shop.customer, np.random.default_rng(seed).choice(2000, 80, replace=False))
        t = bootstrap_shares(Predictions(p.choice[some]), shop[some], draws=200, seed=seed).set_index("product")
        inside.append(whole[t.index].between(t.low, t.high).mean())
    assert .84 < np.mean(inside) < .96


def test_a_calibrated_language_model_answers_what_ifs():
    from malles.elicitation import LMChoice
    shop, _ = simulate(replace(sample_world(np.random.default_rng(1), 3), absent=.2, turnover=0., empty=0., outside=-np.inf, counted=True, priced=True), 20, 3, rng=1)
    shop = ready(shop)
    nano = LMChoice.nano().fit(shop)
    model = calibrate(nano, shop, strength=5.)
    assert np.abs(np.log(model.map.temperature)).max() > 0 and model.map.bias.abs().max() > 0 and (model.map.pieces != 1).any().any()
    dear = dict(price=shop.price * np.where(shop.product == 0, 1.5, 1.))
    now, then = model.what_if(shop, [{}, dear])
    assert np.allclose(now.choice, model.predict(shop).choice) and now.quantity.shape == (*shop.mask.shape, len(SUPPORT))
    assert np.allclose(then.choice, model.map(nano.what_if(shop, [dear])[0], shop).choice)
    own = (shop.product == 0) & (shop.sizes > 1)[:, None]
    assert then.choice[own].mean() < now.choice[own].mean(), "dearer, and bought more"
