"Laws of the waist: vectorised columns equal a slow, plain reading of the definitions."
import hashlib

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from malles.choicesets import OWN, build_occasions, from_choices
from malles.incidence import incidence_occasions, incidence_rows
from malles.market import Market, MarketError, fold_of
from malles.metrics import calibration_slope, choice_scores, clustered_mean, holm, quantity_scores
from malles.occasions import Occasions, chosen_product, mean_field, with_popularity
from malles.predictions import Dirichlet, LastPurchase, Popularity, Predictions, Uniform
from malles.profiles import with_profiles
from malles.splits import sample_alternatives, time_split


def random_occasions(seed, n=90, customers=6, categories=2, P=5, ordered=True):
    "Ragged sets, some visits without a purchase, some missing prices, equal times."
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, P + 1, n)
    product = np.concatenate([np.sort(rng.permutation(P)[:k]) for k in sizes])
    m = sizes.sum()
    price = np.where(rng.random(m) < .1, np.nan, rng.uniform(1, 3, m))
    products = pd.DataFrame(dict(product_id=list("abcde")[:P], category="c"))
    return Occasions.from_arrays("m", np.arange(customers).astype(str), [f"k{i}" for i in range(categories)], products, rng.integers(0, customers, n), rng.integers(0, categories, n), rng.integers(0, 25, n),
        np.r_[0, np.cumsum(sizes)], product, np.where(rng.random(n) < .1, -1, rng.integers(0, 10**6, n) % sizes), rng.integers(1, 8, n).astype(float),
        dict(price=price, discount=np.where(rng.random(m) < .3, .2, 0.)), ordered=ordered, seed=seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ordered=st.booleans())
