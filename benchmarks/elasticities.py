"""Are elasticities recovered, and do their 90 % intervals cover the truth? Simulated markets of plain logit demand, whose elasticities over a thousand households are known.

    python benchmarks/elasticities.py [--markets 200] [--nano 20] [--households 80] [--results benchmarks/results/elasticities.json]

In each market a logit is fitted to the purchases of a few households. Its intervals draw households with replacement and fit it again on every draw, so they hold its error and who the households are; that needs no formula for the model,
so the sandbox gives it for any. Beside it: the same without fitting again, and nano, which knows the households' pasts and some facts, but has no fitted response (its intervals hold who the households are).
"nano, usual price too" is why no what-if moves the usual price that nano reads: the same own elasticities when it moves along with the price.
Coverage counts every (product, price) pair; its own interval draws markets. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd
from malles.certificate import plain
from malles.covariates import ready
from malles.elicitation import LMChoice
from malles.folders import replace_file
from malles.logits import Logit
from malles.metrics import clustered_mean
from malles.numeracy import Simulator
from malles.sandbox import Sandbox
from malles.shoppers import simulate
from malles.worlds import sample_world


def logit_market(k:int, households:int):  # Occasions of 1,000 households; (n,) those that are seen
    "A market in which all households want alike, and only appeal and price count."
    rng = np.random.default_rng([33, k])
    world = plain(sample_world(rng, int(rng.integers(3, 6))))
    world = replace(world, loadings=0 * world.loadings, spread=0., devoted=0., price=float(rng.uniform(1.5, 4)), price_spread=0., drift=float(rng.uniform(.1, .25)), deal_rate=np.full(world.J, .15), deal=0., display=0., feature=0., reference=0.,
        inertia=0., habit=0., absent=0., marked=False, counted=True)
    occasions = simulate(world, 1000, 6, rng)[0]
    seen = occasions.customer < households
    return ready(occasions, seen), seen


def rows_of(name, market, found, true):
    "One row per pair of a share and a price."
    pairs = [(i, j) for i in range(len(true)) for j in range(len(true))]
    return [dict(model=name, market=market, pair="own" if i == j else "cross", true=true.iloc[i, j], estimate=found.estimate.iloc[i, j], covered=bool(found.low.iloc[i, j] <= true.iloc[i, j] <= found.high.iloc[i, j]), width=found.high.iloc[i, j] - found.low.iloc[i, j]) for i, j in pairs]


def with_usual(model, occasions, true, step=.1):
    "Rows of own elasticities of a language model whose usual price moves along with the price."
    usual, code, J = model.read(occasions).alternative("usual_price"), occasions.product, len(true)
    factor = [np.where(code == j, 1 + s * step, 1.) for j in range(J) for s in (1, -1)]
    said = model.what_if(occasions, [dict(price=occasions.price * f, usual_price=usual + np.log(f)) for f in factor])
    share = np.log([(p.choice * (code == k // 2)).sum() for k, p in enumerate(said)])
    return [dict(pair="own", true=true.iloc[j, j], estimate=(share[2 * j] - share[2 * j + 1]) / np.log((1 + step) / (1 - step))) for j in range(J)]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--markets", type=int, default=200); a.add_argument("--nano", type=int, default=20, help="markets on which nano is asked, too"); a.add_argument("--households", type=int, default=80); a.add_argument("--draws", type=int, default=200)
    a.add_argument("--results", type=Path, help="write the last line there, too")
    a = a.parse_args()
    start, rows = time.process_time(), []
    for k in range(a.markets):
        occasions, some = logit_market(k, a.households)
        seen, true = occasions[some], Sandbox(occasions, Simulator(), draws=2).elasticities().estimate
        logit = Logit()
        logit.settings = [dict(price="log", ridge=.3)]                      # the right form; a prior of next to nothing
        logit.fit(seen)
        for name, train in (("logit", seen), ("logit, not fitted again", None)): rows += rows_of(name, k, Sandbox(seen, logit, train=train, draws=a.draws, seed=k).elasticities(), true)
        if k < a.nano:
            nano = LMChoice.nano().fit(seen)
            rows += rows_of("nano", k, Sandbox(seen, nano, draws=a.draws, seed=k).elasticities(), true)
            rows += [r | dict(model="nano, usual price too", market=k) for r in with_usual(nano, seen, true)]
        if k % 20 == 19: print(f"{k + 1} markets, {time.process_time() - start:.0f} s", flush=True)
    table, out = pd.DataFrame(rows), []
    for (name, pair), t in table.groupby(["model", "pair"], sort=False):
        coverage, low, high, _ = clustered_mean(t.covered.astype(float), t.market)
        out.append(dict(model=name, pair=pair, markets=t.market.nunique(), pairs=len(t), coverage=coverage, low=low, high=high, true=t.true.mean(), bias=(t.estimate - t.true).mean(), error=(t.estimate - t.true).abs().mean(), width=t.width.mean(), correlation=t.estimate.corr(t.true)))
    for name, t in table.groupby("model", sort=False):
        if t.covered.isna().any(): continue
        coverage, low, high, _ = clustered_mean(t.covered.astype(float), t.market)
        out.append(dict(model=name, pair="all", markets=t.market.nunique(), pairs=len(t), coverage=coverage, low=low, high=high))
    print(pd.DataFrame(out).round(3).to_string(index=False))
    line = json.dumps(dict(benchmark="elasticities", level=.9, households=a.households, draws=a.draws, cpu_seconds=round(time.process_time() - start), rows=[{k: round(float(v), 4) if isinstance(v, float) else v for k, v in r.items() if v == v} for r in out]))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(line + "\n"))
    print(line)


if __name__ == "__main__": main()
