"""The paper's two regularisers in post-training, on customers that no model has seen: what each does to what it measures, to log-loss, to price response.

Three trainings that differ in nothing else (two renderings of every text in each): none, consistency, attention. Divergence: Jensen-Shannon between four answers under other orders and letters.
Attention: mass at the decision by field against the prior; the audit strikes a field out and measures the total variation of the answer. Price response: mean change of a product's probability when its price rises by a tenth.
    python benchmarks/regularisers.py --markets DIR [DIR ...] --out DIR [--fold 0] [--consistency 3] [--attention LINE]
"""
import argparse, json, os
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import pandas as pd
import torch
from malles.attention import attention_prior
from malles.attention_audit import audit
from malles.consistency import disagreement
from malles.evaluation import trial_markets, train_and_test
from malles.elicitation import LMChoice
from malles.lessons import PostRecipe
from malles.lm import LM
from malles.market import read_market
from malles.posttraining import posttrain_fold


def price_response(model, test):
    "Mean change of an alternative's probability, relative to p (1 - p), when its price alone rises by a tenth; NaN where no price is read."
    if not np.isfinite(test.price).any(): return np.nan
    J, change = test.mask.shape[1], []
    scenarios = [{}] + [dict(price=np.where(np.arange(J) == j, 1.1, 1.) * test.price) for j in range(J)]
    base, *others = (p.choice for p in model.what_if(test, scenarios))
    for j, p in enumerate(others):
        some = test.mask[:, j] & (base[:, j] > .02) & (base[:, j] < .98)
        change += ((p[some, j] - base[some, j]) / (base[some, j] * (1 - base[some, j]))).tolist()
    return -np.mean(change) / np.log(1.1)


def main(a):
    torch.set_num_threads(1)
    trials = [t for path in a.markets for t in trial_markets(read_market(path)) if t.headline]
    prior = attention_prior(a.attention)
    ways = dict(none=dict(consistency=1e-9), consistency=dict(consistency=a.consistency), attention=dict(consistency=1e-9, attention=a.attention))
    rows = []
    for way, kw in ways.items():
        folder = posttrain_fold([t.occasions for t in trials], a.fold, f"{a.out}/{way}", PostRecipe(epochs=a.epochs, **kw))
        for t in trials:
            train, test = train_and_test(t, "customer", a.fold)
            who = np.random.default_rng(0).permutation(np.unique(test.customer))[:a.customers]
            test, model = test[np.isin(test.customer, who)], LMChoice(LM.from_pretrained(str(folder))).fit(train)
            p = model.predict(test).choice
            looks = audit(model, test)
            mass = looks.mass[list(prior)].fillna(0) / looks.mass[list(prior)].fillna(0).sum()
            goal = pd.Series(prior)
            rows.append(dict(way=way, market=t.name, n=len(test), log_loss=-np.log(p[np.arange(len(p)), test.chosen]).mean(), divergence=disagreement(model, test, 4, ("order",)).jsd["order"],
                distance_to_prior=float((mass[mass > 0] * np.log(mass[mass > 0] / goal[mass > 0])).sum()), price_mass=float(mass.get("price", np.nan)), price_strike=float(looks.strike.get("price", np.nan)), price_response=price_response(model, test)))
    table = pd.DataFrame(rows).set_index(["market", "way"]).sort_index()
    print(table.round(4).to_string())
    mean = table.groupby("way").mean(numeric_only=True)
    ratio = lambda what, way: round(float((table.xs(way, level="way")[what] / table.xs("none", level="way")[what]).mean()), 3)
    print(json.dumps(dict(fold=a.fold, consistency_weight=a.consistency, divergence_ratio=ratio("divergence", "consistency"), log_loss_ratio=ratio("log_loss", "consistency"),
        attention_distance={k: round(float(mean.distance_to_prior[k]), 4) for k in ("none", "attention")}, attention_log_loss_ratio=ratio("log_loss", "attention"),
        price_response={k: round(float(v), 3) for k, v in mean.price_response.items()}, price_strike={k: round(float(v), 4) for k, v in mean.price_strike.items()})))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--markets", nargs="+", required=True); p.add_argument("--out", required=True); p.add_argument("--fold", type=int, default=0); p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--consistency", type=float, default=3.); p.add_argument("--attention", default="price .4, discount .2, quantity history .2, promotion .2"); p.add_argument("--customers", type=int, default=150)
    main(p.parse_args())
