"""CaSiNo (Chawla et al. 2021), 930 dialogues, first half of each as one camper sees it: how many of each good will be his, and which does the other want most? Ten folds by dialogue.

    python benchmarks/divisions.py --data DIR [--epochs 2] [--folds 10] [--out benchmarks/results/divisions.json]

DIR/dialogues.jsonl.gz. A row is (dialogue, camper, good); he knows his own priorities and what was said, not the other's priorities (`malles.divisions.features`). Pieces: the 906 dialogues with an agreement; wishes: all.
`shares of all`: of the training folds; `shares by his wish`: the same, apart for his first, second and third good. `logit`: multinomial, standardised, its penalty by five folds of the training dialogues. `first guess`: boosted trees of fixed settings, three seeds (`malles.divisions.first_guess`, `wanted_guess`). The logit reads the same columns, medians and a mark where a number is missing.
nano reads the first guess beside the numbers, untaught and post-trained on the training folds; its epochs are chosen on a tenth of the training dialogues, its settings are those of `benchmarks/bargaining.py`.
log_loss and hit (the likeliest number; ties share) per row; error is that of the median number, in pieces. Wish: the good of the highest chance in each view. Intervals are paired and clustered by dialogue.
"""
import argparse, gzip, hashlib, json, os, time
os.environ.setdefault("HF_HUB_OFFLINE", "1"); os.environ.setdefault("TQDM_DISABLE", "1")
import numpy as np, pandas as pd, torch
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.utils import logging
from bargaining import taught
from malles.divisions import as_occasions, endings, features, first_guess, wanted_guess
from malles.elicitation import LMChoice
from malles.metrics import clustered_mean


def logit(X, y, learn, test, ids):
    "Multinomial logit of scikit-learn; (test, classes)."
    make = lambda C: make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler(), LogisticRegression(C=C, max_iter=1000))
    score = {C: cross_val_score(make(C), X[learn], y[learn], groups=ids[learn], cv=GroupKFold(5), scoring="neg_log_loss").mean() for C in (.003, .01, .03, .1, 1.)}
    return make(max(score, key=score.get)).fit(X[learn], y[learn]).predict_proba(X[test])


def shares(y, learn, cell):
    "(n, K) shares of the training rows with the same mark."
    table = pd.crosstab(cell[learn], y[learn], normalize="index").reindex(columns=range(int(y[learn].max()) + 1), fill_value=0)
    return table.loc[cell].to_numpy()


def scores(p, y):
    "Log-loss, absolute error of the median number, hit; each (n,)."
    below, n, best = p.cumsum(1), np.arange(len(y)), p == p.max(1, keepdims=True)
    median = ((below < .5 - 1e-9).sum(1) + (below <= .5 + 1e-9).sum(1)) / 2        # half way where two numbers will do
    return dict(log_loss=-np.log(p[n, y].clip(1e-6)), error=np.abs(median - y), hit=best[n, y] / best.sum(1))


def wish_hits(p, wanted, view):
    "(views,) did the likeliest good turn out to be wanted most? Ties share."
    f = pd.DataFrame(dict(p=p, w=wanted, view=view))
    best = f.p >= f.groupby("view").p.transform("max") - 1e-12
    return (best & f.w).groupby(f.view).sum() / best.groupby(f.view).sum()


def compared(per, ids, base):
    "Means and paired differences from one of them, with intervals."
    out = []
    for name, s in per.items():
        r = dict(model=name)
        for k, v in s.items():
            r[k] = float(np.mean(v))
            for b in base:
                d = clustered_mean(v - per[b][k], ids)[:3] if b != name else (0., 0., 0.)
                r |= {f"{k}_minus_{b}": float(d[0]), f"{k}_minus_{b}_low": float(d[1]), f"{k}_minus_{b}_high": float(d[2])}
        out.append(r)
    return out


