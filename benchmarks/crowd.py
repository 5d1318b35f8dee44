"""A crowd of nano: the loop with cached pasts against the loop without, and a state of a crowd that no cache holds. One thread.

    python benchmarks/crowd.py [--small 2000] [--large 100000] [--past 20] [--products 4] [--results FILE]
"""
import argparse, json, os, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from malles.bench import peak_memory_mb
from malles.covariates import ready
from malles.crowd import settle
from malles.elicitation import LMChoice
from malles.folders import replace_file
from malles.histories import Histories, settle_large
from malles.shoppers import sample_world, simulate


def crowd(customers, past, products, seed=1):
    "Everybody's visit after so many past ones, in a world without absent products."
    world = replace(sample_world(np.random.default_rng(seed), products), absent=0., turnover=0., empty=0., outside=-np.inf, counted=True)
    occasions = ready(simulate(world, customers, past + 1, rng=seed)[0])
    return occasions[np.r_[np.diff(occasions.customer) != 0, True]]


def timed(what):
    start = time.perf_counter()
    out = what()
    return out, time.perf_counter() - start


def main(a):
    torch.set_num_threads(1)
    out = {}
    if a.small:
        now = crowd(a.small, a.past, a.products)
        nano = LMChoice.nano().fit(now.whole())
        known, built = timed(lambda: Histories(nano, now))
        cached, fast = timed(lambda: settle(known, now, tolerance=a.tolerance))
        fast += built
        print(f"cached: {cached}\n{fast:.0f} s", flush=True)
        plain, slow = timed(lambda: settle(nano, now, tolerance=a.tolerance))
        print(f"uncached: {plain}\n{slow:.0f} s", flush=True)
        out |= dict(small=a.small, cached_seconds=round(fast, 1), uncached_seconds=round(slow, 1), cached_vs_uncached=round(slow / fast, 2), rounds=[len(cached.residuals), len(plain.residuals)], furthest_share=float(f"{np.nanmax(np.abs(cached.mu.share - plain.mu.share)):.2g}"), cache_mb_per_customer=round(known.bytes / a.small / 2**20, 3))
    if a.large:
        now, made = timed(lambda: crowd(a.large, a.past, a.products))
        print(f"{a.large:,} customers simulated in {made:.0f} s, {peak_memory_mb():,} MB at most", flush=True)
        nano = LMChoice.nano(progress=True).fit(now.whole())
        end, seconds = timed(lambda: settle_large(nano, now, sample=a.sample, tolerance=a.tolerance))
        print(end, flush=True)
        out |= dict(large=a.large, settled=end.settled, readings=len(end.residuals), residuals=[float(f"{r:.2g}") for r in end.residuals], rate=round(end.rate, 3), noise=float(f"{np.nanmax(end.noise):.2g}"), seconds=round(seconds), decisions_per_second=round(a.large * len(end.residuals) / seconds, 1))
    out |= dict(past=a.past, products=a.products, peak_memory_gib=round(peak_memory_mb() / 1024, 2))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", type=int, default=2000); p.add_argument("--large", type=int, default=100_000); p.add_argument("--sample", type=int, default=2000)
    p.add_argument("--past", type=int, default=20); p.add_argument("--products", type=int, default=4); p.add_argument("--tolerance", type=float, default=1e-4); p.add_argument("--results", type=Path)
    main(p.parse_args())
