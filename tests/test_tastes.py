"Laws of the running tastes: Bayes' rule, nothing later, nothing at the same time, the same in any part."
from dataclasses import replace

import numpy as np
import pytest

from malles.facts import crowd_share, market_facts
from malles.occasions import MeanField, Occasions, mean_field, with_popularity
from malles.predictions import Dirichlet
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate
from malles.tastes import RunningTastes, guess, own_tastes, update, with_facts, worth
from malles.texts import sample_market
from malles.metrics import cross_entropy


def market(seed=0, ordered=True, **kw):
    world = replace(sample_world(np.random.default_rng(seed), 5), priced=True, counted=True, **kw)
    occ, _ = simulate(world, 60, 9, rng=seed, ordered=ordered)
    return with_profiles(with_popularity(occ, mean_field(occ)))


@pytest.mark.parametrize("seed", range(6))
def test_an_update_climbs_to_the_posterior_mode(seed):
    from scipy.optimize import minimize
    rng = np.random.default_rng(seed)
    n, K = 4, 5
    v, x, y = rng.standard_normal((n, K)), .2 * rng.standard_normal((n, K)), rng.integers(0, K, n)
    b, P, r, Q = np.zeros((n, K)), rng.uniform(.1, 1, (n, K)), np.full(n, 2.), np.full(n, .5)
    new, var, more, left = update(v, x, y, b, P, r, Q)
    for i in range(n):
        def loss(z):
            u = v[i] + z[:K] + (z[K] - r[i]) * x[i]
            return -(u[y[i]] - np.log(np.exp(u).sum())) + (z[:K]**2 / (2 * P[i])).sum() + (z[K] - r[i])**2 / (2 * Q[i])
        best = minimize(loss, np.r_[b[i], r[i]], tol=1e-10)
        assert loss(np.r_[new[i], more[i]]) < best.fun + .02 * (loss(np.r_[b[i], r[i]]) - best.fun), i
        assert (var[i] < P[i]).all() and left[i] <= Q[i] and new[i][y[i]] > 0 and (np.delete(new[i], y[i]) < 0).all()


def test_nothing_later_and_nothing_at_the_same_time_is_seen():
    occ = market()
    facts, log = market_facts(occ), occ.log
    a = with_facts(occ, facts)
    chosen, at = log.occasion["chosen"].copy(), 4
    later = (occ.rows - occ.past_start) >= at
    chosen[later] = (chosen[later] + 1) % occ.sizes[later]
    b = with_facts(with_profiles(Occasions(replace(log, occasion={**log.occasion, "chosen": chosen}))), facts)
    early = (occ.rows - occ.past_start) <= at
    assert np.allclose(guess(a)[early], guess(b)[early]) and not np.allclose(guess(a)[~early], guess(b)[~early])
    time = occ.time.copy()
    second = np.flatnonzero(occ.rows - occ.past_start == 1)
    time[second] = time[second - 1]                                    # the first two visits at one time
    def tied(chosen):
        o = Occasions.from_arrays("tied", log.customers, log.categories, log.products, log.occasion["customer"], log.occasion["category"], time, log.offsets,
                                  log.alternative["product"], chosen, log.occasion["quantity"], {"price": log.alternative["price"], "popularity": log.alternative["popularity"]})
        return guess(with_facts(with_profiles(o), facts))
    other = log.occasion["chosen"].copy()
    other[second - 1] = (other[second - 1] + 1) % occ.sizes[second - 1]
    p, q = tied(log.occasion["chosen"]), tied(other)
    assert np.allclose(p[second], q[second]) and not np.allclose(p[second + 1], q[second + 1])


def test_households_are_followed_alike_alone_in_parts_and_without_the_others():
    occ = market()
    facts = market_facts(occ)
    whole, parts = own_tastes(occ, facts), own_tastes(occ, facts, room=60)
    for a, b in zip(whole, parts): assert np.array_equal(a, b)
    some = occ[occ.customer % 7 == 3]
    assert np.allclose(guess(with_facts(some, facts)), guess(with_facts(occ, facts))[occ.customer % 7 == 3])
    assert np.isnan(own_tastes(some, facts)[1]).sum() == (occ.customer % 7 != 3).sum()


