"""How many households must a market have before a model fitted on it beats nano, which is fitted on none?

    python benchmarks/few_households.py --data ../shared/data [--markets panels/catsup ...] [--draws 3] [--results benchmarks/results/few_households.json]

For n training households (drawn by seed from the training folds; all of them where there are fewer) every model sees the same n: nano takes
shares and moments from them, the others are fitted on them. Log-loss on the held-out fold's customers (at most --test of them), mean over draws. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time, warnings
from pathlib import Path
import numpy as np, pandas as pd
from malles.contenders import reader
from malles.evaluation import folds_of, trial_markets
from malles.folders import replace_file
from malles.market import read_market
from malles.occasions import mean_field, with_popularity
from malles.opponents import opponents
from malles.tuning import log_losses

MARKETS = ("panels/catsup", "panels/ketchup", "panels/margarine", "panels/tuna", "tafeng")
SIZES = (5, 10, 20, 30, 100, 300)
MODELS = ("dirichlet", "loyalty-logit", "mixed-logit")

def losses(trial, size, draw, test_customers, seed=0):
    "Model -> mean log-loss of the held-out customers, everything learned from `size` training households."
    occasions, fold = trial.occasions, folds_of(trial, "customer")
    pick = lambda who, n, r: np.random.default_rng([seed, r]).permutation(np.unique(occasions.customer[who]))[:n]
    seen = occasions[np.isin(occasions.customer, pick(fold != 0, size, draw))]
    read = with_popularity(occasions, mean_field(seen), counted=seen)
    train, test = (read[np.isin(occasions.customer, who)] for who in (np.unique(seen.customer), pick(fold == 0, test_customers, 10**6)))
    models = [reader("nano")] + [m for m in opponents(occasions.ordered) if m.name in MODELS]
    return {m.name: float(log_losses(m.fit(train).predict(test).choice, test.chosen).mean()) for m in models}

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=Path, default=Path("../shared/data")); a.add_argument("--markets", nargs="*", default=list(MARKETS))
    a.add_argument("--draws", type=int, default=3); a.add_argument("--test", type=int, default=300, help="held-out customers at most")
    a.add_argument("--results", type=Path, default=Path("benchmarks/results/few_households.json"))
    a = a.parse_args()
    warnings.simplefilter("ignore")
    rows, start = [], time.time()
    for name in a.markets:
        trial = trial_markets(read_market(a.data/name), customers=2000 if name == "tafeng" else None)[0]
        there = len(np.unique(trial.occasions.customer[folds_of(trial, "customer") != 0]))
        for size in SIZES[:1 + int(np.searchsorted(SIZES, there))]:   # the first size that is too large means all
            each = pd.DataFrame([losses(trial, size, draw, a.test) for draw in range(a.draws)])
            rows.append(dict(market=trial.name, asked=size, households=min(size, there)) | each.mean().round(4).to_dict())
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    wins = {int(n): round(float((g.nano - g["mixed-logit"]).mean()), 4) for n, g in table.groupby("asked") if len(g) == table.market.nunique()}  # the same markets at each size
    replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=rows, draws=a.draws, seconds=round(time.time() - start)), indent=1) + "\n"))
    print(table.to_string(index=False))
    print(json.dumps(dict(nano_minus_mixed_logit=wins)))

if __name__ == "__main__": main()
