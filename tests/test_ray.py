"A sandbox through Ray: the same shares as here, with a worker killed in the middle; the second run computes nothing."
import os, signal, sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import numpy as np
import pytest

ray = pytest.importorskip("ray")

from malles.evaluation import trial_markets
from malles.logits import LoyaltyLogit
from malles.occasions import mean_field, with_popularity
from malles.samples import sample_market
from malles.sandbox import Sandbox
from malles.scale import Plan
from malles.whatifs import Delist, Discount


class Mortal(LoyaltyLogit):
    "Kills the process that it first answers in, if that is a worker."
    grave = driver = ""
    def predict(self, occasions, mu=None):
        if os.getpid() != self.driver and not Path(self.grave).exists():
            Path(self.grave).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(occasions, mu)
    def fingerprint(self): return "mortal"


@pytest.mark.skipif(not os.environ.get("MALLES_RAY"), reason="starts a Ray cluster, minutes on a busy machine: MALLES_RAY=1 pytest tests/test_ray.py")
def test_same_shares_and_a_killed_worker(tmp_path):
    occasions = trial_markets(sample_market())[0].occasions[:600]
    occasions = with_popularity(occasions, mean_field(occasions), counted=occasions)
    model = Mortal().fit(occasions)
    model.grave, model.driver = str(tmp_path/"grave"), os.getpid()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 * 2**20)
    try:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])          # no worker can import a test
        here = Sandbox(occasions, model).run()
        there = Sandbox(occasions, model).run(engine="ray", folder=tmp_path/"answers", workers=2, chunk=150)
        assert Path(model.grave).exists() and int(Path(model.grave).read_text()) != os.getpid(), "no worker was killed"
        kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path/"answers").iterdir()}
        for what in ((Discount("YOG01", .2),), (Delist("YOG01"),)):
            a, b = Sandbox(occasions, model).run(*what), Sandbox(occasions, model).run(*what, engine="ray", workers=2, chunk=150)
            assert np.allclose(b.measure("share"), a.measure("share"), atol=1e-12, equal_nan=True)
            assert np.nanmax(np.abs(b.measure("share") - here.measure("share"))) > 1e-3, "the what-if did not reach the workers"
        assert len(kept) == 4 and np.allclose(there.measure("share"), here.measure("share"), atol=1e-12, equal_nan=True) and np.nansum(here.measure("share")) > 1
    finally: ray.shutdown()


def test_plan():
    plan = Plan(50., .001)
    assert plan.pays_from(2) == pytest.approx(100_000) and plan.hours(3.6e6, 1) == pytest.approx(1 + 50 / 3600) and plan.pays_from(1) == float("inf")


def test_other_engines_are_refused():
    occasions = trial_markets(sample_market())[0].occasions[:50]
    occasions = with_popularity(occasions, mean_field(occasions))
    with pytest.raises(ValueError, match="engine must be local or ray, got 'spark'"): Sandbox(occasions, LoyaltyLogit().fit(occasions)).run(engine="spark")