def test_profiles_equal_their_definitions(seed, ordered):
    o = with_profiles(random_occasions(seed, ordered=ordered))
    rng = np.random.default_rng(seed)
    for i in rng.integers(0, len(o), 12):
        past = [r for r in range(len(o)) if o.customer[r] == o.customer[i] and o.category[r] == o.category[i] and ((o.time[r] < o.time[i]) if ordered else r < i)]
        bought = [r for r in past if o.chosen[r] >= 0]
        assert o.column("n_past")[i] == len(bought)
        codes = [o.product[r, o.chosen[r]] for r in bought]
        J, L = o.sizes[i], {}
        here = o.product[i][o.mask[i]]
        count = np.array([codes.count(c) for c in here])
        np.testing.assert_allclose(o.alternative("own_count")[i][o.mask[i]], count)
        np.testing.assert_allclose(o.alternative("own_share")[i][o.mask[i]], count / max(len(codes), 1))
        L = {c: .8**len(codes) / J + sum(.2 * .8**(len(codes)-1-k) for k, x in enumerate(codes) if x == c) for c in here}
        if ordered and len({o.time[r] for r in bought}) == len(bought):  # equal times have no order of their own
            np.testing.assert_allclose(o.alternative("loyalty")[i][o.mask[i]], [L[c] for c in here], rtol=1e-4)
            last = np.array([bool(codes) and c == codes[-1] for c in here])
            np.testing.assert_array_equal(o.alternative("last")[i][o.mask[i]], last)
            if bought:
                assert o.column("recency")[i] == o.time[i] - o.time[bought[-1]]
                assert o.column("last_quantity")[i] == o.quantity[bought[-1]]
        if bought: assert np.isclose(o.column("mean_quantity")[i], np.mean([o.quantity[r] for r in bought]))
        if codes: assert np.isclose(o.column("variety")[i], 1 - sum((codes.count(c) / len(codes))**2 for c in set(codes)), atol=1e-6)
        else: assert np.isnan(o.column("variety")[i])
        if ordered:
            mine = [r for r in range(len(o)) if o.customer[r] == o.customer[i] and o.time[r] < o.time[i] and o.chosen[r] >= 0]
            if mine: assert np.isclose(o.column("basket_size")[i], len(mine) / len({o.time[r] for r in mine}))
            else: assert np.isnan(o.column("basket_size")[i])
        level = [o.price[r, o.chosen[r]] / np.nanmean(o.price[r]) for r in bought if np.isfinite(o.price[r, o.chosen[r]])]
        if level: assert np.isclose(o.column("price_level")[i], np.mean(level), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_views_agree_with_the_whole(seed):
    o = random_occasions(seed)
    which = np.random.default_rng(seed).permutation(len(o))[:20]
    v = o[which]
    J = v.mask.shape[1]
    np.testing.assert_array_equal(v.price, o.price[which][:, :J])
    np.testing.assert_array_equal(v.mask, o.mask[which][:, :J])
    assert (v.sizes == v.mask.sum(1)).all() and (o[o.chosen >= 0].chosen >= 0).all()
    w = o.replace(price=o.price * 2)[which]
    np.testing.assert_array_equal(w.price, v.price * 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_simple_choosers_give_probabilities(seed):
    o = with_profiles(random_occasions(seed))
    o = with_popularity(o[o.chosen >= 0], mean_field(o), counted=o)
    for model in (Uniform(), Popularity(), LastPurchase().fit(o), Dirichlet().fit(o)):
        p = model.predict(o).choice
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
        assert (p[~o.mask] == 0).all() and (p >= 0).all()
        assert np.isfinite(choice_scores(model.predict(o), o).log_loss).all()


def test_folds_are_the_contract():
    ids = [f"c{i}" for i in range(50)]
    expected = [int(hashlib.sha256(f"shop/{c}".encode()).hexdigest(), 16) % 5 for c in ids]
    assert fold_of("shop", ids).tolist() == expected and set(expected) == set(range(5))


def test_crps_is_the_integral():
    "CRPS of a distribution over pieces, against the definition E|X - y| - E|X - X'|/2."
    rng = np.random.default_rng(0)
    o = random_occasions(1)
    o = o[o.chosen >= 0]
    q = rng.dirichlet(np.ones(20), (len(o), 1))
    k = np.arange(1, 21)
    expected = (q[:, 0] * np.abs(k - np.clip(o.quantity, 1, 20)[:, None])).sum(1) - .5 * np.einsum("nk,nl,kl->n", q[:, 0], q[:, 0], np.abs(k[:, None] - k))
    np.testing.assert_allclose(quantity_scores(Predictions(quantity=q, support=k), o).crps, expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.floats(.4, 2.5))
def test_calibration_slope_inverts_a_power(seed, power):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), 3000)
    chosen = (rng.random((3000, 1)) > p.cumsum(1)[:, :-1]).sum(1)
    sharp = p**power / (p**power).sum(1, keepdims=True)
    mask = np.ones(p.shape, bool)
    assert abs(calibration_slope(sharp, chosen, mask) * power - calibration_slope(p, chosen, mask)) < 1e-3


def test_holm_never_lowers_a_p_value():
    p = np.random.default_rng(0).random(30)
    assert (holm(p) >= p).all() and (np.argsort(holm(p), kind="stable").shape == p.shape)
    assert np.isnan(clustered_mean([np.nan], [0])[0])


def test_predictions_that_do_not_sum_are_refused():
    with pytest.raises(ValueError, match="sum to 1"): Predictions(np.array([[.5, .4]]))
    with pytest.raises(ValueError, match="needs"): Predictions()


def test_errors_teach():
    o = random_occasions(0)
    with pytest.raises(ValueError, match="conditional on purchase"): choice_scores(Uniform().predict(o), o)
    with pytest.raises(MarketError, match="choices or a transactions"): build_occasions(Market.from_frames("x", products=pd.DataFrame(dict(product_id=["a"]))))
    with pytest.raises(MarketError, match="no time split"): time_split(random_occasions(0, ordered=False))
    with pytest.raises(ValueError, match="something was chosen"): sample_alternatives(o, 2)
    with pytest.raises(ValueError, match="outside its set"):
        Occasions.from_arrays("m", ["a"], ["c"], pd.DataFrame(dict(product_id=["x", "y"], category="c")), [0], [0], [0], [0, 2], [0, 1], [5], [1])


