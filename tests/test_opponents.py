"Laws of the opponents: probabilities whatever the data lack, no peeking, published methods checked against brute force and xlogit."
import warnings
import numpy as np, pandas as pd, pytest
from malles.boosting import LightGBM, LightGBMMonotone
from malles.classes import LatentClass, fit_classes
from malles.covariates import ready, relative_price
from malles.dependence import order_value, shuffle_past
from malles.logit import fit_logit, log_softmax
from malles.logits import Logit, LoyaltyLogit, Markov
from malles.mixed import choice_probabilities, fit_mixed
from malles.occasions import Occasions
from malles.opponents import NAMES, opponents
from malles.predictions import ChoiceModel
from malles.posterior import MixedLogit, given_past, taste_design
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate
from malles.transfer import SimLogit, TransferLogit
from malles.tuning import inner_folds, log_losses

def market(seed=0, households=60, visits=6, J=4, categories=1, ordered=True, ragged=True, price=True, flip=False):
    "A plain random-utility market with tastes and habits, made here so that it depends on no other room."
    rng = np.random.default_rng(seed)
    n = households * visits * categories
    who, cat = np.repeat(np.arange(households), visits * categories), np.tile(np.repeat(np.arange(categories), visits), households)
    time = np.tile(np.arange(visits), households * categories)
    taste = rng.normal(0, 1, (households, categories, J)) + np.linspace(.5, -.5, J)
    p, display = np.exp(rng.normal(0, .2, (n, J))), (rng.random((n, J)) < .15) * 1.
    mask = rng.random((n, J)) < (.85 if ragged else 2)
    mask[np.arange(n), rng.integers(0, J, n)] = True
    chosen, last = np.zeros(n, int), np.full((households, categories), -1)
    noise = rng.gumbel(size=(n, J))
    for i in range(n):
        u = taste[who[i], cat[i]] - 3 * np.log(p[i]) + .8 * display[i] + .7 * (np.arange(J) == last[who[i], cat[i]]) + noise[i]
        chosen[i] = last[who[i], cat[i]] = np.where(mask[i], u, -np.inf).argmax()
    columns = np.arange(J)[::-1] if flip else np.arange(J)           # the order of the slots
    mask, product = mask[:, columns], np.broadcast_to(cat[:, None] * J + columns, (n, J))
    position = (mask.cumsum(1) - 1)[np.arange(n), columns[chosen] if flip else chosen]
    products = pd.DataFrame(dict(product_id=[f"c{c}p{j}" for c in range(categories) for j in range(J)], category=[f"cat{c}" for c in range(categories) for _ in range(J)]))
    alternative = dict(price=(p if price else p * np.nan)[:, columns][mask], display=display[:, columns][mask])
    return Occasions.from_arrays(f"made{seed}", [f"h{i}" for i in range(households)], [f"cat{c}" for c in range(categories)], products, who, cat, time,
        np.r_[0, np.cumsum(mask.sum(1))], product[mask], position, rng.integers(1, 4, n), alternative, ordered=ordered)

@pytest.fixture(scope="module")
def split():
    o = market(households=120)
    test = o.customer % 4 == 0
    o = ready(o, ~test)
    return o[~test], o[test]

@pytest.fixture(scope="module")
def fitted(split):
    return [m.fit(split[0]) for m in opponents(others=[ready(market(9, 50, J=3))])]

def quick(make):
    "An opponent with one setting, where the tuning is not what is tested."
    model = make()
    if isinstance(model, LightGBM): model.settings, model.longest = [dict(leaves=8, rounds=60)], {8: 60}
    else: model.settings = model.settings[:1]
    return model

def proper(p, o):
    assert p.shape == o.mask.shape and np.isfinite(p).all() and (p >= 0).all()
    assert np.allclose(p.sum(1), 1, atol=1e-6) and (p[~o.mask] == 0).all()

def test_all_are_there_by_name(fitted): assert tuple(m.name for m in fitted) == NAMES and all(isinstance(m, ChoiceModel) for m in fitted)

