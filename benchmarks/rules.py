"""Are planted laws found? Five laws of economics with noise, 300 rows each: is the right form, whatever its constants, on the front of `search_rules`, and is it the chosen rule?

    python benchmarks/rules.py [--noise .05] [--seeds 0 1] [--results FILE]

A rule has the form of a law if some constants make the law agree with it to a millionth of its spread on the rows of the table. The last line is JSON.
"""
import argparse, json, time
from pathlib import Path
import numpy as np, pandas as pd
from scipy.optimize import least_squares
from malles.folders import replace_file
from malles.rules import search_rules, value

LAWS = {  # constants, table -> what the law says; the planted constants
    "constant elasticity": (lambda c, t: c[0] * t.price**c[1], (40., -1.7)),
    "economic order quantity": (lambda c, t: c[0] * np.sqrt(t.demand * t.fixed / t.holding), (np.sqrt(2),)),
    "newsvendor, exponential demand": (lambda c, t: c[0] * t["mean"] * np.log(abs(c[1]) * t.price / t.cost), (1., 1.)),
    "discount threshold": (lambda c, t: c[0] * np.maximum(0, t.depth - c[1]), (3., .15)),
    "logit utility with interaction": (lambda c, t: c[0] + c[1] * t.price + c[2] * t.promotion * t.price, (.5, -1.2, .8)),
}
ADDITIVE = ("discount threshold", "logit utility with interaction")     # their noise is added, of the others' a factor
RANGES = {"constant elasticity": dict(price=(1, 5), age=(20, 70)), "economic order quantity": dict(demand=(50, 500), fixed=(20, 80), holding=(.5, 4)), "newsvendor, exponential demand": dict(mean=(5, 50), price=(3, 10), cost=(.5, 2.5)),
    "discount threshold": dict(depth=(0, .5), age=(20, 70)), "logit utility with interaction": dict(price=(0, 3), promotion=(0, 2))}


def planted(name, noise, seed, rows=300):
    rng, (law, constants) = np.random.default_rng(seed), LAWS[name]
    t = pd.DataFrame({c: rng.uniform(*ends, rows) for c, ends in RANGES[name].items()})
    if "promotion" in t: t["promotion"] = np.floor(t.promotion)             # on or off
    y = np.asarray(law(constants, t))
    return t.assign(y=y + noise * y.std() * rng.normal(size=rows) if name in ADDITIVE else y * np.exp(noise * rng.normal(size=rows)))


def has_form(said, name, table):  # said: (rows,) of a rule
    law, constants = LAWS[name]
    spread = max(np.std(said), 1e-12)
    fit = least_squares(lambda c: (np.asarray(law(c, table)) - said) / spread, constants, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    return bool(np.abs(fit.fun).max() < 1e-6)


def main(a):
    rows = []
    for name in LAWS:
        for seed in a.seeds:
            table = planted(name, a.noise, seed)
            start = time.perf_counter()
            book = search_rules(table, "y", seed=seed, seconds=60)
            seconds = time.perf_counter() - start
            columns = {s: table[c].to_numpy(float) for s, c in book.trial.symbols.items()}
            right = [has_form(np.broadcast_to(value(f, columns), len(table)).astype(float), name, table) for f in book.front.form]
            rows.append(dict(law=name, seed=seed, on_front=any(right), chosen=bool(np.array(right)[book.front.chosen.to_numpy()].any()), seconds=round(seconds, 1), rule=str(book.rule)))
            print(rows[-1], flush=True)
    out = dict(noise=a.noise, recovered=sum(r["on_front"] for r in rows), chosen=sum(r["chosen"] for r in rows), of=len(rows), slowest_seconds=max(r["seconds"] for r in rows))
    if out["of"] == 10: out["recovered_of_10"] = out["recovered"]
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=rows, **out), indent=1) + "\n"))
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--noise", type=float, default=.05); p.add_argument("--seeds", nargs="+", type=int, default=[0, 1]); p.add_argument("--results", type=Path)
    main(p.parse_args())
