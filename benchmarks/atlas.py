"""The transfer atlas on real markets: what other categories teach about one, against the number of its own customers.

    python benchmarks/atlas.py --data ../shared/data --out DIR [--targets panels/catsup ...] [--counts 0 10 30 100] [--folds 0] [--results FILE]

For every target one model is taught by the other markets and one by the categories that look most alike, where a regime asks for it (of each source at most --most customers, drawn by seed), both for all folds of the target, whose customers they
never meet. Then every regime and every classical model gets the same n customers of the training folds, and is judged on the customers of the others. Stopped, the same command continues. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time, warnings
from functools import partial
from pathlib import Path
import pandas as pd
from malles.atlas import GENERAL, Few, Regime, crossover, most_alike, regime_table
from malles.bench import Contender, bench
from malles.contenders import weights_hash
from malles.evaluation import paired, trial_markets
from malles.folders import replace_file
from malles.market import read_market
from malles.occasions import mean_field, with_popularity
from malles.opponents import opponents
from malles.posttraining import posttrain_fold
from malles.transfer import SimLogit, TransferLogit

MARKETS = ("panels/catsup", "panels/ketchup", "panels/margarine", "panels/tuna", "panels/detergent", "tafeng")
CLASSICAL = ("dirichlet", "loyalty-logit", "mixed-logit", "lightgbm-monotone")

def headline(data, name, customers): return next(t for t in trial_markets(read_market(data/name), 0, customers) if t.headline)

def few(model, n, *a): return Few(model(*a), n)

def taught_by(target, others, regimes, out):
    "Checkpoints that the regimes ask for: of all other markets, of the categories most alike."
    folders = {}
    for name, asked_by in (("others", {"others", "all", "auto"}), ("similar", {"similar", "auto"})):
        if not asked_by & set(regimes): continue
        posttrain_fold(others if name == "others" else most_alike(target.occasions, others), None, out/target.source/name, GENERAL)
        folders[name] = str(out/target.source/name)
    return folders

def field(trial, folders, others, counts, regimes):
    "Every regime and opponent at every number of customers."
    version = json.dumps({k: weights_hash(f) for k, f in folders.items()} | dict(base=weights_hash("nano")))
    seen = [with_popularity(o, mean_field(o), counted=o) for o in others]
    out = []
    for n in counts:
        label = "all" if n is None else str(n)
        out += [Contender(f"{r}, {label}", partial(few, Regime, n, r, folders.get("others", ""), folders.get("similar", "")), ("customer",), version) for r in regimes if n != 0 or r not in ("itself", "all", "auto")]
        out += [Contender(f"{m.name}, {label}", partial(few, type(m), n), ("customer",)) for m in opponents(trial.occasions.ordered, only=CLASSICAL) if n != 0]
        out += [Contender(f"sim-logit, {label}", partial(travelled, SimLogit, n), ("customer",)), Contender(f"transfer-logit, {label}", partial(travelled, TransferLogit, n, seen), ("customer",), version)]
    return out

def travelled(model, n, *a): return Few(model(*a).fit(None), n)   # it looks at no customer of this market, so it is fitted where nobody is known as well

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=Path, default=Path("../shared/data")); a.add_argument("--out", type=Path, required=True)
    a.add_argument("--targets", nargs="+", default=list(MARKETS)); a.add_argument("--counts", nargs="+", default=["0", "10", "30", "100", "all"])
    a.add_argument("--regimes", nargs="+", default=["zero-shot", "others", "similar", "itself", "all"]); a.add_argument("--folds", nargs="+", type=int, default=list(range(5)))
    a.add_argument("--most", type=int, default=1000, help="customers of a source market at most"); a.add_argument("--judged", type=int, default=2000, help="customers of a target market at most"); a.add_argument("--workers", type=int, default=os.cpu_count())
    a.add_argument("--results", type=Path)
    a = a.parse_args()
    warnings.simplefilter("ignore")
    start, counts = time.time(), [None if n == "all" else int(n) for n in a.counts]
    sources = {name: headline(a.data, name, a.most).occasions for name in MARKETS}
    tables, gains, crossings = [], [], {}
    for name in a.targets:
        trial = headline(a.data, name, a.judged)
        others = [o for k, o in sources.items() if k != name]
        folders = taught_by(trial, others, a.regimes, a.out)
        result = bench([trial], lambda t: field(t, folders, others, counts, a.regimes), a.out/trial.source/"bench", ("customer",), a.folds, champion=f"others, {a.counts[-1]}", workers=a.workers)
        for f in result.summary["failed"]: print(f)
        table = regime_table(result.rows)
        print(f"{trial.name}: log-loss by customers\n{table.round(4).to_string()}", flush=True)
        tables.append(table.reset_index().assign(market=trial.name)); crossings[trial.name] = crossover(table)
        for (_, _, model), scores in result.pooled.items():
            kind, n = model.split(", ")
            ours = result.pooled.get((trial.name, "customer", f"others, {n}"))
            if kind != "others" and ours is not None: gains.append(dict(market=trial.name, against=kind, customers=n) | paired(ours, scores))
    table, gains = pd.concat(tables), pd.DataFrame(gains)
    print(gains.round(4).to_string(index=False))
    mean = gains.groupby(["against", "customers"]).difference.mean().unstack().round(4)
    print(f"others minus ..., mean over {table.market.nunique()} markets\n{mean.to_string()}")
    summary = dict(markets=int(table.market.nunique()), others_minus={k: {n: round(v, 4) for n, v in row.dropna().items()} for k, row in mean.iterrows()}, crossover=crossings, seconds=round(time.time() - start))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=table.round(4).to_dict("records"), gains=gains.round(4).to_dict("records"), **summary), indent=1) + "\n"))
    print(json.dumps(summary))

if __name__ == "__main__": main()
