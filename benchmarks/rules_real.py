"""Rules of real demand: units against price and promotion (orange juice, cheese, tuna), pieces per order line against the list price (wholesale); one rule of at most 12 symbols beside LightGBM on the same columns.

    python benchmarks/rules_real.py --data DIR [--results FILE]

The target is a logarithm, so errors are shares. Every column is taken within its store and product: the log less its mean over all rows of that store and product (brand, account), held-out ones included, so that a rule speaks of
changes, not of sizes (its intercepts are not foreseen, for the rule and for LightGBM alike); wholesale is not centred. LightGBM takes the best of twelve settings on a third of the training blocks and is then fitted on all training rows (a rule on at most 5,000 of them). Held out: stores or weeks in blocks for demand, customers for wholesale. Explained deviance is that of the Gaussian, 1 - S/S0, on the same held-out rows for both.

Pooling: one form for all brands of juice and tuna and all cheese counters, its numbers one for all, separate, or partially pooled, fitted on a few rows of each and on all; blocks of eight weeks are held out, and the share of the variance that is explained
is taken over all held-out rows and as the mean of the categories. The last line is JSON.
"""
import argparse, json, time
from pathlib import Path
import numpy as np, pandas as pd
from malles.folders import replace_file
from malles.formulas import lowered, refit, value
from malles.pooling import pooled
from malles.rules import search_rules

PUBLISHED = {  # own-price elasticities, and where they are printed
    "orange juice": ("-1.60 pooled, -3.14 with brand intercepts", "Taddy, oj data (three 64 oz brands)"),
    "cheese": ("-2.62, mean of 1,851", "Bijmolt, van Heerde & Pieters 2005"),
    "tuna": ("-2.62, mean of 1,851", "Bijmolt, van Heerde & Pieters 2005"),
    "wholesale": ("", "none: the list price is no experiment"),
}


def within(t, keys, columns):
    "Columns less their mean by key."
    return t[columns] - t.groupby(keys)[columns].transform("mean")


def demand(folder, promotions, keys, block):
    "Changes of log units with log price and promotions, by store and brand; `block`: what is held out together."
    t = pd.read_parquet(folder / "demand.parquet")
    t = t[(t.units > 0) & (t.price > 0)]
    t = t.assign(units=np.log(t.units), price=np.log(t.price), block=block(t))
    return within(t, keys, ["units", "price", *promotions]).assign(block=t.block.to_numpy()), "units", ["price", *promotions]


def wholesale(folder):
    "Pieces of an order line against the list price before it (median of that product's earlier lines), the customer's earlier mean line and days since his last order."
    t = pd.read_parquet(folder / "transactions.parquet")
    t = t[t.is_product & t.customer_id.notna() & (t.quantity > 0) & (t.unit_price > 0)].sort_values("time", kind="stable").reset_index(drop=True)
    day = t.time.dt.normalize()
    daily = t.assign(day=day).groupby(["product_id", "day"], sort=True).unit_price.median()
    before = daily.groupby(level=0).transform(lambda v: v.expanding().median().shift()).rename("list_price").reset_index()
    t = t.assign(day=day).merge(before, on=["product_id", "day"], how="left", validate="m:1")
    orders = t.assign(log=np.log(t.quantity)).groupby(["customer_id", "day"], sort=True).log.agg(["sum", "count"])
    past = orders.groupby(level=0).cumsum() - orders
    when = orders.index.get_level_values(1).to_series(index=orders.index)
    known = pd.DataFrame(dict(usual=past["sum"] / past["count"].where(past["count"] > 0), rhythm=when.groupby(level=0).diff().dt.days), index=orders.index).reset_index()
    t = t.merge(known, on=["customer_id", "day"], how="left", validate="m:1").dropna(subset=["list_price", "usual", "rhythm"])
    return pd.DataFrame(dict(pieces=np.log(t.quantity), list_price=np.log(t.list_price), usual_pieces=t.usual, rhythm=np.log(t.rhythm.clip(lower=1)), block=t.customer_id)), "pieces", ["list_price", "usual_pieces", "rhythm"]


