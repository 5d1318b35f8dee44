"Base-level activation is that of the published equation, vectorised over customers, and forgetting is found again."
import numpy as np
import pytest

from malles.cognition import CognitiveCore, activation, latency, proposals, retrieval, traces
from malles.lessons import seen_by
from malles.predictions import Popularity
from malles.profiles import with_profiles
from malles.shoppers import simulate
from malles.worlds import sample_world

PYACTR = [((10., [1., 4., 9.], .5), .5547936795, .0574190716), ((100., [0., 50., 99., 99.5], .3), 1.0266086577, .0358219749),   # recorded from pyactr 0.3.2
          ((7., [2.], .8), -1.2875503299, .3623898318), ((365., [1., 30., 200., 364.], .5), .1696583598, .0843953096)]


@pytest.mark.parametrize("case, base, seconds", PYACTR)
def test_equals_what_pyactr_said(case, base, seconds):
    now, times, decay = case
    B = activation((1, 1), (np.zeros(len(times), int), np.zeros(len(times), int), now - np.array(times)), decay)[0, 0]
    assert abs(B - base) < 1e-9 and abs(latency(B) - seconds) < 1e-9


@pytest.fixture(scope="module", params=[True, False], ids=["ordered", "unordered"])
def occasions(request):
    o = with_profiles(simulate(sample_world(np.random.default_rng(4), 8), 40, 8, rng=0, ordered=request.param)[0])
    return seen_by(o, o)


def test_vectorised_is_one_by_one(occasions):
    B = activation(occasions.mask.shape, traces(occasions), .5)
    for i in range(0, len(occasions), 17):
        past, want = occasions.past(i), np.zeros(B.shape[1])
        for k in range(len(past)):
            lag = float(occasions.time[i] - past.time[k]) if occasions.ordered else float(occasions.rows[i] - past.rows[k])
            hit = np.flatnonzero(occasions.mask[i] & (occasions.product[i] == past.product[k, past.chosen[k]]))
            want[hit] += max(lag, .5) ** -.5
        with np.errstate(divide="ignore"): assert np.allclose(B[i], np.log(want))


def test_predictions_are_probabilities_and_fit_helps(occasions):
    core = CognitiveCore()
    loss = lambda p: -np.log(p.choice[np.arange(len(occasions)), occasions.chosen]).mean()
    before, crowd = loss(core.predict(occasions)), loss(Popularity().predict(occasions))
    after = loss(core.fit(occasions).predict(occasions))
    assert after <= before and after < crowd and core.decay > 0 and core.noise > 0
    rules = proposals(core, core, occasions, len(occasions) - 1)
    assert rules.weight.between(0, 1).all() and rules.iloc[-1].rule == "do as the others do"


def test_retrieval_at_its_ends():
    p, none = retrieval(np.array([[0., -np.inf]]), .3, -1e3)
    assert p[0, 0] == 1 and none[0] == 0
    p, none = retrieval(np.full((1, 2), -np.inf), .3, -1.)
    assert none[0] == 1 and (p == 0).all()
