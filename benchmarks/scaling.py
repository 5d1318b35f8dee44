"""What a larger model or more simulated text would buy: log-loss against parameters and tokens read.

    python benchmarks/scaling.py --out runs/scaling [--data ../shared/data] [--minutes M] [--results benchmarks/results/scaling.json]

Trains the shapes below on simulated shoppers (each to the end of its own schedule; a stopped run continues), and scores them
beside the shipped nano: expected log-loss on simulated markets of other seeds, and, with --data, five folds of the real
panels and of 2,000 customers of Ta-Feng. No gradient on a real record. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time
from pathlib import Path
import numpy as np, pandas as pd
from malles.elicitation import LMChoice
from malles.evaluation import train_and_test, trial_markets
from malles.folders import replace_file
from malles.lm import LM
from malles.market import read_market
from malles.network import Recipe
from malles.pretraining import pretrain
from malles.tuning import log_losses
from malles.metrics import cross_entropy
from malles.validation import unseen_market

SHAPES = [dict(width=32, layers=2, heads=1, inner=88), dict(width=64, layers=3, heads=2, inner=176), dict(width=128, layers=4, heads=4, inner=344)]
STEPS = {32: (250, 1000), 64: (250, 1000), 128: (250,)}   # of 4,000 tokens
MARKETS = ("panels/catsup", "panels/ketchup", "panels/margarine", "panels/tuna", "tafeng")

def simulated(model, markets=40):
    "Expected log-loss of a choice on simulated markets: cross-entropy with the true probabilities, so that no draw blurs it."
    loss = [cross_entropy(o.alternative("true_probability", 0.), model.predict(o).choice) for o in map(unseen_market, range(2000, 2000 + markets))]
    return float(np.concatenate(loss).mean())

def real(model, trials):
    "Five folds of each market's headline reading."
    out = {}
    for t in trials:
        parts = []
        for fold in range(5):
            train, test = train_and_test(t, "customer", fold)
            parts.append(log_losses(model.fit(train).predict(test).choice, test.chosen))
        out[t.name] = round(float(np.concatenate(parts).mean()), 4)
    return out

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True); a.add_argument("--data", type=Path); a.add_argument("--minutes", type=float, help="of training, for each model that is not finished")
    a.add_argument("--results", type=Path, default=Path("benchmarks/results/scaling.json"))
    a = a.parse_args()
    trials = [trial_markets(read_market(a.data/m), customers=2000 if m == "tafeng" else None)[0] for m in MARKETS] if a.data else []
    rows, start = [], time.time()
    for shape in SHAPES:
        for steps in STEPS[shape["width"]]:
            recipe = Recipe(**shape, steps=steps, tokens=4000, warmup=40, seed=1)
            folder = pretrain(a.out/f"w{shape['width']}-s{steps}", recipe, minutes=a.minutes)
            rows.append((f"w{shape['width']}-s{steps}", LM.from_pretrained(str(folder))))
    rows.append(("nano", LM.from_pretrained("nano")))
    table = []
    for name, lm in rows:
        recipe, done = lm.card["recipe"], lm.card["step"]
        model = LMChoice(lm)
        row = dict(model=name, parameters=lm.parameters, tokens=done * recipe["tokens"], finished=done == recipe["steps"], simulated=round(simulated(model), 4)) | real(model, trials)
        table.append(row); print(row, flush=True)
    replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=table, seconds=round(time.time() - start)), indent=1) + "\n"))
    print(pd.DataFrame(table).to_string(index=False))
    print(json.dumps({r["model"]: {k: v for k, v in r.items() if k != "model"} for r in table}))

if __name__ == "__main__": main()
