"""Price changes of orange juice in 83 stores, weeks that no model has seen: direction, size and 80 % intervals, sales and everyday prices apart, beside "no change" and "same as last time".

    python benchmarks/events.py [--demand ../shared/data/demand/orange_juice] [--models loyalty-logit ...] [--first 100] [--stores N] [--results FILE]

A store is a customer that chooses for everybody (malles.sales). Models learn from the weeks before `first`; an interval knows the errors of earlier weeks only; the figures are of changes in the last --judged weeks, so that every one has an interval.
Everyday elasticities: log happened over log price, median, of everyday changes; beside sales. The last line is JSON.
"""
import argparse, json, os, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd
from malles.backtest import Backtest, price_changes, shares_by_period, with_intervals
from malles.choicesets import build_occasions
from malles.elicitation import LMChoice
from malles.folders import replace_file
from malles.logits import LoyaltyLogit
from malles.occasions import mean_field, with_popularity
from malles.profiles import with_profiles
from malles.sales import NOTHING, sales_market
from malles.tastes import RunningTastes
from malles.transfer import TransferLogit

MODELS = {"loyalty-logit": LoyaltyLogit, "transfer-logit": TransferLogit, "running-tastes": RunningTastes, "nano": LMChoice.nano}


def main(a):
    start = time.time()
    sales = pd.read_parquet(a.demand/"demand.parquet").rename(columns=dict(brand="number", brand_name="brand", deal="display"))
    if a.stores: sales = sales[sales.store.isin(np.random.default_rng(0).permutation(sales.store.unique())[:a.stores])]
    market, size = sales_market(sales, "orange juice", ("display", "feature"))
    occasions = with_profiles(build_occasions(market, prices="given"))
    week = occasions.log.occasion["time"].astype(int)
    early = occasions.time < a.first
    occasions = with_popularity(occasions, mean_field(occasions[early]), counted=occasions[early])
    asked = occasions[np.unique(occasions.customer * 10**6 + occasions.time.astype(int), return_index=True)[1]]   # the first draw of a week knows only earlier weeks
    asked = asked[asked.time >= a.first - 1]
    units = sales.assign(place=sales.store.map({s: i for i, s in enumerate(occasions.customers.astype(int))}), period=sales.week, product=sales.brand).set_index(["place", "period", "product"]).units
    most = size.loc[occasions.customers.astype(int)].to_numpy()
    rows = []
    for name in a.models:
        model = MODELS[name]().fit(occasions[early])
        sold = shares_by_period(model, asked, week, "customer")
        sold = sold[sold["product"] != NOTHING]
        key = pd.MultiIndex.from_frame(sold[["place", "period", "product"]])
        sold = sold.assign(bought=units.reindex(key).to_numpy() / 64, of=most[sold.place] / 64)                    # what was sold, not the draws
        told = with_intervals(price_changes(sold), .8)
        late = Backtest(told[told.period > told.period.max() - a.judged].reset_index(drop=True), name, .8)
        table = late.table()
        own = late.changes.assign(e=lambda d: d.happened / np.log(d.price / d.price_before), f=lambda d: d.foreseen / np.log(d.price / d.price_before))
        for kind, r in table.iterrows():
            some = own if kind == "all" else own[own.kind == kind]
            rows.append(dict(model=name, kind=kind, **r, elasticity_seen=some.e.median(), elasticity_foreseen=some.f.median(), moved_with_price=(np.sign(some.happened) != -np.sign(some.price - some.price_before)).mean()))
        print(pd.DataFrame([r for r in rows if r["model"] == name]).round(3).to_string(index=False), flush=True)
    out = {name: {r["kind"]: dict(changes=int(r["changes"]), direction=round(r["direction"], 3), inside_80=round(r["inside"], 3), error=round(r["error"], 3), no_change=round(r["no_change"], 3), same_as_last_time=round(r["same_as_last_time"], 3),
        elasticity_seen=round(r["elasticity_seen"], 2), elasticity_foreseen=round(r["elasticity_foreseen"], 2)) for r in rows if r["model"] == name} for name in a.models}
    out = dict(first=a.first, judged=a.judged, stores=len(size), seconds=round(time.time() - start), **out)
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demand", type=Path, default=Path("../shared/data/demand/orange_juice")); p.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    p.add_argument("--first", type=int, default=100, help="first week that no model has seen"); p.add_argument("--judged", type=int, default=40, help="last weeks that are judged"); p.add_argument("--stores", type=int); p.add_argument("--results", type=Path)
    main(p.parse_args())
