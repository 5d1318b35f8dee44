"Laws of the simulated shoppers."
from dataclasses import replace

import numpy as np
import pytest

from malles.shoppers import pieces_probability, shop, simulate, simulate_market
from malles.texts import try_prices
from malles.worlds import TRAITS, sample_prices, sample_tastes, sample_world


@pytest.mark.parametrize("seed", range(25))
def test_every_world_gives_lawful_records(seed):
    rng = np.random.default_rng(seed)
    world = sample_world(rng)
    assert 2 <= world.J <= 12 and world.price > 0
    occ, truth = simulate(world, 30, rng=rng)
    p = occ.alternative("true_probability", 0.)
    assert np.allclose(p.sum(1), 1) and (p >= 0).all()
    assert (truth.tastes[0].price > 0).all()
    assert occ.sizes.min() >= 2 and (occ.chosen >= 0).all() and (occ.chosen < occ.sizes).all()
    assert (p[np.arange(len(occ)), occ.chosen] > 0).all()
    q = occ.quantity
    assert np.isnan(q).all() if not world.counted else ((q >= 1) & (q <= 20) & (q == q.round())).all()
    assert np.isnan(occ.price[occ.mask]).all() != world.priced
    if world.outside == -np.inf: assert len(np.unique(occ.customer)) == 30  # elsewhere a visit may end without a purchase
    assert len(occ) <= 30 * 40


def test_same_seed_same_market():
    a, b = (simulate(sample_world(np.random.default_rng(3)), 20, rng=5)[0] for _ in range(2))
    assert (a.chosen == b.chosen).all() and np.array_equal(a.price, b.price, equal_nan=True)


def test_dearer_is_bought_less_by_everybody():
    rng = np.random.default_rng(0)
    world = replace(sample_world(rng, 5), reference=0., absent=0.)
    tastes = sample_tastes(world, rng.standard_normal((200, len(TRAITS))), rng)
    met = {k: v[:1, :1].repeat(200, 0) for k, v in sample_prices(world, rng).items()}
    dear = met["log_price"].copy()
    dear[:, :, 2] += .1
    p = shop(world, tastes, met["log_price"], met, rng)["probability"][:, 0]
    q = shop(world, tastes, dear, met, rng)["probability"][:, 0]
    assert (q[:, 2] <= p[:, 2]).all() and (np.delete(q, 2, 1) >= np.delete(p, 2, 1)).all()


def test_households_are_shared_by_categories():
    rng = np.random.default_rng(1)
    worlds = [replace(sample_world(rng, 4), price_spread=.8, priced=True) for _ in range(2)]
    occ, truth = simulate_market(worlds, rng.standard_normal((2000, len(TRAITS))), rng, occasions_each=1)
    r = np.corrcoef(*[np.log(t.price) for t in truth.tastes])[0, 1]
    assert .3 < r < .7, r
    assert len(occ.categories) == 2 and len(occ) == 4000


def test_order_is_forgotten_where_it_means_nothing():
    world = replace(sample_world(np.random.default_rng(2), 4), priced=True)
    occ, _ = simulate(world, 50, 10, rng=3, ordered=False)
    assert not occ.ordered and not (np.diff(occ.time.reshape(50, 10), axis=1) >= 0).all()


def test_pieces_are_drawn_from_what_is_said():
    rng = np.random.default_rng(4)
    world = replace(sample_world(rng, 3), counted=True, pieces=.3, pieces_spread=.5, pieces_habit=.4, outside=-np.inf)
    occ, _ = simulate(world, 4000, 3, rng=5)
    p = pieces_probability(*(occ.column(f"true_{k}") for k in ("usual", "extra", "habit")))
    assert np.allclose(p.sum(1), 1) and (p >= 0).all()
    came = np.bincount(occ.quantity.astype(int) - 1, minlength=20)
    spread = np.sqrt((p * (1 - p)).sum(0)) + 1
    assert (np.abs(came - p.sum(0)) < 4 * spread).all(), (came, p.sum(0).round())


def test_what_is_sold_out_or_gone_is_never_chosen_and_what_is_not_yet_there_has_no_price():
    rng = np.random.default_rng(6)
    world = replace(sample_world(rng, 6), priced=True, empty=.3, turnover=1., ghosts=True, gaps=0., absent=0., outside=-np.inf)
    occ, _ = simulate(world, 300, 8, rng=7)
    p, unknown = occ.alternative("true_probability", 0.), np.isnan(occ.price) & occ.mask
    assert (p[np.arange(len(occ)), occ.chosen] > 0).all() and unknown.any() and (p[unknown] == 0).all()
    assert (p[occ.mask] == 0).mean() > .25


def test_dear_visits_and_full_cupboards_end_without_a_purchase():
    rng = np.random.default_rng(8)
    world = replace(sample_world(rng, 4), price=3., outside=0., stock=0., reference=0., shock=0., empty=0., turnover=0., absent=0.)
    tastes = sample_tastes(world, rng.standard_normal((3000, len(TRAITS))), rng)
    prices = np.broadcast_to(world.base, (3000, 6, 4))
    met = dict(discount=np.zeros((3000, 6, 4)), display=np.zeros((3000, 6, 4)), feature=np.zeros((3000, 6, 4)))
    share = lambda world, prices: shop(world, tastes, prices, met, np.random.default_rng(9))["bought"].mean()
    usual = share(world, prices)
    assert share(world, prices + .3) < usual - .05 and share(replace(world, stock=1.), prices) < usual - .05
    assert shop(replace(world, outside=-np.inf), tastes, prices, met, rng)["bought"].all()


def test_what_is_taken_at_tried_prices_is_drawn_from_the_moved_probabilities():
    rng = np.random.default_rng(8)
    z = []
    for k in range(40):
        world = replace(sample_world(rng), priced=True, counted=True, gaps=0.)
        occ, _ = simulate(world, 100, 3, rng=k)
        tried, again = (try_prices(occ, np.random.default_rng(k)) for _ in range(2))
        assert (tried.chosen == again.chosen).all() and (tried.quantity == again.quantity).all() and np.array_equal(tried.price, again.price, equal_nan=True)
        at = (np.abs(tried.price - occ.price) > 0).any(1)
        assert at.any() and not (at[:-1] & (tried.past_start[1:] == tried.past_start[:-1])).any()           # last visits only
        p, n, c = tried.alternative("true_probability", 0.), np.arange(len(tried)), tried.chosen
        u = np.where(tried.mask & (p > 0), tried.alternative("true_utility"), -np.inf)
        assert np.allclose(np.exp(u - np.logaddexp.reduce(u, 1, keepdims=True)), p) and (p[n, c] > 0).all()
        assert np.allclose(tried.column("true_extra"), tried.alternative("true_extra")[n, c])
        hit, change = np.eye(p.shape[1])[c], np.where(p > 0, np.log(np.where(p > 0, p, 1) / np.where(p > 0, occ.alternative("true_probability", 1.), 1)), 0)
        pieces = pieces_probability(*(tried.column(f"true_{k}") for k in ("usual", "extra", "habit")))
        mean = pieces @ np.arange(1, 21)
        z.append([((hit - p) * change)[at].sum(), ((p * change**2).sum(1) - (p * change).sum(1)**2)[at].sum(), (tried.quantity - mean)[at].sum(), (pieces @ np.arange(1, 21)**2 - mean**2)[at].sum()])
    choice, choice_var, pieces, pieces_var = np.sum(z, 0)
    assert choice_var > 100 and abs(choice) < 4 * choice_var**.5, (choice, choice_var**.5)
    assert abs(pieces) < 4 * pieces_var**.5, (pieces, pieces_var**.5)
