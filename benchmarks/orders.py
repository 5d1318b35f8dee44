"""What averaging over orders of the alternatives is worth to a post-trained model, on customers that it has not seen (five folds).

    python benchmarks/orders.py --markets DIR [DIR ...] --model DIR [--orders 1 4]
"""
import argparse, json, os
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from malles.evaluation import FOLDS, train_and_test, trial_markets
from malles.market import read_market
from malles.posttraining import PostTrained
from malles.tuning import log_losses


def main(a):
    torch.set_num_threads(1)
    out = {}
    for trial in (t for path in a.markets for t in trial_markets(read_market(path)) if t.headline):
        parts = [train_and_test(trial, "customer", k) for k in range(FOLDS)]
        out[trial.name] = {n: round(float(np.concatenate([log_losses(PostTrained(a.model, orders=n).fit(train).predict(test).choice, test.chosen) for train, test in parts]).mean()), 4) for n in a.orders}
        print(trial.name, out[trial.name], flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--markets", nargs="+", required=True); p.add_argument("--model", required=True); p.add_argument("--orders", nargs="+", type=int, default=[1, 4])
    main(p.parse_args())
