"Laws of the running tastes: Bayes' rule, nothing later, nothing at the same time, the same in any part."
from dataclasses import replace

import numpy as np
import pytest

from malles import tastes
from malles.facts import crowd_share
from malles.occasions import MeanField, Occasions, mean_field, with_popularity
from malles.predictions import Dirichlet
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate
from malles.tastes import AS_THEY_COME, RunningTastes, foreseen, guess, market_facts, own_tastes, update, with_facts, worth
from malles.texts import sample_market
from malles.metrics import cross_entropy


def market(seed=0, ordered=True, **kw):
    world = replace(sample_world(np.random.default_rng(seed), 5), priced=True, counted=True, **kw)
    occ, _ = simulate(world, 60, 9, rng=seed, ordered=ordered)
    return with_profiles(with_popularity(occ, mean_field(occ)))


@pytest.mark.parametrize("wide", [False, True])                                 # the root is taken of what is on offer, or of the wants
@pytest.mark.parametrize("far", [.2, 1.5])
@pytest.mark.parametrize("seed", range(6))
def test_an_update_climbs_to_the_posterior_mode(seed, far, wide):
    "Against a general optimiser over all products of the category, of which only some are on offer, and a leaning that goes with prices."
    from scipy.optimize import minimize
    rng = np.random.default_rng(seed)
    n, K, J = 4, 6, 4
    root = rng.standard_normal((n, K + 1, K + 1)) * rng.uniform(.3, 1.5)
    P = root @ root.transpose(0, 2, 1) + .05 * np.eye(K + 1)
    there = np.stack([rng.choice(K, J, replace=False) for _ in range(n)])
    v, x, y = rng.standard_normal((n, J)), far * rng.standard_normal((n, J)), rng.integers(0, J, n)
    Z = np.concatenate([np.eye(K)[there], x[..., None]], 2)                  # (n, J, K + 1)
    side = P @ Z.transpose(0, 2, 1)
    C = np.linalg.cholesky(P) if wide else np.linalg.solve(np.linalg.cholesky(Z @ side), side.transpose(0, 2, 1)).transpose(0, 2, 1)
    e, left = update(v, y, Z @ C if wide else np.linalg.cholesky(Z @ side))
    moved, var = np.einsum("nkj,nj->nk", C, e), P - C @ (np.eye(C.shape[2]) - left) @ C.transpose(0, 2, 1)
    for i in range(n):
        def loss(z):
            u = v[i] + Z[i] @ z
            return -(u[y[i]] - np.log(np.exp(u).sum())) + z @ np.linalg.solve(P[i], z) / 2
        best = minimize(loss, np.zeros(K + 1), tol=1e-10)
        assert loss(moved[i]) < best.fun + .02 * (loss(np.zeros(K + 1)) - best.fun) + 1e-4, i
        p = np.exp(v[i] + Z[i] @ best.x); p /= p.sum()
        exact = np.linalg.inv(np.linalg.inv(P[i]) + Z[i].T @ (np.diag(p) - np.outer(p, p)) @ Z[i])
        assert np.abs(var[i] - exact).max() < .1 * np.abs(exact).max()


@pytest.mark.parametrize("seed", range(6))
def test_independent_tastes_rise_where_bought_and_fall_elsewhere(seed):
    rng = np.random.default_rng(seed)
    n, K = 4, 5
    v, y, P = rng.standard_normal((n, K)), rng.integers(0, K, n), rng.uniform(.1, 1, (n, K))
    root = np.sqrt(P)
    e, left = update(v, y, root[:, :, None] * np.eye(K))
    new, var = root * e, P * left[:, range(K), range(K)]
    for i in range(n): assert (var[i] < P[i]).all() and new[i][y[i]] > 0 and (np.delete(new[i], y[i]) < 0).all()


def crowd_that(seed=0, households=400, visits=12, **kw):
    world = replace(sample_world(np.random.default_rng(seed), 4), priced=True, marked=True, **{**dict(drift=.2, shock=0., turnover=0., absent=0., empty=0., outside=-np.inf, habit=0., reference=0., ghosts=False), **kw})
    occ, truth = simulate(world, households, visits, rng=seed)
    half = occ[occ.customer < households // 2]
    occ = with_profiles(with_popularity(occ, mean_field(half), half))
    return occ[occ.customer < households // 2], occ[occ.customer >= households // 2], truth


def test_foreseen_is_the_mean_over_normal_tastes():
    "Against a million draws; for two alternatives against the integral; without doubt the softmax itself."
    rng = np.random.default_rng(0)
    v, A = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 4))
    S = A @ A.transpose(0, 2, 1)
    soft = lambda u: np.exp(u - u.max(-1, keepdims=True)) / np.exp(u - u.max(-1, keepdims=True)).sum(-1, keepdims=True)
    drawn = np.stack([soft(rng.multivariate_normal(m, c, 1_000_000)).mean(0) for m, c in zip(v, S)])
    assert np.abs(foreseen(v, A) - drawn).max() < .01 and np.abs(soft(v) - drawn).max() > .1
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    two = foreseen(np.array([[.7, 0.]]), np.array([[[2.], [0.]]]))[0, 0]
    assert abs(two - (weight / weight.sum() / (1 + np.exp(-.7 - 2 * nodes))).sum()) < .005
    assert np.allclose(foreseen(v, 0 * A), soft(v))


