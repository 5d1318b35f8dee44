"""Five-fold log-loss of the classical models on the scanner panels, beside the figures measured before the project began.

    python benchmarks/opponents.py --data ../shared/data [--markets catsup ketchup ...] [--models logit ...] [--seed 0] [--customers 1000]

Folds are by household (sha256 of market/customer, mod 5). Ketchup and tuna are unordered: each household's past is shuffled by seed.
The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")   # many small products: threads only wait for each other
import argparse, json, pathlib, time
import numpy as np
from malles.choicesets import build_occasions
from malles.covariates import ready
from malles.market import Market, fold_of
from malles.opponents import opponents
from malles.tuning import log_losses

UNORDERED = {"ketchup", "tuna"}
REFERENCE = {  # log-loss, five folds by household; tuna on 1,000 households
    "catsup": {"dirichlet": .984, "loyalty-logit": .754, "mixed-logit": .749, "lightgbm": .651, "lightgbm-monotone": .706},
    "catsup/price-blind": {"mixed-logit": .881, "lightgbm": .898},
    "ketchup": {"dirichlet": 1.080, "loyalty-logit": .904, "mixed-logit": .905, "lightgbm": .850, "lightgbm-monotone": .872},
    "tuna": {"dirichlet": 1.258, "loyalty-logit": 1.026, "mixed-logit": .983, "lightgbm": .699, "lightgbm-monotone": .937},
    "tuna/price-blind": {"mixed-logit": 1.251, "lightgbm": 1.280},
    "margarine": {"dirichlet": 1.400, "loyalty-logit": 1.287, "mixed-logit": 1.198, "lightgbm": 1.108, "lightgbm-monotone": 1.173},
}
TOLERANCE = .03

def load(folder, blind, customers, seed):
    market = Market.read(folder)
    market.ordered = market.name not in UNORDERED
    occasions = build_occasions(market, seed=seed, prices="blind" if blind else "given")
    who = np.unique(occasions.customer)
    if market.name == "tuna" and customers and len(who) > customers:
        occasions = occasions[np.isin(occasions.customer, np.random.default_rng(seed).permutation(who)[:customers])]
    return occasions

def five_folds(model, occasions):
    "Mean log-loss over all occasions, each predicted by a model that has not seen its household."
    fold, loss = fold_of(occasions.market, occasions.customers)[occasions.customer], np.full(len(occasions), np.nan)
    for k in range(5):
        o = ready(occasions, fold != k)
        fresh = (model if model.name == "transfer-logit" else type(model)()).fit(o[fold != k])
        loss[fold == k] = log_losses(fresh.predict(o[fold == k]).choice, o[fold == k].chosen)
    return loss.mean()

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", default="../shared/data")
    a.add_argument("--markets", nargs="*", default=list(REFERENCE))
    a.add_argument("--models", nargs="*")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--customers", type=int, default=1000, help="households of tuna, drawn by seed; 0 for all")
    a = a.parse_args()
    found, start = {}, time.time()
    print(f"{'market':20} {'model':18} {'log-loss':>8} {'reference':>9} {'differs':>8} {'seconds':>8}")
    for name in a.markets:
        source, _, blind = name.partition("/")
        occasions = load(pathlib.Path(a.data) / "panels" / source, bool(blind), a.customers, a.seed)
        elsewhere = [m for m in REFERENCE if "/" not in m and m != source]  # transfer-logit learns on them
        others = [ready(load(pathlib.Path(a.data) / "panels" / m, bool(blind), a.customers, a.seed)) for m in elsewhere]
        for model in opponents(occasions.ordered, others, a.models):
            begun, known = time.time(), REFERENCE.get(name, {}).get(model.name)
            loss = five_folds(model, occasions)
            found.setdefault(name, {})[model.name] = round(float(loss), 4)
            beside = f"{known:9.3f} {loss - known:+8.3f}" if known else " " * 18
            print(f"{name:20} {model.name:18} {loss:8.3f} {beside} {time.time() - begun:8.1f}", flush=True)
    worst = max((found[m][k] - v for m, r in REFERENCE.items() for k, v in r.items() if k in found.get(m, {})), default=None)
    print(json.dumps(dict(log_loss=found, worst_excess=None if worst is None else round(float(worst), 4), tolerance=TOLERANCE, holds=None if worst is None else bool(worst <= TOLERANCE), seed=a.seed, seconds=round(time.time() - start))))

if __name__ == "__main__": main()