def test_a_dearer_product_is_worth_less_and_others_as_much():
    occ = market(price=4., drift=.1)
    seen = with_facts(occ, market_facts(occ))
    dear = seen.replace(price=np.where(np.arange(5) == 1, 1.2, 1) * seen.price)
    a, b = worth(seen), worth(dear)
    lean = seen.column("own_response")
    there = seen.mask[:, 1]
    assert np.allclose((b - a)[there, 1], -lean[there] * np.log(1.2)) and np.allclose(np.delete(b - a, 1, 1)[np.delete(seen.mask, 1, 1)], 0)


def test_it_beats_own_past_and_shares_on_markets_it_was_not_tuned_on():
    mine, theirs = [], []
    for k in range(30):
        o = sample_market(np.random.default_rng([77, k]))
        if "taste" not in o.log.alternative or not len(o): continue
        true = o.alternative("true_probability", 0.)
        mine.append(cross_entropy(true, guess(o))); theirs.append(cross_entropy(true, Dirichlet().predict(o).choice))
    assert np.concatenate(mine).mean() < np.concatenate(theirs).mean() - .05


def test_unordered_unpriced_empty_and_unfitted():
    occ = market(ordered=False)
    p = RunningTastes().fit(occ).predict(occ).choice
    assert np.allclose(p.sum(1), 1) and (p[~occ.mask] == 0).all()
    blind = occ.without("price", "discount", "popularity")
    assert np.allclose(RunningTastes().fit(blind).predict(blind).choice.sum(1), 1)
    assert RunningTastes().fit(occ).predict(occ[:0]).choice.shape[0] == 0
    with pytest.raises(ValueError, match="call fit"): RunningTastes().predict(occ)


def announced(occ, share): return MeanField(np.asarray(share, float), *np.full((2, len(share)), np.nan), np.zeros(len(share)))


def test_announced_shares_are_taken_as_they_are_and_win():
    occ = market(absent=0., turnover=0., ghosts=False)
    mu, whatif = announced(occ, [.6, .3, .1, 0, 0]), occ.replace(popularity=[.1, .1, .1, .1, .6])
    for facts in (False, True):
        seen = with_popularity(whatif, mu)
        if facts: seen = with_facts(seen, market_facts(occ))          # whose count of purchases blurs counted shares
        j = np.where(seen.mask, seen.product.astype(int), 0)
        s, given = crowd_share(seen), np.where(seen.mask, mu.share[j], 0)
        assert np.allclose(s, given / given.sum(1, keepdims=True), atol=1e-6) and np.isfinite(worth(seen)[seen.mask]).all()
    counted = crowd_share(with_popularity(occ, mean_field(occ)))
    assert (counted[occ.mask] > 0).all() and np.allclose(counted, crowd_share(occ))
    guessed = RunningTastes().fit(occ)
    assert np.allclose(guessed.predict(whatif, mu).choice, guessed.predict(occ, mu).choice)


def test_unknown_shares_share_what_the_known_leave():
    occ = market(absent=0., turnover=0., ghosts=False)
    row = lambda seen: [{int(p): float(v) for p, v, m in zip(*x) if m} for x in zip(seen.product, crowd_share(seen), seen.mask)]
    for said in row(with_popularity(occ, announced(occ, [.5, .2, np.nan, np.nan, .1]))): assert np.allclose([said[k] for k in range(5)], [.5, .2, .1, .1, .1], atol=1e-6)
    whatif = occ.replace(popularity=[.5, .2, np.nan, np.nan, .1])
    s = crowd_share(whatif)
    assert np.allclose(s, (np.array([.5, .2, .1, .1, .1]) * 100 + .5) / 102.5)
    assert np.allclose(crowd_share(occ.replace(popularity=np.nan)), .2) and np.allclose(crowd_share(with_popularity(occ, announced(occ, [np.nan] * 5))), .2)


def test_facts_of_another_log_are_refused():
    occ, facts = market(), market_facts(market(1))
    with_facts(occ, facts)                                              # as many products and the same categories: nothing tells them apart
    for other in (replace(facts, usual=facts.usual[:-1]), replace(facts, categories=np.array(["tea"], object))):
        with pytest.raises(ValueError, match=r"another log, with \d products in 1 categories \(.*5 products in 1 categories \(category0\)"): with_facts(occ, other)
    fitted = RunningTastes().fit(market())
    world = replace(sample_world(np.random.default_rng(0), 4), priced=True)
    with pytest.raises(ValueError, match="another log"): fitted.predict(with_profiles(simulate(world, 5, 3, rng=0)[0]))
