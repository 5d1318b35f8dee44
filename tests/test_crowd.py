"The mean field: known states are found, what does not settle is never called settled, and what is counted adds up."
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from malles.crowd import Field, SocialLogit, aggregate, equilibria, settle
from malles.covariates import ready
from malles.logits import LoyaltyLogit
from malles.occasions import MeanField, mean_field
from malles.predictions import Dirichlet, Predictions, SUPPORT, softmax
from malles.shoppers import sample_world, simulate, simulate_market


def crowd_of(J, households=3, occasions=1):
    world = replace(sample_world(np.random.default_rng(1), J), absent=0., turnover=0., empty=0., outside=-np.inf, counted=True)
    return simulate(world, households, occasions, rng=1)[0]


def binary_states(h, social):
    "Roots of m = tanh((h + J m) / 2), by sign changes on a fine grid."
    f = lambda m: np.tanh((h + social * m) / 2) - m
    grid = np.linspace(-1, 1, 4001)
    return [brentq(f, a, b, xtol=1e-14) for a, b in zip(grid[:-1], grid[1:]) if f(a) * f(b) < 0]


@pytest.mark.parametrize("h, social", [(.1, 1.), (.1, 4.), (-.4, 3.), (0.03, 6.), (.5, -3.), (1., -6.)])
def test_two_alternatives(h, social):
    two, known = crowd_of(2), np.array(binary_states(h, social))
    slope = social / 2 * (1 - known**2)
    found = equilibria(SocialLogit([h, 0], social), two, step=.3)
    m = 2 * found.iloc[:, 0].to_numpy() - 1
    assert len(found) == len(known) and (np.abs(np.sort(m) - known) / 2 < 1e-6 / np.minimum(np.abs(1 - slope), 1)).all()   # a residual says less where the curve runs along the diagonal
    assert (found.stable.to_numpy()[np.argsort(m)] == (slope < 1)).all()
    assert found.basin.notna().equals(found.stable) and np.isclose(found.basin.sum(), 1)
    for start in (.9, .1):
        end = settle(SocialLogit([h, 0], social), two, MeanField(np.array([start, 1 - start]), None, None, np.zeros(2)), step=.3)
        here = 2 * end.mu.share[0] - 1
        assert end.settled and np.abs(here - known[slope < 1]).min() / 2 < 1e-6, "the loop did not end in a state that holds a crowd"
        assert end.expansion > 1 or abs(end.rate) < 1


@pytest.mark.parametrize("K", [3, 4])
def test_as_many_states_as_there_are_coalitions(K):
    "Alike alternatives and strong interaction: one state for each set of alternatives that share the crowd (2^K - 1), of which those of one alternative are stable."
    found = equilibria(SocialLogit(np.zeros(K), 8.), crowd_of(K))
    s = found.iloc[:, :K].to_numpy()
    F = lambda s: softmax(8 * s)
    assert np.abs(F(s) - s).max() < 1e-5 and np.allclose(s.sum(1), 1)
    assert len({tuple(np.round(x, 2)) for x in s}) == len(found) == 2**K - 1
    assert found.stable.sum() == K and (s[found.stable].max(1) > .9).all()


def test_the_weakest_interaction_has_one_state_and_is_a_contraction():
    for K in (2, 3, 5):
        appeal = np.random.default_rng(K).normal(size=K)
        found, end = equilibria(SocialLogit(appeal, .8), crowd_of(K)), settle(SocialLogit(appeal, .8), crowd_of(K), tolerance=2e-7)
        assert len(found) == 1 and found.basin[0] == 1 and end.settled and end.expansion < 1
        assert np.abs(softmax(appeal + .8 * end.mu.share) - end.mu.share).max() < 1e-6


def test_what_swings_is_not_called_settled():
    swings = settle(SocialLogit([.5, 0], -6.), crowd_of(2), memory=0)
    assert not swings.settled and swings.expansion > 1 and "NOT settled" in str(swings)
    rng = np.random.default_rng(0)
    for i in range(60):                                   # whatever the crowd: settled means a state, and one that a push does not destroy
        K = int(rng.integers(2, 6))
        appeal, social, step = rng.normal(0, 2, K), rng.uniform(-25, 25), rng.choice([1., .5, .1])
        o = crowd_of(K)
        end = settle(SocialLogit(appeal, social), o, step=step, memory=int(rng.choice([0, 5])), most=80)
        F = Field(SocialLogit(appeal, social), o)
        if end.settled: assert np.abs(F(F.normal(end.mu.share)) - end.mu.share).max() < 2e-5 and end.rate < 1
        else: assert len(end.residuals) == 80


def test_drawn_choices_settle_within_their_noise():
    o = crowd_of(3, 2000)
    model = SocialLogit([.5, 0, -.5], 1.)
    drawn, exact = settle(model, o, seed=3, step=.5), settle(model, o)
    assert drawn.settled and np.abs(drawn.mu.share - exact.mu.share).max() < 6 * exact.noise.max()
    assert np.array_equal(drawn.mu.share, settle(model, o, seed=3, step=.5).mu.share) and not np.array_equal(drawn.mu.share, settle(model, o, seed=4, step=.5).mu.share)
    p = exact.mu.share
    assert np.allclose(exact.noise, np.sqrt(p * (1 - p) / len(o)), rtol=1e-3)


def test_a_customer_who_stands_for_many():
    o = crowd_of(3, 40, 2)
    model = Dirichlet()
    weight = np.random.default_rng(0).integers(1, 4, len(o))
    a, b = aggregate(model.predict(ready(o)), ready(o), weight), aggregate(model.predict(ready(o)[np.repeat(np.arange(len(o)), weight)]), ready(o)[np.repeat(np.arange(len(o)), weight)])
    for x, y in ((a.share, b.share), (a.price, b.price)): assert np.allclose(x, y, equal_nan=True)


def test_certain_choices_add_up_to_what_was_counted():
    o = ready(crowd_of(4, 60, 3))
    sure = np.eye(4)[o.chosen]
    mu, seen = aggregate(Predictions(sure, np.eye(20)[o.quantity.clip(1, 20).astype(int) - 1][:, None], SUPPORT), o), mean_field(o)
    assert np.allclose(mu.share, seen.share) and np.allclose(mu.price, seen.price, equal_nan=True) and np.allclose(mu.quantity, seen.quantity, equal_nan=True) and not mu.count.any()


def test_categories_do_not_mix_and_real_models_settle():
    rng = np.random.default_rng(2)
    worlds = [replace(sample_world(rng, J), absent=0., turnover=0., empty=0., outside=-np.inf) for J in (3, 4)]
    o = ready(simulate_market(worlds, rng.standard_normal((60, 5)), rng, 4)[0])
    model = LoyaltyLogit().fit(o)
    end = settle(model, o)
    assert end.settled and np.allclose([end.mu.share[:3].sum(), end.mu.share[3:].sum()], 1)
    again = aggregate(model.predict(o, end.mu), o)
    assert np.abs(again.share - end.mu.share).max() < 1e-5
    one = settle(model, o[o.category == 0])
    assert np.isnan(one.mu.share[3:]).all() and np.abs(one.mu.share[:3] - end.mu.share[:3]).max() < 1e-5


def test_refusals():
    o = crowd_of(2)
    with pytest.raises(ValueError, match="step must lie in"): settle(SocialLogit([0, 0], 1.), o, step=0.)
    with pytest.raises(ValueError, match="at least one occasion"): settle(SocialLogit([0, 0], 1.), o[:0])
