"Weeks go by: nobody sees tomorrow or himself, and a market that is simulated forward reads nothing of what really happened."
from dataclasses import replace

import numpy as np
import pytest

from malles.crowd import SocialLogit
from malles.occasions import chosen_product
from malles.periods import counts_of, forward, lagged, period_of, sight
from malles.predictions import ChoiceModel, Predictions
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate


@pytest.fixture(scope="module")
def market():
    world = replace(sample_world(np.random.default_rng(2), 4), outside=-np.inf)
    occasions = with_profiles(simulate(world, 40, 9, rng=2)[0])
    return occasions, period_of(occasions)


@pytest.mark.parametrize("window, later", [(0, 0), (1, 0), (3, 0), (1, 1), (3, 1)])
def test_what_is_seen_is_what_others_bought_before(market, window, later):
    occasions, period = market
    view = lagged(occasions, period, window, prior=10., later=later)
    code, P = chosen_product(occasions), len(occasions.products)
    rng = np.random.default_rng(0)
    for i in rng.permutation(len(occasions))[:60]:
        k = period[i] + later
        before, ago = period < k, period >= (k - window if window else 0)
        count = lambda which: np.bincount(code[which & (code >= 0)], minlength=P).astype(float)
        n, past = count(before & ago & (occasions.customer != occasions.customer[i])), count(before) + 1
        here = occasions.product[i][occasions.mask[i]]
        expected = (n + 10 * past / past.sum())[here]
        assert np.allclose(view.alternative("popularity")[i][occasions.mask[i]], expected / expected.sum(), atol=1e-5)


def test_periods_end_with_the_last_day():
    days = np.datetime64("2001-01-01") + np.array([0, 5, 6, 7, 13, 14, 20])
    occasions = with_profiles(simulate(sample_world(np.random.default_rng(1), 3), 1, 7, rng=1)[0]).with_columns(dict(time=days))
    assert period_of(occasions).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert period_of(occasions[:4]).tolist()[:4] == [0, 1, 1, 1]   # the view's last day, the 8th, ends its last week


def test_own_counts_are_seen_as_they_are_given(market):
    occasions, period = market
    counts = np.zeros((period.max() + 1, len(occasions.products))); counts[:, 1] = 1000
    seen = lagged(occasions, period, 1, counts)
    late = period[seen.rows] > 0
    assert (seen.alternative("popularity")[late][(occasions.product == 1)[late] & occasions.mask[late]] > .98).all()


class Spy(ChoiceModel):
    "Takes the first alternative, and notes what it was shown."
    name = "spy"
    def __init__(self): self.seen = []
    def predict(self, occasions, mu=None):
        self.seen.append((occasions.column("n_past"), occasions.alternative("own_count"), occasions.alternative("popularity")))
        return Predictions(np.eye(occasions.mask.shape[1])[np.zeros(len(occasions), int)], name=self.name)


def test_the_future_is_not_read(market):
    occasions, period = market
    other = occasions.log.occasion["chosen"].copy()
    late = period >= 4
    other[late] = (other[late] + 1) % np.diff(occasions.log.offsets)[late]
    shown = []
    for o in (occasions, with_profiles(occasions.with_columns(dict(chosen=other)))):
        spy = Spy()
        lived, told = forward(spy, o, period, 4, 2)
        shown.append(spy.seen)
        assert (lived.chosen[late] == 0).all() and np.array_equal(lived.chosen[~late], occasions.chosen[~late])
        assert len(told) == late.sum() and told.choice[:, 0].min() == 1
    for a, b in zip(*shown):
        for x, y in zip(a, b): assert np.array_equal(x, y, equal_nan=True)


def test_simulated_purchases_become_pasts_and_views(market):
    occasions, period = market
    spy = Spy()
    lived, _ = forward(spy, occasions, period, 3, 1)
    n_past, own, seen = spy.seen[-1]
    assert (n_past == 8).all()
    product, best = lived[period == 8].product, counts_of(lived, period)[7].argmax()
    offered = (product == best).any(1)
    assert offered.any() and (product[np.arange(40), np.nan_to_num(seen, nan=-1).argmax(1)][offered] == best).all()


def test_drawn_paths_repeat_by_seed_and_add_up(market):
    occasions, period = market
    model = SocialLogit(np.zeros(4), 2.)
    a, b, c = (forward(model, occasions, period, 1, 1, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(a.chosen, b.chosen) and not np.array_equal(a.chosen, c.chosen)
    assert (counts_of(a, period).sum(1) == 40).all()


def test_sight_without_a_past_is_even():
    seen, add = sight(np.array([[3., 1, 0], [0, 0, 2]]), np.array([0, 0, 1]), 1)
    assert (seen[0] == 0).all() and np.allclose(add[0], [5, 5, 10]) and np.allclose(seen[1], [3, 1, 0]) and np.allclose(add[1], [10 * 4 / 6, 10 * 2 / 6, 10])