def boosted(table, target, features, groups):
    "LightGBM with the best of a few settings on a third of the blocks; the settings."
    from lightgbm import LGBMRegressor
    grid = [dict(n_estimators=n, num_leaves=leaves, min_child_samples=least) for n in (100, 300) for leaves in (4, 12, 31) for least in (40, 400)]
    model = lambda setting: LGBMRegressor(learning_rate=.05, n_jobs=1, random_state=0, verbose=-1, **setting)
    inner = np.isin(groups, np.random.default_rng(1).choice(np.unique(groups), len(np.unique(groups)) // 3, replace=False))
    error = [np.mean((model(s).fit(table[features][~inner], table[target][~inner]).predict(table[features][inner]) - table[target][inner])**2) for s in grid]
    best = grid[int(np.argmin(error))]
    return model(best).fit(table[features], table[target]), best


def beside(name, table, target, features):
    "One rule of at most 12 symbols and LightGBM, tried on the same rows."
    price, start = features[0], time.perf_counter()
    book = search_rules(table, target, features, "block", {price: -1})
    front = book.front
    short = front[front.nodes <= 12]
    pick = front[front.chosen].iloc[0] if front.nodes[front.chosen].item() <= 12 else short.iloc[-1]   # a chosen one that is too long gives way to the best short one
    seconds, trial, held = time.perf_counter() - start, book.trial, book.trial.held
    trees, settings = boosted(table[~held], target, features, trial.groups[~held])
    explained = 1 - np.mean((trees.predict(table[features][held]) - table[target][held])**2) / np.var(table[target][held])
    grid = {s: v[trial.rows] for s, v in trial.columns.items()}
    p = next(s for s, c in trial.symbols.items() if c == price)
    step = .01 * max(np.std(grid[p]), 1e-9)
    slope = np.mean((np.broadcast_to(value(pick.form, {**grid, p: grid[p] + step}), len(trial.rows)) - np.broadcast_to(value(pick.form, {**grid, p: grid[p] - step}), len(trial.rows))) / (2 * step))
    said, source = PUBLISHED[name]
    return dict(data=name, rows=len(table), rule=str(pick.form), nodes=int(pick.nodes), was_chosen=bool(pick.chosen), explained=float(pick.explained), lightgbm=float(explained), settings=settings, share=float(pick.explained / explained), elasticity=float(slope), published=said, source=source, seconds=round(seconds, 1), complete=book.complete)


FEW = 20


def pooling(data):
    "Held-out explained variance of one form with numbers that are one for all, separate by category, and pooled."
    parts = [demand(data / "demand/orange_juice", ["feature"], ["store", "brand"], lambda t: t.week // 8)[0].assign(category="juice " + pd.read_parquet(data / "demand/orange_juice/demand.parquet").query("units > 0 and price > 0").brand.astype(str).to_numpy()).rename(columns=dict(feature="promotion"))]
    for name, key in (("cheese", "store"), ("tuna_chicago", "brand")):
        t = pd.read_parquet(data / f"demand/{name}/demand.parquet").query("units > 0 and price > 0")
        parts.append(demand(data / f"demand/{name}", ["display"], [key], lambda t: t.week // 8)[0].assign(category=f"{name} " + t[key].astype(str).to_numpy()).rename(columns=dict(display="promotion")))
    table = pd.concat(parts, ignore_index=True)
    shuffled = table.sample(frac=1, random_state=0)
    even = shuffled[shuffled.groupby("category").cumcount() < 200]                # each category counts alike in the search
    book = search_rules(even, "units", ["price", "promotion"], "block", {"price": -1, "promotion": 1})
    held = np.isin(table.block, even.block.to_numpy()[book.trial.held])
    test, train = table[held], table[~held]
    columns = lambda t: {s: t[c].to_numpy(float) for s, c in book.trial.symbols.items()}
    rows = []
    for few in (FEW, None):
        taught = train if few is None else train.sample(frac=1, random_state=0).groupby("category").head(few)
        one = refit(book.rule, columns(taught), taught.units.to_numpy())
        rule = pooled(book, taught, "category", "block")
        alone = rule.numbers.alone.unstack()[rule.names]
        def said(numbers):
            out = np.zeros(len(test))
            for category, at in test.groupby("category", sort=False).indices.items(): out[at] = value(lowered(rule.body, dict(zip(rule.dummies, numbers(category)))), columns(test.iloc[at]))
            return out
        known = lambda c: c in alone.index and alone.loc[c].notna().all()
        ways = dict(one=np.broadcast_to(value(one.form, columns(test)), len(test)), separate=said(lambda c: alone.loc[c] if known(c) else list(one.numbers.values())), pooled=rule.predict(test))
        for way, p in ways.items():
            loss = (test.units.to_numpy() - p)**2
            each = 1 - pd.Series(loss).groupby(test.category.to_numpy()).sum() / test.groupby("category").units.apply(lambda u: ((u - u.mean())**2).sum())
            rows.append(dict(numbers=way, rows_per_category=few or "all", categories=int(test.category.nunique()), cannot_be_fitted_alone=sum(not known(c) for c in test.category.unique()), explained=float(1 - loss.sum() / ((test.units - test.units.mean())**2).sum()), mean_of_categories=float(each.mean()), worst_category=float(each.min())))
    return dict(rule=str(book.rule), centre=[float(c) for c in rule.centre], between=[float(b) for b in rule.between], rows=rows)


def main(a):
    sets = {"orange juice": lambda: demand(a.data / "demand/orange_juice", ["deal", "feature"], ["store", "brand"], lambda t: t.store), "cheese": lambda: demand(a.data / "demand/cheese", ["display"], ["store"], lambda t: t.store),
        "tuna": lambda: demand(a.data / "demand/tuna_chicago", ["display"], ["brand"], lambda t: t.week // 8), "wholesale": lambda: wholesale(a.data / "wholesale")}
    rows = []
    for name, read in sets.items():
        rows.append(beside(name, *read())); print(rows[-1], flush=True)
    together = pooling(a.data)
    for r in together["rows"]: print(r, flush=True)
    out = dict(rows=rows, pooling=together, lowest_share_of_lightgbm=min(r["share"] for r in rows), longest=max(r["nodes"] for r in rows), signs_right=all(r["elasticity"] < 0 for r in rows))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps({k: v for k, v in out.items() if k not in ("rows", "pooling")}))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True); p.add_argument("--results", type=Path)
    main(p.parse_args())
