"What a cluster costs before it pays: fixed and marginal seconds of Ray on this machine, and a plan for 100 million decisions reckoned from them. `python benchmarks/scale.py [--occasions 2000]`"
import argparse, json, os, time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np

from malles.cached import timed
from malles.elicitation import LMChoice
from malles.evaluation import trial_markets
from malles.occasions import mean_field, with_popularity
from malles.samples import sample_market
from malles.scale import ByRay, Plan


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--occasions", type=int, default=2000)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path(__file__).parent/"results"/"scale.json")
    a = p.parse_args()
    import ray, torch
    torch.set_num_threads(1)
    occasions = trial_markets(sample_market())[0].occasions
    occasions = with_popularity(occasions, mean_field(occasions), counted=occasions)
    model, some = LMChoice.nano().fit(occasions), occasions[:a.occasions]
    model.predict(some[:50])                                                   # warm
    (here,), cost = timed(model, some)
    start = time.perf_counter()
    ray.init(num_cpus=a.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200 * 2**20)
    up = time.perf_counter() - start
    start = time.perf_counter()
    ByRay(model, workers=1, chunk=50).predict(some[:1])                        # a job of one decision
    job = time.perf_counter() - start
    start = time.perf_counter()
    there = ByRay(model, workers=a.workers, chunk=max(a.occasions // (4 * a.workers), 1)).predict(some)
    whole = time.perf_counter() - start
    ray.shutdown()
    plan = Plan(up + job, cost.seconds / len(some))
    result = dict(occasions=len(some), workers=a.workers, load=os.getloadavg()[0], largest_difference=float(np.abs(here.choice - there.choice).max()), seconds_here=cost.seconds, seconds_to_start=up, seconds_of_an_empty_job=job, seconds_by_ray=whole,
        fixed=plan.fixed, marginal=plan.marginal, pays_from={str(w): plan.pays_from(w) for w in (2, 16, 64)},
        reckoned_hours_for_100_million={f"{w} cores": plan.hours(1e8, w) for w in (2, 16, 64, 256)})
    a.out.parent.mkdir(exist_ok=True)
    a.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"fixed {plan.fixed:.1f} s (start {up:.1f}, a job of one decision {job:.1f}), marginal {1000 * plan.marginal:.2f} ms of a core per decision by nano; {len(some):,} decisions: {cost.seconds:.1f} s here, {whole:.1f} s by {a.workers} workers, largest difference {result['largest_difference']:.1e}")
    print("pays from", ", ".join(f"{n:,.0f} decisions ({w} workers)" for w, n in ((w, plan.pays_from(w)) for w in (2, 16, 64))))
    print("100 million decisions, reckoned from these rates and not run:", ", ".join(f"{h:,.1f} hours on {w}" for w, h in result["reckoned_hours_for_100_million"].items()))


if __name__ == "__main__": main()