def test_better_than_chance_and_own_past_helps(split, fitted):
    loss = {m.name: log_losses(m.predict(split[1]).choice, split[1].chosen).mean() for m in fitted}
    chance = np.log(split[1].sizes).mean()
    assert max(loss.values()) < chance, loss
    assert max(loss[k] for k in ("loyalty-logit", "mixed-logit", "latent-class", "lightgbm-monotone", "sim-logit")) < loss["popularity"], loss
    assert loss["loyalty-logit"] < loss["logit"] < loss["popularity"], loss

def test_probabilities_whatever_the_data_lack(split, fitted):
    _, test = split
    rng = np.random.default_rng(0)
    holes = test.replace(price=np.where(rng.random(test.mask.shape) < .4, np.nan, test.price))
    silly = test.replace(price=np.where(rng.random(test.mask.shape) < .3, rng.choice([0., -1., 1e9, 1e-9, np.inf]), test.price))
    elsewhere = ready(market(5, 12, J=7, categories=2))
    for m in fitted:
        for o in (test, holes, silly, test.without("price"), test.without("price", "display"), test.without("popularity"), test[:1], test[:0], elsewhere):
            if len(o): proper(m.predict(o).choice, o)
            else: assert m.predict(o).choice.shape[0] == 0

@pytest.mark.parametrize("kw", [dict(price=False), dict(ordered=False), dict(households=3, visits=1), dict(households=25, categories=2), dict(J=1), dict(J=2, ragged=False)], ids=str)
def test_every_opponent_can_be_fitted_on_odd_markets(kw):
    o = ready(market(3, **{"households": 25, "visits": 4, **kw}))
    other = [ready(market(8, 20))]
    for m in opponents(ordered=o.ordered, others=other): proper(m.fit(o).predict(o).choice, o)

def test_errors_teach():
    o = ready(market(3, 5, ordered=False))
    with pytest.raises(ValueError, match="order of purchases"): Markov().fit(o)
    with pytest.raises(ValueError, match="no order"): shuffle_past(o)
    with pytest.raises(ValueError, match="at least one purchase"): Logit().fit(o[:0])
    with pytest.raises(ValueError, match="other market"): TransferLogit().fit([])
    with pytest.raises(ValueError, match="unknown opponents"): opponents(only=["logti"])

def test_the_grid_is_kept_and_one_setting_is_marked(fitted):
    for m in fitted:
        if m.name in NAMES[3:11]: assert "log_loss" in m.grid and (m.grid.picked == "*").sum() == 1, m.name

def test_same_data_same_answer(split):
    for make in (LoyaltyLogit, MixedLogit, LatentClass, LightGBMMonotone):
        a, b = (quick(make).fit(split[0]).predict(split[1]).choice for _ in range(2))
        assert (a == b).all(), make.name

def test_the_order_of_the_slots_does_not_matter():
    a, b = (ready(market(4, 60, flip=f)) for f in (False, True))
    for make in (Logit, LoyaltyLogit, MixedLogit, LightGBMMonotone):
        p, q = (quick(make).fit(o).predict(o).choice for o in (a, b))
        of = lambda p, o: {(i, j): v for i, (row, mask, v_) in enumerate(zip(o.product, o.mask, p)) for j, v in zip(row[mask], v_[mask])}
        p, q = of(p, a), of(q, b)
        assert max(abs(p[k] - q[k]) for k in p) < .02, make.name

def test_no_opponent_sees_the_choice_it_predicts(split, fitted):
    _, test = split
    last = test.past_stop == pd.Series(test.past_stop).groupby(test.customer).transform("max").to_numpy()
    assert last.sum() == len(np.unique(test.customer))
    other = test.log.occasion["chosen"].copy()
    other[test.rows[last]] = (test.chosen[last] + 1) % test.sizes[last]
    changed = with_profiles(test.with_columns(occasion=dict(chosen=other)))
    for m in fitted: assert np.allclose(m.predict(test).choice, m.predict(changed).choice, atol=1e-6), m.name

def test_price_laws(split, fitted):
    _, test = split
    models = [m for m in fitted if m.name in ("logit", "loyalty-logit", "latent-class", "lightgbm-monotone")]
    lognormal = MixedLogit()
    lognormal.settings = [dict(tastes="correlated", price="lognormal")]
    grid = np.quantile(test.price[test.mask], np.linspace(.05, .95, 9))
    for m in models + [lognormal.fit(split[0])]:
        curve = np.stack([m.predict(test.replace(price=np.where(np.arange(test.mask.shape[1]) == 0, g, test.price))).choice[:, 0] for g in grid], 1)
        assert (np.diff(curve, axis=1) < 1e-6).all(), m.name

