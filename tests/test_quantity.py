"Laws of the quantity rivals: proper distributions whatever the data lack, known counts recovered, no peeking."
import numpy as np, pandas as pd, pytest
from malles.counts import QuantityHurdle, QuantityPoisson
from malles.covariates import ready
from malles.hazard import LAST_QUESTION, QuantityLightGBM, from_hazards, quantity_opponents, questions
from malles.metrics import quantity_scores
from malles.occasions import Occasions
from malles.predictions import SUPPORT
from malles.profiles import with_profiles
from malles.quantity import QuantityLast, QuantityMedian

def market(draw, H=200, T=6, J=3, seed=0, categories=1, ordered=True):
    "Households with a level of their own; draw(rng, level, price, last) gives the pieces."
    rng = np.random.default_rng(seed)
    n = H * T * categories
    who = np.repeat(np.arange(H), T * categories)
    cat = np.tile(np.repeat(np.arange(categories), T), H)
    level, price = rng.gamma(2, .5, H)[who], np.exp(rng.normal(0, .3, (n, J)))
    chosen = rng.integers(0, J, n)
    q = draw(rng, level, price[np.arange(n), chosen])
    products = pd.DataFrame(dict(product_id=[f"c{c}p{j}" for c in range(categories) for j in range(J)], category=[f"cat{c}" for c in range(categories) for _ in range(J)]))
    return ready(Occasions.from_arrays("counts", [f"h{i}" for i in range(H)], [f"cat{c}" for c in range(categories)], products, who, cat, np.tile(np.arange(T), H * categories),
        np.arange(0, J*n + 1, J), (cat[:, None] * J + np.arange(J)).ravel(), chosen, q, dict(price=price.ravel()), ordered=ordered))

def positive_poisson(rng, level, price):
    q = rng.poisson(level / price)
    while (q == 0).any(): q = np.where(q == 0, rng.poisson(level / price), q)
    return q

def overdispersed(rng, level, price): return 1 + (rng.random(len(level)) < .4) * (1 + rng.poisson(rng.gamma(1.5, 3 * level)))

@pytest.fixture(scope="module")
def occasions(): return market(overdispersed)

def proper(p, o):
    assert p.quantity.shape[0] == len(o) and p.quantity.shape[1] in (1, o.mask.shape[1]) and p.quantity.shape[2] == len(SUPPORT)
    assert np.isfinite(p.quantity).all() and (p.quantity >= 0).all() and np.allclose(p.quantity.sum(-1), 1, atol=1e-6)
    assert p.choice is None and (p.support == np.arange(1, 21)).all()

def test_names(): assert [m.name for m in quantity_opponents()] == ["quantity-median", "quantity-last", "quantity-poisson", "quantity-hurdle", "quantity-lightgbm"]

def test_proper_whatever_the_data_lack(occasions):
    train, test = occasions[occasions.customer % 3 > 0], occasions[occasions.customer % 3 == 0]
    other = market(overdispersed, 10, J=5, categories=2, seed=4)
    for m in quantity_opponents():
        m.fit(train)
        for o in (test, test[:1], test[:0], test.without("price"), test.replace(price=np.nan), test.replace(price=1e12), other): proper(m.predict(o), o)

@pytest.mark.parametrize("q", [np.ones, lambda n: np.full(n, 20.), lambda n: np.full(n, 5000.), lambda n: np.where(np.arange(n) % 2, np.nan, 2.), lambda n: np.where(np.arange(n) % 2, 2.5, 1.)], ids=["all one", "all twenty", "huge", "half unknown", "fractions"])
def test_odd_quantities(q):
    o = market(lambda rng, level, price: q(len(level)), 20)
    for m in quantity_opponents(): proper(m.fit(o).predict(o), o)

def test_errors_teach(occasions):
    nothing = market(lambda rng, level, price: np.full(len(level), np.nan), 5)
    for m in quantity_opponents():
        with pytest.raises(ValueError, match="how many pieces"): m.fit(nothing)
    with pytest.raises(ValueError, match="no last quantity"): QuantityLast().fit(market(overdispersed, 5, ordered=False))
    assert "quantity-last" not in [m.name for m in quantity_opponents(ordered=False)]

def scores(m, o):
    train, test = o[o.customer % 3 > 0], o[o.customer % 3 == 0]
    return quantity_scores(m.fit(train).predict(test), test).mean()

def test_each_wins_where_it_should(occasions):
    wide = {m.name: scores(m, occasions).log_score for m in quantity_opponents()}
    assert wide["quantity-hurdle"] < wide["quantity-poisson"] - .1 and wide["quantity-hurdle"] < wide["quantity-median"], wide
    narrow = market(positive_poisson, 400)
    found = {m.name: scores(m, narrow) for m in quantity_opponents()}
    assert found["quantity-poisson"].log_score < found["quantity-median"].log_score - .05, found
    assert found["quantity-lightgbm"].crps < found["quantity-median"].crps and found["quantity-hurdle"].log_score < found["quantity-poisson"].log_score + .02

def test_the_poisson_recovers_a_known_price_effect():
    o = market(lambda rng, level, price: positive_poisson(rng, np.full(len(price), 2.), price), 800, J=2)
    m = QuantityPoisson().fit(o)
    # the price of the chosen against the mean of its two: a change by one in log price moves the ratio by a half, and the other's price is independent
    dear, cheap = (m.predict(o.replace(price=np.where([True, False], p, 1.))).expected_quantity()[:, 0].mean() for p in (1.5, .7))
    assert cheap > dear * 1.2
    level = m.predict(o).quantity_of(o.chosen) @ SUPPORT
    assert abs(level.mean() - o.quantity.mean()) < .03

def test_last_quantity_is_repeated_as_often_as_households_do():
    def sticky(rng, level, price):
        q = rng.integers(1, 7, len(level)).reshape(-1, 6)
        for t in range(1, 6): q[:, t] = np.where(rng.random(len(q)) < .6, q[:, t-1], q[:, t])
        return q.ravel()
    m = QuantityLast().fit(market(sticky, 400))
    assert abs(m.repeat - .6) < .05

def test_medians_are_the_empirical_ones():
    o = market(lambda rng, level, price: rng.choice([1, 2, 6], len(level), p=[.2, .5, .3]), 400)
    p = QuantityMedian().fit(o).predict(o).quantity[0, 0]
    assert (p.cumsum() >= .5).argmax() + 1 == 2 and np.allclose(p[[0, 1, 5]], [.2, .5, .3], atol=.03)

def test_no_rival_sees_the_pieces_it_predicts(occasions):
    test = occasions[occasions.customer % 3 == 0]
    last = test.past_stop == pd.Series(test.past_stop).groupby(test.customer).transform("max").to_numpy()
    q = test.log.occasion["quantity"].copy()
    q[test.rows[last]] += 5
    changed = with_profiles(test.with_columns(occasion=dict(quantity=q)))
    for m in quantity_opponents():
        m.fit(occasions[occasions.customer % 3 > 0])
        assert np.allclose(m.predict(test).quantity, m.predict(changed).quantity), m.name

def test_hazards_are_a_round_trip():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(LAST_QUESTION - 1))
    h = p / p[::-1].cumsum()[::-1]
    assert np.allclose(from_hazards(np.r_[h, 1.])[:LAST_QUESTION - 1], p)
    X, y = questions(np.zeros((1000, 1)), rng.integers(1, 21, 1000))
    assert y.sum() <= 1000 and X[:, 1].max() == LAST_QUESTION
