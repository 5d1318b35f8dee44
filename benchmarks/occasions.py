"""A market of one million transactions becomes occasions with profiles: seconds per stage and peak memory.

    python benchmarks/occasions.py                    # about one million lines
    python benchmarks/occasions.py --customers 3000   # a tenth of it

The market is simulated, but only its transactions are used: alternatives and prices are inferred from what others bought, as for any
real log. The last line is JSON. seconds_total is the time from transactions to occasions with profiles and popularity; simulating does not count.
"""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import argparse, json, resource, sys, tempfile, time

import numpy as np
import pandas as pd

from malles import Market, build_occasions, mean_field, with_popularity, with_profiles
from malles.populations import simulate_population


def peak_mb():
    "Peak memory of this process so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def timed(what, step):
    "Result and seconds of a stage, which it prints."
    start = time.perf_counter()
    out = step()
    seconds = time.perf_counter() - start
    print(f"{what:<46}{seconds:8.1f} s   peak memory {peak_mb():8,.0f} MB", flush=True)
    return out, seconds


def simulate(customers, seed, folder):
    "Transactions and products of a simulated market as files."
    market, _ = simulate_population(customers, seed=seed, name="million")
    for table in ("transactions", "products"): getattr(market, table).to_parquet(Path(folder)/f"{table}.parquet")


def records(customers, seed):
    "Transactions and products, made in a process of its own, whose memory does not count."
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other: other.submit(simulate, customers, seed, folder).result()
        return [pd.read_parquet(Path(folder)/f"{table}.parquet") for table in ("transactions", "products")]


def slice_ms(occasions, views=200, size=1000):
    "Milliseconds to take a random thousand occasions and read their prices."
    rng = np.random.default_rng(0)
    which = [rng.choice(len(occasions), min(size, len(occasions)), replace=False) for _ in range(views)]
    start = time.perf_counter()
    for w in which: occasions[w].price
    return 1000 * (time.perf_counter() - start) / views


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--customers", type=int, default=35_200)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    (lines, products), _ = timed("simulate and read the records (not counted)", lambda: records(args.customers, args.seed))
    print(f"{len(lines):,} transactions of {lines.customer_id.nunique():,} customers, {lines.product_id.nunique()} products")
    market, a = timed("check the records", lambda: Market.from_frames("million", transactions=lines, products=products))
    occasions, b = timed("build occasions", lambda: build_occasions(market))
    occasions, c = timed("profiles", lambda: with_profiles(occasions))
    occasions, d = timed("popularity", lambda: with_popularity(occasions, mean_field(occasions), counted=occasions))
    known = np.isfinite(occasions.log.alternative["popularity"]).mean()
    assert known > .99 and occasions.column("n_past").max() > 5, "the market that was built is not the one that was meant"
    ms = slice_ms(occasions)
    print(f"{len(occasions):,} occasions, {len(occasions.log.alternative['product']):,} alternatives; a view of 1,000 of them with prices: {ms:.2f} ms")
    print(json.dumps(dict(transactions=len(lines), occasions=len(occasions), seconds_total=round(a + b + c + d, 1), seconds_check=round(a, 1), seconds_build=round(b, 1),
                          seconds_profiles=round(c, 1), seconds_popularity=round(d, 1), peak_memory_mb=round(peak_mb()), slice_ms=round(ms, 2))))


if __name__ == "__main__": main()
