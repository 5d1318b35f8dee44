"The held-out customers of markets as questions for lm-evaluation-harness. `python benchmarks/lm_eval/write_docs.py MARKET_FOLDER ... --fold 0 --out malles_bench.jsonl`"
import argparse, json
from pathlib import Path

import numpy as np

from malles.chat import LETTERS, questions
from malles.evaluation import train_and_test, trial_markets
from malles.market import read_market


def docs(trial, fold, most, seed=0):  # yields records
    "Purchases of customers that no training fold holds, at most so many, drawn by seed; headline reading of the market."
    _, test = train_and_test(trial, "customer", fold)
    kept = np.sort(np.random.default_rng(seed).permutation(len(test))[:most])
    asked, order = questions(test[kept], seed)
    for q, o, chosen in zip(asked, order, test[kept].chosen):
        at = np.flatnonzero(o == chosen)
        if len(at): yield dict(market=trial.name, question=q.text, letters=list(LETTERS[:len(q.keys)]), answer=int(at[0]))   # a choice outside the 26 likeliest has no letter


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("markets", nargs="+", type=Path)
    p.add_argument("--fold", type=int, default=0, choices=range(5))
    p.add_argument("--most", type=int, default=500, help="questions of each market (default 500)")
    p.add_argument("--out", type=Path, default=Path("malles_bench.jsonl"))
    a = p.parse_args()
    lines = [json.dumps(d, ensure_ascii=False) for m in a.markets for d in docs(trial_markets(read_market(m))[0], a.fold, a.most)]
    a.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines):,} questions in {a.out}")


if __name__ == "__main__": main()
