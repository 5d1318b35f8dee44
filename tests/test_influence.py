"Influence: markets without it are not said to have it, markets with it are, and nobody's own purchases count."
from dataclasses import replace

import numpy as np
import pytest

from malles.crowd import SocialLogit
from malles.influence import influence, interacts
from malles.periods import forward, period_of
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate

WORLD = replace(sample_world(np.random.default_rng(4), 3), absent=0., turnover=0., empty=0., outside=-np.inf)


def market(seed, social, customers=100, rounds=12):
    blank = with_profiles(simulate(WORLD, customers, rounds, rng=seed)[0])
    appeal = np.random.default_rng(seed).normal(size=3) * (.5 if social == 0 else .05)
    return forward(SocialLogit(appeal, social), blank, period_of(blank), 0, seed=seed)[0]


def test_intervals_cover_nothing_where_there_is_nothing():
    found = [influence(m, period_of(m), seed=s) for s, m in enumerate(market(s, 0.) for s in range(60))]
    covered = np.mean([t.low["lagged"] <= 0 <= t.high["lagged"] for t in found])
    assert .82 <= covered <= .98, f"90 % intervals cover the truth in {covered:.0%} of 60 markets"
    assert np.mean([interacts(t) for t in found]) <= .1


def test_influence_is_found():
    found = [influence(m, period_of(m)) for m in (market(s, 2.8, 200, 16) for s in range(8))]
    assert np.mean([t.low["lagged"] > 0 for t in found]) >= .75
    assert np.mean([t.estimate["lagged"] > t.estimate["shuffled periods"] for t in found]) >= .75


def test_placebos_repeat_by_seed_and_short_markets_are_refused():
    m = market(1, 0.)
    a, b, c = (influence(m, period_of(m), seed=s) for s in (1, 1, 2))
    assert a.equals(b) and a.loc["lagged"].equals(c.loc["lagged"]) and not a.loc["shuffled periods"].equals(c.loc["shuffled periods"])
    with pytest.raises(ValueError, match="four periods"): influence(m[period_of(m)[m.rows] < 3], period_of(m))
