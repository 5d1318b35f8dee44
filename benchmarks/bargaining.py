"""CraigslistBargain (He et al. 2018), 643 dialogues, first half of each: will they agree, and at what price? Ten folds by advertisement.

    python benchmarks/bargaining.py --data DIR [--epochs 6] [--folds 10] [--out benchmarks/results/bargaining.json]

DIR/dialogues.jsonl.gz. Every rival gets the parsed numbers: list price, targets, offers of both sides, turns, acts (`malles.dialogues.features`); the view `seller` goes without the buyer's target.
Boosting is tuned inside the training folds, for price (absolute error) and agreement (log-loss) apart. `first guess`: boosted trees of fixed settings, three seeds, prices learnt from cuts two turns either way too (`malles.dialogues.first_guess`); nano reads it beside the numbers.
`nano`: the mean, half and half, of what taught nano says and the first guess (deal and price); `nano alone`: without that.
nano is post-trained on the training folds in its compact dialect, cut half way and a turn before and after it, one distribution over seven prices and no deal; its epochs are chosen on a tenth of the training dialogues of each fold, its rate (of 3e-4 and 1e-3) on the first three folds.
Price error: mean absolute error of price / list price on dialogues that ended in a deal. Intervals are paired and clustered by advertisement (price), or a bootstrap of advertisements (AUC).
"""
import argparse, gzip, hashlib, json, os, tempfile, time
os.environ.setdefault("HF_HUB_OFFLINE", "1"); os.environ.setdefault("TQDM_DISABLE", "1")
import numpy as np, pandas as pd, torch
from datasets import concatenate_datasets
from sklearn.metrics import roc_auc_score
from transformers.utils import logging
from malles.decisions import to_sft
from malles.dialogues import as_occasions, ending, features, first_guess, price_grid
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.metrics import clustered_mean
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer


def boosted(X, y, test, objective, seed=0):
    "LightGBM; its settings by five folds of the training rows."
    import lightgbm as lgb
    data = lambda rows: lgb.Dataset(X.iloc[rows], y[rows], free_raw_data=False)
    parts, best = np.random.default_rng(seed).permutation(len(y)) % 5, (np.inf, None, 0)
    for leaves in (3, 6, 12):
        for least in (5, 20):
            for rate in (.03, .1):
                params = dict(objective=objective, num_leaves=leaves, min_data_in_leaf=least, learning_rate=rate, bagging_fraction=.8, bagging_freq=1, feature_fraction=.7, verbosity=-1, seed=seed, num_threads=1, deterministic=True)
                curve = lgb.cv(params, data(np.arange(len(y))), 300, folds=[(np.flatnonzero(parts != k), np.flatnonzero(parts == k)) for k in range(5)], metrics="l1" if objective == "l1" else "binary_logloss")
                loss = next(v for k, v in curve.items() if k.endswith("mean"))
                if min(loss) < best[0]: best = min(loss), params, int(np.argmin(loss)) + 1
    return lgb.train(best[1], data(np.arange(len(y))), best[2]).predict(test)


def taught(looks, learn, inner, epochs, seed=0):
    "nano after so many passes, each over the next of the looks at the same dialogues; the pass of the lowest log-loss on the inner dialogues (first look) is kept."
    lm = LM.from_pretrained("nano")
    rows = concatenate_datasets([to_sft(looks[e % len(looks)][learn], seed=1000 + seed * 100 + e) for e in range(epochs)])
    check = to_sft(looks[0][inner], seed=0)
    with tempfile.TemporaryDirectory() as work:
        args = ChoiceSFTConfig(work, learning_rate=3e-4, num_train_epochs=1, lr_scheduler_type="linear", warmup_steps=10, adam_beta2=.98, weight_decay=.01, seed=seed, eval_strategy="steps", eval_steps=1 / epochs, save_strategy="steps", save_steps=1 / epochs, save_total_limit=2,
            load_best_model_at_end=True, metric_for_best_model="eval_log_loss", greater_is_better=False, logging_steps=10**9, disable_tqdm=True, batch_tokens=2048)
        trainer = ChoiceSFTTrainer(lm.model, args, rows, check, processing_class=lm.tokenizer)
        trainer.train()
    return LMChoice(LM(trainer.model, lm.tokenizer, "nano", lm.card), facts=False, orders=4)


