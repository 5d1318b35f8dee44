"""Is a customer's past in other categories worth anything on his first visit to a category? Ta-Feng and Complete Journey.

    python benchmarks/across.py --data ../shared/data [--customers 3000] [--folds 0 1] [--model POSTTRAINED_FOLDER] [--results benchmarks/results/across.json]

First, does a trait cross: split-half correlations of price tier and private label over categories. Then, on occasions that are a customer's first in their category while
he has a history elsewhere, log-loss of held-out customers: popularity, logits that carry traits over, running tastes, nano and a post-trained nano with and without the other
categories, and (an experiment) guesses tilted by one scoring step on what is carried. Differences are paired, with 95 % intervals clustered by customer. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, time, warnings
from copy import copy
from pathlib import Path
import numpy as np, pandas as pd
from malles.across import AcrossLogit, carried, dealt_anew, first_visits, receipt_lines, split_half, standing, with_history, with_standing
from malles.charts import history_bin
from malles.contenders import reader
from malles.evaluation import paired, pool, score, train_and_test, trial_markets
from malles.facts import leaning
from malles.folders import replace_file
from malles.market import Market, read_market
from malles.metrics import clustered_mean
from malles.posttraining import PostTrained
from malles.predictions import ChoiceModel, Popularity, Predictions, softmax
from malles.tastes import RunningTastes

CARRIED = "log_price elsewhere"
CUSTOMERS = 6000   # of Ta-Feng, drawn by seed, in choices among classes over all of its categories

def lines_of(market):
    "Receipt lines with category, log price and, where products have a label, whether it is a private one."
    lines, products = market.transactions, market.products
    if "category" not in lines: lines = lines.merge(products[["product_id", "category", "brand"]], on="product_id")
    lines = lines[lines.category.notna() & lines.customer_id.notna()].astype(dict(customer_id=str, category=str, product_id=str))
    if "brand" in lines: lines = lines.assign(private=(lines.brand == "Private").astype(float))
    return lines.assign(log_price=np.log(lines.unit_price.where(lines.unit_price > 0)))[["customer_id", "time", "category", "product_id", "quantity", "log_price", *(["brand", "private"] if "brand" in lines else [])]]

def correlations(name, lines):
    "Split-half correlations over categories, as recorded and dealt anew."
    rows = []
    for value in [v for v in ("log_price", "private") if v in lines]:
        stands = with_standing(lines, standing(lines, value))
        for least in (3, 5, 8, 15): rows.append(dict(market=name, trait=value, least=least) | split_half(stands, least) | dict(dealt_anew=split_half(dealt_anew(stands), least)["correlation"]))
    return rows

def by_class(name, lines, column, least=50):
    "A market whose alternatives are the classes of products in a category, one choice per customer, time and category, where each class sold `least` lines; and all lines, class by class."
    count = lines.groupby(["category", column]).size().unstack().fillna(0)
    lines = lines.assign(product_id=lines[column].astype(str))
    one = lines[lines.category.isin(count.index[(count >= least).all(axis=1)])].sort_values("quantity", ascending=False, kind="stable").drop_duplicates(["customer_id", "time", "category"]).sort_values(["customer_id", "time", "category"])
    classes = np.unique(lines.product_id)
    rows = one.loc[one.index.repeat(len(classes)), ["customer_id", "category", "time", "quantity"]].reset_index(drop=True)
    rows = rows.assign(occasion_id=np.repeat(np.arange(len(one)), len(classes)), product_id=np.tile(classes, len(one)), chosen=(one.product_id.to_numpy()[:, None] == classes).ravel())
    return Market.from_frames(name, choices=rows.assign(quantity=rows.quantity.where(rows.chosen, 0))), lines

class Tilted(ChoiceModel):
    "A guess times what other categories say: one scoring step per category from the crowd's shares, no gradient."
    def __init__(self, model, across, train, name):   # fitted models, first visits of training customers
        seen = across.carry(train)
        self.model, self.across, self.name = model, across, name
        self.lean = leaning(seen, seen.alternative(CARRIED)[..., None], np.array([5.]), np.array([1.]))[:, 0]
    def tilt(self, occasions): return np.nan_to_num(self.lean[occasions.category][:, None] * self.across.carry(occasions).alternative(CARRIED))
    def predict(self, occasions, mu=None): return Predictions(softmax(np.where(occasions.mask, np.log(np.maximum(self.model.predict(occasions).choice, 1e-12)) + self.tilt(occasions), -np.inf)), name=self.name)

class TiltedTaste(Tilted):
    "The language model reads the tilt as the household's taste (on a first visit it has no other)."
    def predict(self, occasions, mu=None): return Predictions(self.model.what_if(occasions, [dict(taste=self.tilt(occasions))])[0].choice, name=self.name)

class WithHistory(ChoiceModel):
    "A fitted model that is told a part of the history; it remembers its last answers."
    def __init__(self, model, history): self.model, self.history, self.name, self.asked = model, history, f"{model.name}, {history}", None
    def predict(self, occasions, mu=None):
        if self.asked is not occasions: self.asked, self.said = occasions, Predictions(self.model.predict(with_history(occasions, self.history)).choice, name=self.name)
        return self.said

def logits(train, lines, traits, name=""):
    "Fitted logits: the crowd, each trait alone and all together, and the traits of strangers."
    some = [traits] + [(t,) for t in traits if len(traits) > 1]
    models = [AcrossLogit(lines, ())] + [AcrossLogit(lines, t) for t in some] + [AcrossLogit(dealt_anew(lines), traits)]
    for m, label in zip(models, ["crowd", *(" and ".join(t) for t in some), "dealt anew"]): m.name = f"logit{name}: {label}"
    return [m.fit(train) for m in models]

def later_visits(occasions):
    "To a category where the customer has bought before, with a history elsewhere as well."
    return occasions[(occasions.column("n_past") > 0) & (occasions.column("n_past_all") > occasions.column("n_past"))]

def trial(t, lines, folds, models, visits=first_visits):  # model -> pooled scores, with the number of lines elsewhere
    "Scores of the models that models(fold, training occasions, such visits among them) gives, fold by fold."
    parts = {}
    for fold in folds:
        train, test = train_and_test(t, "customer", fold)
        test, start = visits(test), time.time()
        n = carried(test, lines.assign(line=1.), "line")[0]
        for m in models(fold, train, visits(train)): parts.setdefault(m.name, []).append(score(m, test) | dict(elsewhere=n))
        print(f"{t.name}, fold {fold}: {len(test)} {visits.__name__.replace('_', ' ')} of {len(np.unique(test.customer))} customers, {time.time() - start:.0f} s", flush=True)
    return {name: pool([{k: v for k, v in p.items() if not k.startswith("quantity")} for p in each]) for name, each in parts.items()}

def gains(scores, pairs):
    "Paired gains of b over a, in nats per choice, where both were scored."
    rows = []
    for a, b in (p for p in pairs if p[1] in scores):
        one = {k: (v[np.isin(scores[a]["row"], scores[b]["row"])] if np.ndim(v) else v) for k, v in scores[a].items()}
        d = paired(one, scores[b])
        rows.append(dict(model=b, over=a, log_loss=scores[b]["log_loss"].mean(), gain=d["difference"], low=d["low"], high=d["high"], n=d["n"]))
    return rows

def growth(scores, a, b):
    "Gain of b over a by the number of lines elsewhere."
    gain, bins = scores[a]["log_loss"] - scores[b]["log_loss"], history_bin(scores[a]["elsewhere"])
    return {str(h): dict(zip(("gain", "low", "high"), np.round(clustered_mean(gain[bins == h], scores[a]["customer"][bins == h])[:3], 4).tolist()), n=int((bins == h).sum())) for h in np.unique(bins)}

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--data", type=Path, default=Path("../shared/data")); a.add_argument("--customers", type=int, help="of Ta-Feng, drawn by seed; default all")
    a.add_argument("--folds", type=int, nargs="*", default=list(range(5))); a.add_argument("--model", help="a folder of malles posttrain; folds that it lacks are left out")
    a.add_argument("--results", type=Path, default=Path("benchmarks/results/across.json"))
    a = a.parse_args()
    warnings.simplefilter("ignore")
    start, tafeng, journey = time.time(), read_market(a.data/"tafeng"), read_market(a.data/"journey")
    lines, labels = lines_of(tafeng), lines_of(journey)
    table = correlations("tafeng", lines) + correlations("journey", labels)
    print(pd.DataFrame(table).round(3).to_string(index=False), flush=True)

    t = trial_markets(tafeng, customers=a.customers)[0]
    bought = receipt_lines(t.occasions.whole())
    post = PostTrained(a.model) if a.model else None
    def products(fold, train, first):
        own, wide = logits(first, bought, ("log_price",), " (categories with choices)"), logits(first, lines, ("log_price",))
        tastes, nano = RunningTastes().fit(train), reader("nano").fit(train)
        strangers = copy(wide[1]); strangers.lines = dealt_anew(lines)   # trusted as if they were the customer himself
        yield from (Popularity(), *own[1:2], *wide, tastes)
        yield from (Tilted(tastes, who, first, f"running-tastes, tilted{by}") for who, by in ((wide[1], ""), (own[1], " (categories with choices)"), (strangers, " by strangers")))
        for model in (nano, post.fit(train)) if post and fold in post.cards else (nano,):
            whole = WithHistory(model, "both")
            yield from (WithHistory(model, "own"), whole, Tilted(whole, wide[1], first, f"{model.name}, tilted"), TiltedTaste(model, wide[1], first, f"{model.name}, tilted taste"))
    scores = trial(t, lines, a.folds, products)
    crowd, across, name = "logit: crowd", "logit: log_price", post.name if post else ""
    found = dict(tafeng=gains(scores, [("popularity", crowd), ("popularity", across), (crowd, across), (crowd, "logit (categories with choices): log_price"), (crowd, "logit: dealt anew"),
        ("popularity", "running-tastes"), *(("running-tastes", f"running-tastes, tilted{by}") for by in ("", " (categories with choices)", " by strangers")),
        ("running-tastes", "nano, both"), ("popularity", "nano, both"), ("nano, own", "nano, both"), ("nano, both", "nano, tilted"),
        ("nano, both", "nano, tilted taste"), ("nano, both", f"{name}, both"), (f"{name}, own", f"{name}, both"), (f"{name}, both", f"{name}, tilted"), (f"{name}, both", f"{name}, tilted taste")]))
    grows = dict(tafeng=growth(scores, crowd, across), nano=growth(scores, "nano, own", "nano, both"))
    def told(fold, train, later):
        nano = reader("nano").fit(train)
        return [WithHistory(m, h) for m in ((nano, post.fit(train)) if post and fold in post.cards else (nano,)) for h in ("own", "other", "both")]
    later = trial(t, lines, a.folds[:1], told, later_visits)
    found["tafeng, later visits"] = gains(later, [(f"{m}, {h}", f"{m}, both") for m in ("nano", name) for h in ("own", "other")])
    who = np.random.default_rng(0).permutation(np.unique(lines.customer_id))[:CUSTOMERS]
    third = lambda lines: lines.assign(third=np.select([lines.standing < -.5, lines.standing > .5], ["cheap", "dear"], "middle"))[np.isfinite(lines.standing)]
    for market, column, traits, some in (("tafeng", "third", ("log_price",), third(with_standing(lines, standing(lines, "log_price")))[lambda d: d.customer_id.isin(who)]), ("journey", "third", ("log_price",), third(with_standing(labels, standing(labels, "log_price")))),
            ("journey", "brand", ("private", "log_price"), labels[np.isfinite(labels.log_price)])):
        classes, some = by_class(market, some, column)
        c = trial_markets(classes)[0]
        scores = trial(c, some, a.folds, lambda fold, train, first: logits(first, some, traits))
        key = f"{market} by {column}"
        found[key] = gains(scores, [(crowd, m) for m in scores if m != crowd])
        grows[key] = growth(scores, crowd, f"logit: {' and '.join(traits)}")
    for key, rows in found.items(): print(f"\n{key}\n{pd.DataFrame(rows).round(4).to_string(index=False)}")
    for key, rows in grows.items(): print(f"\n{key}: gain by lines elsewhere\n{pd.DataFrame(rows).T.to_string()}")
    short = lambda rows: [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    out = dict(split_half=short(table), gains={k: short(v) for k, v in found.items()}, growth=grows, customers=a.customers, folds=a.folds, seconds=round(time.time() - start))
    replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps({k: {f"{r['model']} over {r['over']}": [r["gain"], r["low"], r["high"]] for r in v} for k, v in out["gains"].items()}))

if __name__ == "__main__": main()