def test_customers_tell_who_they_are():
    o = with_profiles(random_occasions(2), customers=pd.DataFrame(dict(customer_id=["3", "1", "0"], age=[30., np.nan, 50], region=["south", "north", None], since=pd.Timestamp("2020-01-01"))))
    of = {"0": (50, np.nan), "1": (np.nan, 0), "3": (30, 1)}
    for i in range(len(o)): np.testing.assert_array_equal((o.column("customer_age")[i], o.column("customer_region")[i]), of.get(o.customers[o.customer[i]], (np.nan, np.nan)))
    assert "customer_since" not in o.log.occasion


def test_columns_that_bear_our_names_are_kept_aside():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(customer_id=np.repeat(["a", "b"], 20), occasion_id=np.repeat(np.arange(20).astype(str), 2), category="c", time=np.repeat(np.arange(20), 2), product_id=["x", "y"] * 20,
        price=rng.uniform(1, 2, 40), chosen=[True, False] * 20, quantity=[2, 0] * 20))
    plain = with_profiles(from_choices(Market.from_frames("m", choices=table)))
    named = sorted(OWN - set(table) | {"customer_age"})
    spoilt = with_profiles(from_choices(Market.from_frames("m", choices=table.assign(**{k: rng.normal(size=40) for k in named}))))
    assert set(plain.log.occasion) | set(plain.log.alternative) <= OWN | {"price", "category", "time", "quantity", "occasion_id"}  # every name that we write is guarded
    for k, v in plain.log.alternative.items(): np.testing.assert_array_equal(v, spoilt.log.alternative[k])
    for k, v in plain.log.occasion.items(): np.testing.assert_array_equal(v, spoilt.log.occasion[k])
    assert all(f"{k} (source)" in spoilt.log.alternative for k in named) and "loyalty -> loyalty (source)" in str(spoilt.log.notes) and not plain.log.notes


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_sampled_sets_keep_the_log(seed):
    "Order, pasts and profiles stay; rows outside the view keep their sets; the chosen alternative is always kept."
    for ordered in (True, False):
        o = with_profiles(random_occasions(seed, ordered=ordered))
        view = o[np.random.default_rng(seed).permutation(np.flatnonzero(o.chosen >= 0))[:30]]
        view = view.replace(price=view.price * 3)
        few = sample_alternatives(view, 1, seed)
        assert (few.rows == view.rows).all() and (few.sizes <= 2).all() and (chosen_product(few) == chosen_product(view)).all()
        for k, v in o.log.occasion.items():
            if k != "chosen": np.testing.assert_array_equal(few.log.occasion[k], v)
        for i in range(len(few)):
            kept = np.isin(view.product[i][view.mask[i]], few.product[i][few.mask[i]])
            for k in ("own_share", "loyalty", "price"): np.testing.assert_array_equal(few.alternative(k)[i][few.mask[i]], view.alternative(k)[i][view.mask[i]][kept])
            assert len(few.past(i)) == len(view.past(i)) and (chosen_product(few.past(i)) == chosen_product(view.past(i))).all()
        rest = np.setdiff1d(np.arange(len(o)), view.rows)
        np.testing.assert_array_equal(few.whole()[rest].product, o[rest].product)
    with pytest.raises(ValueError, match="size must be at least 1"): sample_alternatives(view, 0)


def moments(times, customers=None, dates=False):
    n = len(times)
    t = np.datetime64("2026-01-01", "s") + np.asarray(times) * np.timedelta64(86400, "s") if dates else np.asarray(times)
    return Occasions.from_arrays("m", ["a", "b", "c"], ["k", "l"], pd.DataFrame(dict(product_id=["x", "y"], category="k")), customers or [0]*n, np.arange(n) % 2, t, np.arange(0, 2*n+1, 2), [0, 1]*n, [0]*n, [1]*n)


