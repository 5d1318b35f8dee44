"Laws of the waist: vectorised columns equal a slow, plain reading of the definitions."
import hashlib

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from malles.choicesets import build_occasions
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