def main(a):
    torch.set_num_threads(1); logging.set_verbosity_error(); logging.disable_progress_bar()
    with gzip.open(f"{a.data}/dialogues.jsonl.gz", "rt") as f: dialogues = [json.loads(x) for x in f]
    agreed = np.array([d["outcome"]["agreed"] for d in dialogues])
    ratio = np.array([(d["outcome"]["price"] if g else np.nan) / d["context"]["list_price"] for d, g in zip(dialogues, agreed)], float)
    ad = np.array([str(d["context"]["post_id"]) for d in dialogues])
    fold = np.array([int(hashlib.sha256(x.encode()).hexdigest(), 16) % 10 for x in ad])
    out = {}
    for view in ("full", "seller"):
        tables, n = [features(dialogues, view == "full", k) for k in (0, -1, 1, -2, 2)], len(agreed)
        table = tables[0]
        price = {k: np.full(n, np.nan) for k in ("median of all", "half way", "boosting", "first guess", "nano, untaught", "nano alone", "nano")}
        deal = {k: np.full(n, np.nan) for k in ("boosting", "first guess", "nano, untaught", "nano alone", "nano")}
        for k in range(a.folds):
            t, out_ = time.time(), fold == k
            rng = np.random.default_rng(k)
            learn = np.flatnonzero(~out_)
            inner = np.isin(ad, rng.permutation(np.unique(ad[learn]))[:len(np.unique(ad[learn])) // 10]) & ~out_
            test, known = np.flatnonzero(out_), learn[agreed[learn]]
            price["median of all"][test], price["half way"][test] = np.median(ratio[known]), price_grid(table)[test, 3]
            X = table.assign(half_way=price_grid(table)[:, 3])
            price["boosting"][test] = boosted(X.iloc[known].reset_index(drop=True), ratio[known], X.iloc[test], "l1")
            deal["boosting"][test] = boosted(X.iloc[learn].reset_index(drop=True), agreed[learn].astype(float), X.iloc[test], "binary")
            guesses = [first_guess([cut, *(x for x in tables if x is not cut)], agreed, ratio, ~out_, ad) for cut in tables[:3]]
            looks, guess = [as_occasions(cut, agreed, ratio, g) for cut, g in zip(tables, (p for p, _ in guesses))], guesses[0]
            model = taught(looks, np.flatnonzero(~out_ & ~inner), np.flatnonzero(inner), a.epochs, k)
            told = {"first guess": (1 - guess[0][test, -1], guess[1][test])}
            for name, m in {"nano, untaught": LMChoice.nano(facts=False, orders=4), "nano alone": model}.items(): told[name] = ending(m.predict(looks[0][test]).choice, table.iloc[test])
            told["nano"] = [(x + y) / 2 for x, y in zip(told["first guess"], told["nano alone"])]
            for name, (d, p) in told.items(): deal[name][test], price[name][test] = d, p
            print(view, k, f"{time.time() - t:.0f} s", flush=True)
        done = fold < a.folds
        good = agreed & done
        rows = []
        for name in price:
            e = np.abs(price[name] - ratio)[good]
            base = np.abs(price["boosting"] - ratio)[good]
            diff, low, high, _ = clustered_mean(e - base, ad[good])
            r = dict(view=view, model=name, price_error=e.mean(), median_error=float(np.median(e)), minus_boosting=diff, low=low, high=high)
            if name in deal:
                rng, ads = np.random.default_rng(0), np.unique(ad[done])
                of = {x: np.flatnonzero((ad == x) & done) for x in ads}
                auc = lambda who, i: roc_auc_score(agreed[i], deal[who][i])
                boot = []
                for _ in range(400):
                    i = np.concatenate([of[x] for x in rng.choice(ads, len(ads))])
                    boot.append(auc(name, i) - auc("boosting", i))
                i = np.flatnonzero(done)
                r |= dict(log_loss=-np.log(np.where(agreed, deal[name], 1 - deal[name]).clip(1e-6))[done].mean(), auc=auc(name, i), auc_minus_boosting=auc(name, i) - auc("boosting", i), auc_low=np.quantile(boot, .025), auc_high=np.quantile(boot, .975))
            rows.append(r)
        out[view] = rows
        print(pd.DataFrame(rows).round(4).to_string(index=False), flush=True)
        with open(a.out, "w") as f: json.dump(dict(n=int(done.sum()), deals=int(good.sum()), folds=a.folds, epochs=a.epochs, rows=out), f, indent=1)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True); p.add_argument("--epochs", type=int, default=6); p.add_argument("--folds", type=int, default=10); p.add_argument("--out", default="benchmarks/results/bargaining.json")
    main(p.parse_args())