def test_doubt_makes_what_is_foreseen_less_sure_and_fades_with_the_past():
    "It is counted as far as the crowd's purchases say, and not at all while nobody is known."
    seen, strangers, _ = crowd_that(5, spread=2.5, price=0., price_spread=.1)
    facts = replace(market_facts(seen), weights=AS_THEY_COME[None], offset=np.zeros(4))
    p, q = (guess(with_facts(strangers, replace(facts, weights=np.where(np.arange(13) == 4, w, AS_THEY_COME)[None]))) for w in (1, 0))
    first, late = strangers.column("n_past") < 2, strangers.column("n_past") > 8
    assert (p.max(1) <= q.max(1) + .01).mean() > .95 and np.abs(p - q)[first].mean() > 2 * np.abs(p - q)[late].mean()
    seen, strangers, _ = crowd_that(8, spread=1.5, price=6., price_spread=.6)
    facts, true = market_facts(seen), strangers.alternative("true_probability", 0.)
    worth, without = (cross_entropy(true, guess(with_facts(strangers, replace(facts, weights=np.where(np.arange(13) == 4, w, facts.weights[0])[None])))).mean() for w in (facts.weights[0, 4], 0))
    assert facts.weights[0, 4] > .3 and worth < without and np.abs(market_facts(seen[seen.customer < 2]).weights[0, 4]) < .1


def test_the_weights_are_what_the_parts_were_worth():
    "Against a general optimiser; they lower the loss of strangers, and with few customers they stay where they were."
    from scipy.optimize import minimize
    from malles.tastes import GIVE, _terms
    seen, strangers, _ = crowd_that(3, spread=1.5, price=4., price_spread=.6)
    facts = market_facts(seen)
    *tastes, lean, _ = own_tastes(seen, facts)
    T = _terms(seen, *(np.where(seen.mask, x[seen._grid[0]], np.nan) for x in tastes), lean[seen.rows], facts.usual)
    onto = np.eye(4)[seen.product.astype(int)]
    base, i = np.log(crowd_share(seen)), np.arange(len(seen))
    def loss(z):
        u = base + T @ z[:13] + onto @ z[13:]
        return -(u[i, seen.chosen] - np.log(np.exp(u).sum(1))).sum() + (((z[:13] - AS_THEY_COME) / GIVE)**2).sum() / 2 + ((z[13:] / .3)**2).sum() / 2
    found = np.r_[facts.weights[0], facts.offset]
    assert loss(found) < minimize(loss, found, tol=1e-8).fun + 1e-3 and loss(found) < loss(np.r_[AS_THEY_COME, np.zeros(4)]) - 5
    as_they_come = replace(facts, weights=AS_THEY_COME[None], offset=np.zeros(4))
    true = strangers.alternative("true_probability", 0.)
    weighed, plain = (cross_entropy(true, guess(with_facts(strangers, f))).mean() for f in (facts, as_they_come))
    assert weighed < plain - .003
    two = market_facts(seen[seen.customer < 2])
    assert np.abs(two.weights[0] - AS_THEY_COME).max() < np.abs(facts.weights[0] - AS_THEY_COME).max()


def test_where_a_household_begins_is_learned_from_the_others(monkeypatch):
    "It foresees strangers better than the moments do, is a law that tastes can have, and stays near the moments where few are known."
    from malles.tastes import _before
    for seed in (3, 5, 8):
        seen, strangers, _ = crowd_that(seed, spread=1.5, price=6., price_spread=.6)
        true, facts = strangers.alternative("true_probability", 0.), market_facts(seen)
        with monkeypatch.context() as m:
            m.setattr(tastes, "PASSES", 0)
            by_moments = market_facts(seen)
        learned, moments = (cross_entropy(true, guess(with_facts(strangers, f))).mean() for f in (facts, by_moments))
        assert learned < moments, seed
        (mean, cov), (mean0, cov0) = facts.before[0], _before(replace(facts, before=None))[0]
        assert np.allclose(cov, cov.T) and np.linalg.eigvalsh(cov).min() > -1e-9 and (mean[:4] == 0).all() and np.abs(cov[:4, 4:]).max() > 0
        few = market_facts(seen[seen.customer < 2])
        step = lambda f, m: np.abs(f.before[0][0] - _before(replace(f, before=None))[0][0]).max()
        assert step(few, mean0) < step(facts, mean0) + .5
        assert np.allclose(few.before[0][1], _before(replace(few, before=None))[0][1], atol=.25 * np.abs(cov0).max())