def test_training_is_blind_to_who_was_taken_out_of_the_shares(split):
    train, test = split
    for make in (LightGBM, Logit):
        a = quick(make).fit(train).predict(test).choice
        b = quick(make).fit(train.with_columns(alternative=dict(popularity=np.random.default_rng(0).random(len(train.log.alternative["product"]))))).predict(test).choice
        assert np.allclose(a, b), make.name

def test_prices_are_free_of_the_currency(split):
    train, test = split
    for make in (LoyaltyLogit, MixedLogit):
        model = quick(make)
        yen = [o.with_columns(alternative=dict(price=o.log.alternative["price"] * 150)) for o in split]
        assert np.allclose(model.fit(train).predict(test).choice, model.fit(yen[0]).predict(yen[1]).choice, atol=1e-3)
    assert np.allclose(relative_price(test).sum(1, where=test.mask), 0)

# methods against brute force
def test_given_past_equals_brute_force(split):
    _, test = split
    design = taste_design(["c0p0", "c0p1"], ("log price", "last"))
    tastes, prior = np.random.default_rng(0).normal(size=(7, 4)), np.log(np.arange(1, 8) / 28)
    fast, w = given_past(test, design, tastes, prior)
    small, w_small = given_past(test, design, tastes, prior, budget=300)
    assert np.allclose(fast, small, atol=1e-5) and np.allclose(w, w_small, atol=1e-5)
    for i in range(0, len(test), 7):
        past = test.past(i)
        ll = prior.copy()
        if len(past):
            P = choice_probabilities(design(past), past.mask, tastes)
            ll = ll + np.log(P[np.arange(len(past)), past.chosen]).sum(0)
        weight = np.exp(ll - ll.max()); weight /= weight.sum()
        here = test[[i]]
        p = (choice_probabilities(design(here), here.mask, tastes)[0] * weight).sum(1)
        assert np.allclose(w[i], weight, atol=1e-4) and np.allclose(fast[i, :len(p)], p, atol=1e-4)

def test_one_class_is_a_logit(split):
    train, _ = split
    X = taste_design(["c0p0", "c0p1", "c0p2"], ("log price", "display"))(train)
    plain = fit_logit(X, train.mask, train.chosen, ridge=1.)
    assert np.allclose(fit_classes(X, train.mask, train.chosen, train.customer, 1, enough=1e-9).coefficient[0], plain.coefficient, atol=.02)

def panel(H=400, T=8, J=3, seed=0):
    rng = np.random.default_rng(seed)
    beta = np.array([-1., .5]) + rng.normal(size=(H, 2)) * [.8, 1.2]
    X = rng.normal(size=(H * T, J, 2))
    u = np.einsum("njk,nk->nj", X, beta.repeat(T, 0)) + rng.gumbel(size=(H * T, J))
    return X, np.ones((H * T, J), bool), u.argmax(1), np.repeat(np.arange(H), T)

def test_mixed_logit_agrees_with_xlogit():
    xlogit = pytest.importorskip("xlogit")
    X, mask, chosen, who = panel()
    ours = fit_mixed(X, mask, chosen, who, correlated=False, ridge=1e-6, R=1024, steps=200)
    n, J, _ = X.shape
    model = xlogit.MixedLogit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X=X.reshape(n * J, 2), y=(np.arange(J) == chosen[:, None]).ravel(), varnames=["a", "b"], ids=np.repeat(np.arange(n), J), panels=np.repeat(who, J),
                  alts=np.tile(np.arange(J), n), randvars={"a": "n", "b": "n"}, n_draws=1000, halton=True, verbose=0)
    theirs = dict(zip(model.coeff_names, model.coeff_))
    assert abs(ours.loglik - model.loglikelihood) < 1.5, (ours.loglik, model.loglikelihood)
    assert np.allclose(ours.mean, [theirs["a"], theirs["b"]], atol=.04), (ours.mean, theirs)
    assert np.allclose(np.abs(np.diag(ours.root)), [abs(theirs["sd.a"]), abs(theirs["sd.b"])], atol=.06), (ours.root, theirs)

