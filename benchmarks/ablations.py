"""What the choices behind nano's text and training are worth: small models, one thing changed at a time, on simulated markets only.

    python benchmarks/ablations.py --out runs/ablations [--steps 400] [--results benchmarks/results/ablations.json]

Each variant trains a model of 64 x 3 on the same seeds (a stopped run continues) and is read on simulated markets of other seeds:
expected log-loss, tokens per decision, seconds. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd
import malles.pretraining, malles.receipts
from malles.elicitation import LMChoice
from malles.reading import packs
from malles.folders import replace_file
from malles.lm import LM
from malles.network import Recipe
from malles.pretraining import pretrain
from malles.texts import sample_texts
from malles.metrics import cross_entropy
from malles.validation import unseen_market

BASE = dict(width=64, layers=3, heads=2, inner=176, tokens=4000, warmup=40, seed=1)

@contextmanager
def changed(module, **values):
    "Some names of a module replaced for a while."
    before = {k: getattr(module, k) for k in values}
    for k, v in values.items(): setattr(module, k, v)
    try: yield
    finally:
        for k, v in before.items(): setattr(module, k, v)

def one_draw(*args):
    "Texts with the draw as target, not the probabilities that it was drawn from."
    t = sample_texts(*args)
    hit = np.where(t.slot[:, None] >= 0, np.arange(t.chance.shape[1]) == t.slot[:, None], t.chance)
    rng, told = np.random.default_rng(args[:2]), t.pieces.sum(1) > 0
    draw = (rng.random((len(t.slot), 1)) > t.pieces.cumsum(1)[:, :-1]).sum(1)
    return replace(t, chance=hit.astype(float), pieces=np.where(told[:, None], np.arange(20) == draw[:, None], 0).astype(float))

def no_word(occasions): return np.full(occasions.mask.shape, np.nan)

VARIANTS = {
    "as shipped": (dict(), None, {}),
    "half the learning rate": (dict(rate=Recipe.rate / 2), None, {}),
    "twice the learning rate": (dict(rate=Recipe.rate * 2), None, {}),
    "one draw as target": (dict(), malles.pretraining, dict(sample_texts=one_draw)),
    "no guess in the text": (dict(), malles.receipts, dict(worth=no_word)),
    "no earlier visits in sight": (dict(), malles.receipts, dict(STRIDE=1, OVERLAP=0)),
    "2 to 5 earlier visits in sight": (dict(), malles.receipts, dict(STRIDE=4, OVERLAP=2)),
}

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True); a.add_argument("--steps", type=int, default=400); a.add_argument("--markets", type=int, default=40)
    a.add_argument("--results", type=Path, default=Path("benchmarks/results/ablations.json"))
    a = a.parse_args()
    rows = []
    for name, (settings, module, values) in VARIANTS.items():
        recipe, start = Recipe(**{**BASE, "steps": a.steps, **settings}), time.time()
        with changed(module, **values):
            model = LMChoice(LM.from_pretrained(str(pretrain(a.out/name.replace(" ", "-"), recipe))))
            seconds, loss, tokens = time.time() - start, [], []
            for o in map(unseen_market, range(3000, 3000 + a.markets)):
                loss.append(cross_entropy(o.alternative("true_probability", 0.), model.predict(o).choice)); tokens.append(sum(map(len, packs(o).texts)))
        loss = np.concatenate(loss)
        rows.append(dict(variant=name, log_loss=round(float(loss.mean()), 4), tokens_per_decision=round(sum(tokens) / len(loss), 1), seconds=round(seconds)))
        print(rows[-1], flush=True)
    replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=rows, steps=a.steps, recipe=BASE), indent=1) + "\n"))
    print(pd.DataFrame(rows).to_string(index=False))
    print(json.dumps({r["variant"]: r["log_loss"] for r in rows}))

if __name__ == "__main__": main()
