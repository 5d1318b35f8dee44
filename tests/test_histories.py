"A crowd with memories: what is answered from the cache is what the model itself answers, and large crowds rest where the loop does."
from dataclasses import replace

import numpy as np
import pytest

from malles.covariates import ready
from malles.crowd import facing, settle
from malles.elicitation import LMChoice
from malles.histories import Histories, settle_large
from malles.occasions import MeanField
from malles.shoppers import sample_world, simulate


@pytest.fixture(scope="module")
def crowd():
    world = replace(sample_world(np.random.default_rng(3), 5), absent=0., turnover=0., empty=0., outside=-np.inf, counted=True)
    occasions = ready(simulate(world, 30, 8, rng=3)[0])
    now = occasions[np.r_[np.diff(occasions.customer) != 0, True]]
    return LMChoice.nano(orders=2).fit(occasions), now


def announced(now, share): return facing(now, MeanField(np.asarray(share), None, None, np.zeros(len(share))))


def test_the_cache_answers_as_the_model(crowd):
    nano, now = crowd
    known, half = Histories(nano, now, half=False), Histories(nano, now)
    for asked in (announced(now, [.6, .1, .1, .1, .1]), announced(now, [.05, .8, .05, .05, .05]), now.replace(price=now.price * 1.3)):
        truth = nano.predict(asked)
        for model, error in ((known, 1e-5), (half, 5e-3)):
            told = model.predict(asked)
            assert np.abs(told.choice - truth.choice).max() < error and np.abs(told.quantity - truth.quantity).max() < error
    assert known.bytes == 2 * half.bytes > 0


def test_only_today_is_seen_anew(crowd):
    nano, now = crowd
    asked = announced(now, [.9, .025, .025, .025, .025])
    past = np.setdiff1d(np.arange(len(now.log.offsets) - 1), now.rows)
    at = np.concatenate([np.arange(*now.log.offsets[[r, r + 1]]) for r in past])
    assert np.array_equal(asked.log.alternative["popularity"][at], now.log.alternative["popularity"][at], equal_nan=True)
    assert not asked.log.occasion["announced"][past].any() and asked.column("announced").all()
    assert np.allclose(asked.alternative("popularity")[:, now.product[0] == 0], .9)


def test_other_occasions_are_refused(crowd):
    nano, now = crowd
    with pytest.raises(ValueError, match="other occasions"): Histories(nano, now[:9]).predict(now)
    with pytest.raises(ValueError, match="facing"): Histories(nano, now[:5]).predict(now[:5], MeanField(np.full(5, .2), None, None, np.zeros(5)))


def test_a_large_crowd_rests_where_the_loop_does(crowd):
    nano, now = crowd
    end, loop = settle_large(nano, now, sample=15, tolerance=2e-3), settle(Histories(nano, now, half=False), now, tolerance=5e-4)
    assert end.settled and loop.settled and np.abs(end.mu.share - loop.mu.share).max() < 4e-3
    unsettled = settle_large(nano, now, sample=15, tolerance=1e-9, most=2)
    assert len(unsettled.residuals) == 2 and not unsettled.settled
