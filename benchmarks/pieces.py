"""How many pieces are taken, by households that nobody has seen: the guess of pieces, nano before and after its lessons, and what is fitted.

    python benchmarks/pieces.py --markets ../shared/data/tafeng [--folds 0 1 2 3 4] [--model DIR] [--no-nano]

DIR: what `malles posttrain` wrote. Means over purchases of which the number of pieces is known: minus log probability (nats), CRPS and absolute error of the median (pieces); paired differences to quantity-lightgbm with 95 % intervals by household. The last line is JSON.
"""
import argparse, json, os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
from pathlib import Path
import numpy as np, pandas as pd
from malles.elicitation import LMChoice
from malles.evaluation import train_and_test, trial_markets
from malles.hazard import QuantityLightGBM
from malles.market import read_market
from malles.metrics import clustered_mean, quantity_scores
from malles.posttraining import PostTrained
from malles.quantity import QuantityMedian
from malles.tastes import RunningTastes

SCORES, RIVAL = ["log_score", "crps", "absolute"], QuantityLightGBM.name


def main(a):
    makes = [QuantityMedian, QuantityLightGBM, RunningTastes] + ([] if a.no_nano else [LMChoice.nano]) + ([lambda: PostTrained(a.model)] if a.model else [])
    rows, gaps = [], []
    for path in a.markets:
        trial = next(t for t in trial_markets(read_market(path)) if t.headline)
        told = []
        for fold in a.folds:
            train, test = train_and_test(trial, "customer", fold)
            for make in makes:
                model = make().fit(train)
                scores = quantity_scores(model.predict(test), test)[SCORES]
                told.append(scores.assign(model=model.name, customer=test.customer, purchase=test.rows).dropna())
                print(trial.name, fold, model.name, scores.mean().round(4).to_dict(), flush=True)
        told = pd.concat(told)
        rows += [dict(market=trial.name, **r) for r in told.groupby("model", sort=False)[SCORES].mean().reset_index().to_dict("records")]
        rival = told[told.model == RIVAL].set_index("purchase")
        for name, one in told[told.model != RIVAL].groupby("model", sort=False):
            one = one.set_index("purchase")
            gaps += [dict(market=trial.name, model=name, metric=s, **dict(zip(("difference", "low", "high"), clustered_mean((one[s] - rival[s]).to_numpy(), one.customer.to_numpy())[:3]))) for s in SCORES]
    print(pd.DataFrame(rows).round(4).to_string(index=False)); print(f"minus {RIVAL}"); print(pd.DataFrame(gaps).round(4).to_string(index=False))
    summary = dict(rows=rows, against=RIVAL, gaps=gaps, folds=a.folds)
    print(json.dumps(json.loads(pd.Series(summary).to_json(double_precision=4))))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--markets", nargs="+", type=Path, required=True); p.add_argument("--folds", nargs="+", type=int, default=list(range(5)))
    p.add_argument("--model", type=Path); p.add_argument("--no-nano", action="store_true", help="nothing that reads")
    main(p.parse_args())
