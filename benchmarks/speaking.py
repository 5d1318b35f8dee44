"""What messages in words are worth where roles do not see the same: the shopper reads prices and promotions alone, one helper the household's past, one the crowd.

    python benchmarks/speaking.py --markets ../shared/data/panels/margarine ... [--fold 0] [--most 1500] [--epochs 3] [--out DIR] [--results FILE]

Customers of the fold have been seen by nobody. `numbers only`: nano as it is; `deaf`: the model taught to speak, the words on its listener's receipt struck out; `all see all`: no role's view is cut, nobody speaks in words; `alone`: nano reads everything at once.
Differences: words minus the row, intervals by customer. The last line is JSON.
"""
import argparse, json, os, tempfile, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
from pathlib import Path
import numpy as np, pandas as pd
from malles.discussion import Discussion
from malles.elicitation import LMChoice
from malles.evaluation import trial_markets
from malles.folders import replace_file
from malles.lessons import PostRecipe, parts
from malles.market import read_market
from malles.metrics import clustered_mean
from malles.roles import Role
from malles.speaking import SpeakingLM, teach_to_speak

HELPERS = [Role("habits", "knows the household", fields=("history", "crowd"), order="own", history=4), Role("crowd", "knows what others buy", fields=("crowd",))]
SHOPPER = Role("shopper", "sees prices, and decides", fields=("price", "promotion"))


class Deaf(SpeakingLM):
    def hear(self, desk, helpers, rank, because): return super().hear(desk, helpers, 0 * rank, because)


def main(a):
    start, rows = time.time(), []
    for path in a.markets:
        trial = next(t for t in trial_markets(read_market(path)) if t.headline)
        o = trial.occasions[trial.occasions.chosen >= 0]
        test, nano = parts(o, a.fold)[2], LMChoice.nano()
        test = test[np.sort(np.random.default_rng(0).permutation(len(test))[:a.decisions])]
        spoken = teach_to_speak(Discussion(nano, HELPERS, SHOPPER, 1), o, Path(a.out or tempfile.mkdtemp())/trial.name.replace("/", "-"), a.fold, PostRecipe(epochs=a.epochs, said=1.), a.most)
        whole = [Role(h.name, h.goal, order=h.order, history=h.history) for h in HELPERS]
        told = {"hears": spoken.discuss(test), "deaf": Discussion(Deaf(spoken.model.lm), HELPERS, SHOPPER, 1).discuss(test), "numbers only": Discussion(nano, HELPERS, SHOPPER, 1).discuss(test), "all see all": Discussion(nano, whole, Role("shopper", ""), 1).discuss(test)}
        turns = [t for t in told["hears"].turns if t.handed is not None]
        first = np.mean(np.concatenate([t.handed[:, 0] == t.place[np.arange(len(t.rows)), np.where(t.place >= 0, t.score, -np.inf).argmax(1)] for t in turns if len(t.rows)]))
        choice = {k: t.choice() for k, t in told.items()} | dict(alone=nano.predict(test).choice)
        n = np.arange(len(test))
        loss, hit = ({k: f(p) for k, p in choice.items()} for f in (lambda p: -np.log(np.maximum(p[n, test.chosen], 1e-9)), lambda p: p.argmax(1) == test.chosen))
        for k in choice:
            gap, low, high, _ = clustered_mean(loss["hears"] - loss[k], test.customer)
            rows.append(dict(market=trial.name, row=k, n=len(test), log_loss=loss[k].mean(), hit_rate=hit[k].mean(), words_minus_row=gap, low=low, high=high, first_as_thought=first if k == "hears" else None))
        print(pd.DataFrame(rows[-len(choice):]).round(4).to_string(index=False), flush=True)
    summary = dict(speaking={f"{r['market']} {r['row']}": round(r["log_loss"], 4) for r in rows}, seconds=round(time.time() - start))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=json.loads(pd.DataFrame(rows).round(4).to_json(orient="records")), **summary), indent=1) + "\n"))
    print(json.dumps(summary))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--markets", nargs="+", type=Path, required=True); p.add_argument("--fold", type=int, default=0); p.add_argument("--most", type=int, default=1500); p.add_argument("--decisions", type=int, default=1500)
    p.add_argument("--epochs", type=int, default=3); p.add_argument("--out"); p.add_argument("--results", type=Path)
    main(p.parse_args())