def test_a_positive_leaning_has_the_mean_of_a_truncated_normal_law():
    from scipy.stats import truncnorm
    from malles.tastes import _positive
    mean, sd = np.array([-3., -.5, 0., .5, 4., 2., -1.]), np.array([.5, 1., 2., .3, 1., 0., 0.])
    exact = [truncnorm.mean(-m / s, np.inf, loc=m, scale=s) for m, s in zip(mean[:5], sd[:5])]
    assert np.allclose(_positive(mean, sd), exact + [2., 0.])


def test_a_household_that_follows_prices_is_told_from_one_that_likes_what_is_cheap():
    "The leaning towards low prices follows the household's true coefficient."
    seen, strangers, truth = crowd_that(5, households=300, visits=30, spread=1.2, price=4., price_spread=.8)
    read = with_facts(strangers, market_facts(seen))
    last = np.flatnonzero(np.r_[read.customer[1:] != read.customer[:-1], True])
    assert np.corrcoef(np.log(read.column("own_response")[last] + .05), np.log(truth.tastes[0].price[read.customer[last]]))[0, 1] > .5
    assert (read.column("own_response") >= 0).all() and (read.column("own_response_seen")[last] > 0).all()


def test_only_so_many_purchases_teach_the_weights_and_always_the_same():
    seen, _, _ = crowd_that(1)
    a, b, c = market_facts(seen, 300), market_facts(seen, 300), market_facts(seen)
    assert np.array_equal(a.weights, b.weights) and not np.array_equal(a.weights, c.weights) and np.array_equal(a.usual, c.usual)


def test_tastes_that_go_together_are_found():
    "Two kinds of products: who likes one tub likes the others. And without any pattern, none is found."
    rng = np.random.default_rng(0)
    base = replace(sample_world(np.random.default_rng(3), 6), priced=True, absent=0., turnover=0., empty=0., shock=0., devoted=0., inertia=0., habit=0., outside=-np.inf, appeal=np.zeros(6), price=.5)
    kinds = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    corr = {}
    for name, loadings, spread in (("kinds", 1.5 * kinds, .5), ("apart", np.zeros((6, 1)), 1.5)):
        occ, _ = simulate(replace(base, loadings=loadings, spread=spread), 600, 8, rng=1)
        (products, cov), = market_facts(with_profiles(with_popularity(occ, mean_field(occ)))).together
        assert (products == np.arange(6)).all() and np.linalg.eigvalsh(cov).min() > -1e-9
        sd = np.sqrt(np.diag(cov)); corr[name] = cov / np.outer(sd, sd)
    same = np.kron(np.eye(2), np.ones((3, 3))).astype(bool) & ~np.eye(6, dtype=bool)
    across = np.kron(1 - np.eye(2), np.ones((3, 3))).astype(bool)
    assert corr["kinds"][same].min() > .3 and corr["kinds"][across].max() < -.3
    assert np.abs(corr["apart"][~np.eye(6, dtype=bool)] + .2).max() < .25, "six independent tastes seen from their mean correlate by -1/5"


def test_one_purchase_tells_about_its_kind():
    world = replace(sample_world(np.random.default_rng(3), 6), priced=True, absent=0., turnover=0., empty=0., devoted=0., appeal=np.zeros(6), loadings=2. * np.eye(2)[[0, 0, 0, 1, 1, 1]], spread=.3)
    occ, _ = simulate(world, 300, 8, rng=1)
    occ = with_profiles(with_popularity(occ, mean_field(occ)))
    seen = with_facts(occ, market_facts(occ))
    second = np.flatnonzero(seen.column("n_past") == 1)
    kind = np.array([0, 0, 0, 1, 1, 1])
    first = seen.product[second - 1, seen.chosen[second - 1]].astype(int)
    taste = seen.alternative("taste")[second]
    others = (kind[seen.product[second].astype(int)] == kind[first][:, None]) & (seen.product[second] != first[:, None])
    assert (taste * others).sum(1).mean() / 2 > taste[kind[seen.product[second].astype(int)] != kind[first][:, None]].mean() + .2


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
    assert np.isnan(own_tastes(some, facts)[3]).sum() == (occ.customer % 7 != 3).sum()


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


def test_a_wide_shelf_is_read_through_the_wants(monkeypatch):
    "As many alternatives as there are wants, or more: the same guess, whichever root is taken."
    import malles.tastes as tastes
    seen, others, _ = crowd_that(households=60, visits=5)
    facts = market_facts(seen)
    (taste, doubt, *leant), follow = own_tastes(others, facts), tastes._follow
    monkeypatch.setattr(tastes, "_follow", lambda log, facts, place, width, widest, *rest: follow(log, facts, place, width, 10**6, *rest))
    wide, blurred, *also = own_tastes(others, facts)
    assert all(np.allclose(x, y, atol=1e-5, equal_nan=True) for x, y in zip((taste, *leant), (wide, *also)))
    assert np.nanmax(np.abs(doubt - blurred)) < .05 < np.nanmax(np.abs(doubt))            # the same integral by other points
