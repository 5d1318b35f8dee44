"""Rules of real demand: units against price and promotion (orange juice, cheese, tuna), pieces per order line against the list price (wholesale); one rule of at most 12 symbols beside LightGBM on the same columns.

    python benchmarks/rules_real.py --data DIR [--results FILE]

The target is a logarithm, so errors are shares. Every column is taken within its store and product: the log less its mean over all rows of that store and product (brand, account), held-out ones included, so that a rule speaks of
changes, not of sizes (its intercepts are not foreseen, for the rule and for LightGBM alike); wholesale is not centred. LightGBM has fixed settings. Held out: stores or weeks in blocks for demand, customers for wholesale. Explained deviance is that of the Gaussian, 1 - S/S0, on the same held-out rows for both.
The last line is JSON.
"""
import argparse, json, time
from pathlib import Path
import numpy as np, pandas as pd
from malles.folders import replace_file
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


def beside(name, table, target, features):
    "One rule of at most 12 symbols and LightGBM, tried on the same rows."
    from lightgbm import LGBMRegressor
    price, start = features[0], time.perf_counter()
    book = search_rules(table, target, features, "block", {price: -1}, seconds=60)
    front = book.front
    short = front[front.nodes <= 12]
    pick = front[front.chosen].iloc[0] if front.nodes[front.chosen].item() <= 12 else short.iloc[-1]   # a chosen one that is too long gives way to the best short one
    seconds, trial, held = time.perf_counter() - start, book.trial, book.trial.held
    trees = LGBMRegressor(n_estimators=300, learning_rate=.05, num_leaves=31, min_child_samples=40, n_jobs=1, random_state=0, verbose=-1).fit(table[features][~held], table[target][~held])
    boosted = 1 - np.mean((trees.predict(table[features][held]) - table[target][held])**2) / np.var(table[target][held])
    grid = {s: v[trial.rows] for s, v in trial.columns.items()}
    p = next(s for s, c in trial.symbols.items() if c == price)
    from malles.formulas import value
    step = .01 * max(np.std(grid[p]), 1e-9)
    slope = np.mean((np.broadcast_to(value(pick.form, {**grid, p: grid[p] + step}), len(trial.rows)) - np.broadcast_to(value(pick.form, {**grid, p: grid[p] - step}), len(trial.rows))) / (2 * step))
    said, source = PUBLISHED[name]
    return dict(data=name, rows=len(table), rule=str(pick.form), nodes=int(pick.nodes), was_chosen=bool(pick.chosen), explained=float(pick.explained), lightgbm=float(boosted), share=float(pick.explained / boosted), elasticity=float(slope), published=said, source=source, seconds=round(seconds, 1), complete=book.complete)


def main(a):
    sets = {"orange juice": lambda: demand(a.data / "demand/orange_juice", ["deal", "feature"], ["store", "brand"], lambda t: t.store), "cheese": lambda: demand(a.data / "demand/cheese", ["display"], ["store"], lambda t: t.store),
        "tuna": lambda: demand(a.data / "demand/tuna_chicago", ["display"], ["brand"], lambda t: t.week // 8), "wholesale": lambda: wholesale(a.data / "wholesale")}
    rows = []
    for name, read in sets.items():
        rows.append(beside(name, *read())); print(rows[-1], flush=True)
    out = dict(rows=rows, lowest_share_of_lightgbm=min(r["share"] for r in rows), longest=max(r["nodes"] for r in rows), signs_right=all(r["elasticity"] < 0 for r in rows))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps({k: v for k, v in out.items() if k != "rows"}))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True); p.add_argument("--results", type=Path)
    main(p.parse_args())
