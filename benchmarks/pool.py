"""How much weight has what nano read beside the guess that it was told? Log-loss of customers that nobody has seen, by the weight (0: the guess alone, 1: what was read alone).

    python benchmarks/pool.py --markets DIR [DIR ...] [--folds 0 1 2 3 4]

No weight of nano moves. The weight in use, one half for every market (`LMChoice.pooled`), was first tried on the simulated worlds of the certificate and on the panels; then on ../shared/data/domains, where .25 to .5 did best.
"""
import argparse, json, os
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np, torch
from malles.elicitation import LMChoice, log_pool
from malles.evaluation import FOLDS, train_and_test, trial_markets
from malles.market import read_market
from malles.metrics import clustered_mean
from malles.tastes import guess, market_facts, with_facts
from malles.tuning import log_losses

WEIGHTS = (0, .25, .5, .75, 1)


def main(a):
    torch.set_num_threads(1)
    nano, out = LMChoice.nano(), {}                          # never fitted: what carries the facts is read, and pooled with nothing
    for trial in (t for path in a.markets for t in trial_markets(read_market(path)) if t.headline):
        loss, who = {w: [] for w in WEIGHTS}, []
        for fold in a.folds:
            train, test = train_and_test(trial, "customer", fold)
            seen = with_facts(test, market_facts(train))
            read, told = nano.predict(seen).choice, guess(seen)
            for w in WEIGHTS: loss[w].append(log_losses(log_pool(read, told, w), test.chosen))
            who.append(test.customers[test.customer])
        loss, who = {w: np.concatenate(v) for w, v in loss.items()}, np.concatenate(who)
        gain, low, high, _ = clustered_mean(loss[.5] - loss[1], who)
        out[trial.name] = {**{str(w): round(float(v.mean()), 4) for w, v in loss.items()}, "half minus reading": [round(float(x), 4) for x in (gain, low, high)]}
        print(trial.name, out[trial.name], flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--markets", nargs="+", required=True); p.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    main(p.parse_args())