def test_mixed_logit_recovers_known_tastes():
    fit = fit_mixed(*panel(1000, 8, seed=2), correlated=True, ridge=1e-6, R=256, steps=100)
    assert np.allclose(fit.mean, [-1, .5], atol=.12) and np.allclose(np.sqrt(np.diag(fit.root @ fit.root.T)), [.8, 1.2], atol=.15)

def test_markov_counts_what_followed():
    n = 6
    chain = Occasions.from_arrays("chain", ["h"], ["tea"], pd.DataFrame(dict(product_id=["A", "B"], category="tea")), np.zeros(n), np.zeros(n), np.arange(n),
        np.arange(0, 2*n + 1, 2), np.tile([0, 1], n), np.array([0, 0, 1, 0, 0, 1]), np.ones(n))
    model = Markov()
    model.minimum, model.settings = 1, [dict(strength=1.)]
    o = ready(chain)
    p = model.fit(o).predict(o.without("popularity")).choice          # without shares the crowd is even
    assert np.allclose(p[1], [(2 + .5) / 5, (2 + .5) / 5]) and np.allclose(p[3], [(1 + .5) / 2, .25]) and np.allclose(p[0], .5)

# travelling and the order of the past
def test_transfer_takes_markets_of_any_shape():
    markets = [ready(market(1, 30, J=3)), ready(market(2, 30, J=6, ordered=False)), ready(market(3, 30, price=False)).without("display"), market(4, 5)[:0]]
    model = TransferLogit().fit(markets)
    o = ready(market(7, 40, J=5))
    proper(model.predict(o).choice, o)
    assert log_losses(model.predict(o).choice, o.chosen).mean() < np.log(o.sizes).mean() and model.markets == 3
    assert np.allclose(TransferLogit(markets).fit(o).predict(o).choice, model.predict(o).choice)
    assert dict(zip(model.pool.names, model.pool.coefficient))["log price"] < -1

def test_sim_logit_looks_at_no_record():
    a, b = SimLogit().fit(ready(market(1, 5))), SimLogit().fit(None)
    assert (a.pool.coefficient == b.pool.coefficient).all()

def test_shuffling_keeps_the_content():
    o = ready(market(6, 30, visits=7))
    s, again = shuffle_past(o, 1), shuffle_past(o, 1)
    assert (s.alternative("loyalty")[o.mask] == again.alternative("loyalty")[o.mask]).all()
    short = o.past_stop - o.past_start < 2
    for k in ("loyalty", "last"): assert np.allclose(s.alternative(k)[short][o.mask[short]], o.alternative(k)[short][o.mask[short]], atol=1e-6), k
    assert not np.allclose(s.alternative("last")[o.mask], o.alternative("last")[o.mask])
    mean = np.mean([shuffle_past(o, k).alternative("last", 0) for k in range(300)], 0)
    assert np.abs(mean - o.alternative("own_share", 0))[~short].max() < .15           # a random one of the past

def test_order_value_is_nothing_for_a_model_that_ignores_order():
    o = ready(market(6, 60))
    v = order_value(Logit, o, o.customer % 3 == 0, shuffles=1)
    assert abs(v.gain) < 1e-9 and v.n > 0

def test_inner_folds_keep_customers_whole():
    o = market(2, 31)
    f = inner_folds(o, 3)
    assert all(len(np.unique(f[o.customer == c])) == 1 for c in range(31)) and np.bincount(f[::6]).min() >= 10


def test_a_household_is_foreseen_alike_among_many_and_alone():
    "Its likelihood is a difference of sums over everybody; thousands of others must not round it away."
    rng = np.random.default_rng(0)
    market = ready(simulate(sample_world(rng, 5), 900, 12, rng=0)[0])
    tastes = rng.normal(size=(64, 1)) * 2
    design = lambda o: np.nan_to_num(np.log(o.price.astype(float)))[..., None].astype(np.float32)
    among, weights = given_past(market, design, tastes.astype(np.float32), np.zeros(64))
    late = market[market.customer == market.customer.max()]
    alone, own = given_past(late, design, tastes.astype(np.float32), np.zeros(64))
    at = market.customer == market.customer.max()
    assert np.abs(among[at] - alone).max() < 2e-6 and np.abs(weights[at] - own).max() < 2e-6