def main(a):
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    with gzip.open(f"{a.data}/dialogues.jsonl.gz", "rt") as f: dialogues = [json.loads(x) for x in f]
    table, ended = features(dialogues), endings(dialogues)
    ids, view = table.index.get_level_values(0).to_numpy(), np.array(["/".join(x[:2]) for x in table.index])
    pieces, wanted, agreed = ended.pieces.to_numpy(), ended.wanted.to_numpy(), ended.pieces.notna().to_numpy()
    fold = np.array([int(hashlib.sha256(x.encode()).hexdigest(), 16) % 10 for x in ids])
    X, whole = pd.get_dummies(table, columns=["good"]).astype(float), np.where(agreed, pieces, 0).astype(int)
    K, n = int(table.stock.max()) + 1, len(table)
    even = np.abs(np.arange(K) - table.stock.to_numpy()[:, None] / 2) < 1
    p = {k: np.full((n, K), np.nan) for k in ("equal split", "shares of all", "shares by his wish", "logit", "first guess", "nano, untaught", "nano")}
    wish = {k: np.full(n, np.nan) for k in ("any", "shares by his wish", "first named", "most asked", "logit", "first guess")}
    p["equal split"], wish["any"] = even / even.sum(1, keepdims=True), np.ones(n)
    wish["first named"], wish["most asked"] = -table.his_place.to_numpy(float), -table.his_last.fillna(table.stock / 2).to_numpy()
    for k in range(a.folds):
        t, test = time.time(), fold == k
        learn, ask = ~test & agreed, test & agreed
        names = np.random.default_rng(k).permutation(np.unique(ids[~test]))
        inner = np.isin(ids, names[:len(names) // 10]) & learn
        p["shares of all"][test] = shares(whole, learn, np.zeros(n, int))[test]
        p["shares by his wish"][test] = shares(whole, learn, table.better.to_numpy())[test]
        p["logit"][test] = logit(X, whole, learn, test, ids)
        guess = first_guess(table, pieces, ~test)
        p["first guess"][test] = guess[test]
        wish["shares by his wish"][test] = shares(wanted.astype(int), ~test, table.better.to_numpy())[test, 1]
        wish["logit"][test] = logit(X, wanted, ~test, test, ids)[:, 1]
        wish["first guess"][test] = wanted_guess(table, wanted, ~test)[test]
        print(k, f"{time.time() - t:.0f} s without nano", flush=True)
        look = as_occasions(table, pieces, guess)                                     # occasion i is the i-th row with an agreement
        told = {"nano, untaught": LMChoice.nano(facts=False, orders=4), "nano": taught([look], np.flatnonzero((learn & ~inner)[agreed]), np.flatnonzero(inner[agreed]), a.epochs, k)}
        for name, m in told.items(): p[name][ask] = m.predict(look[np.flatnonzero(ask[agreed])]).choice
        done = np.isin(fold, range(k + 1)) & agreed
        print(k, f"{time.time() - t:.0f} s", {name: round(float(scores(v[done], whole[done])["log_loss"].mean()), 4) for name, v in p.items()}, flush=True)
    done = (fold < a.folds) & agreed
    rows = compared({k: scores(v[done], whole[done]) for k, v in p.items()}, ids[done], ("logit", "first guess"))
    for r in rows:
        if r["model"] == "equal split":                                                # it gives no chance to what often happens
            for k in [k for k in r if k.startswith("log_loss")]: r[k] = None
    asked = fold < a.folds
    hits = {k: wish_hits(v[asked], wanted[asked], view[asked]) for k, v in wish.items()}
    wishes = compared({k: dict(hit=h.to_numpy()) for k, h in hits.items()}, np.array([x.split("/")[0] for x in hits["logit"].index]), ("logit", "shares by his wish"))
    print(pd.DataFrame(rows).round(4).T.to_string(header=False)); print(pd.DataFrame(wishes).round(4).T.to_string(header=False))
    result = dict(dialogues=int(pd.unique(ids[asked]).size), agreed=int(pd.unique(ids[done]).size), rows=int(done.sum()), views=len(hits["logit"]), folds=a.folds, epochs=a.epochs, pieces=rows, wishes=wishes)
    with open(a.out, "w") as f: json.dump(result, f, indent=1)
    print(json.dumps(dict(log_loss={r["model"]: r["log_loss"] and round(r["log_loss"], 4) for r in rows}, error={r["model"]: round(r["error"], 4) for r in rows}, hit={r["model"]: round(r["hit"], 4) for r in rows}, wish={r["model"]: round(r["hit"], 4) for r in wishes})))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True); p.add_argument("--epochs", type=int, default=2); p.add_argument("--folds", type=int, default=10); p.add_argument("--out", default="benchmarks/results/divisions.json")
    main(p.parse_args())