def test_time_split_never_cuts_a_trip():
    o = moments(np.repeat(np.arange(7), 2).tolist() + [0, 1, 1])  # two categories a trip
    late = time_split(o)
    assert late.any() and not set(o.time[late]) & set(o.time[~late]) and o.time[late].min() > o.time[~late].max()
    with pytest.raises(MarketError, match="one moment per customer"): time_split(moments([4, 4, 4]))
    with pytest.raises(MarketError, match="nobody has an occasion in his last 20%"): time_split(moments([1, 2, 3]))
    with pytest.raises(MarketError, match="one day"): time_split(moments([1, 1], dates=True))
    with pytest.raises(MarketError, match="too few"): time_split(moments([1, 2], dates=True))
    assert time_split(moments([1, 2, 3, 4, 5], dates=True)).sum() == 1


@pytest.mark.parametrize("alternatives", [0, -3, 1])
def test_a_choice_needs_two(alternatives):
    with pytest.raises(ValueError, match="alternatives must be at least 2"): build_occasions(Market.from_frames("m", transactions=pd.DataFrame(dict(time=[1], customer_id=["a"], product_id=["x"], quantity=[1]))), alternatives=alternatives)


def visits(seed=0, n=1500, customers=40, products=30):
    rng = np.random.default_rng(seed)
    category = rng.choice(["tea", "jam", "soap"], n, p=[.6, .3, .1])
    return pd.DataFrame(dict(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 90, n), unit="D"), customer_id=rng.integers(0, customers, n).astype(str),
        product_id=np.char.add(category, rng.integers(0, products, n).astype(str)), category=category, quantity=rng.integers(1, 4, n), unit_price=2.))


def test_every_purchase_of_a_category_counts_as_one():
    "Against the definition, with far more products than a choice set would hold."
    log = visits()
    o = incidence_occasions(Market.from_frames("m", transactions=log), seed=1)
    trips = log[["customer_id", "time"]].drop_duplicates()
    days = log.groupby(["customer_id", "category"]).time.agg(lambda t: sorted(set(t)))
    bought = sum(len(d) - 1 for d in days)
    all_ = sum((trips.time[trips.customer_id == c] > d[0]).sum() for (c, _), d in days.items())
    assert (o.chosen >= 0).sum() == bought
    w = o.column("weight")
    assert (w[o.chosen >= 0] == 1).all() and abs(w[o.chosen < 0].sum() / (all_ - bought) - 1) < .1
    for i in range(0, len(o), 50):
        c, k, t = o.customers[o.customer[i]], o.categories[o.category[i]], pd.Timestamp(o.time[i])
        past = [d for d in days[c, k] if d < t]
        assert (t in days[c, k]) == (o.chosen[i] >= 0) and o.column("n_past")[i] == len(past)
        assert o.column("recency")[i] == (t - past[-1]).days
        assert o.column("n_past_all")[i] == sum(d < t for q, v in days.items() if q[0] == c for d in v)
        assert o.column("last_quantity")[i] == log.quantity[(log.customer_id == c) & (log.category == k) & (log.time == past[-1])].sum()


def test_incidence_takes_some_customers_and_says_how_sure_it_is():
    market = Market.from_frames("m", transactions=visits(3))
    assert len(np.unique(incidence_occasions(market, customers=12).customer)) <= 12
    rows = pd.DataFrame(incidence_rows(market, customers=25))
    assert (rows.low <= rows.value).all() and (rows.value <= rows.high).all() and rows.equals(pd.DataFrame(incidence_rows(market, customers=25)))
    assert rows.n.max() < pd.DataFrame(incidence_rows(market)).n.max()
