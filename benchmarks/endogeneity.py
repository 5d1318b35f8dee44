"""Own-price elasticities of orange juice (83 stores) and canned tuna (one chain), by least squares and with what the shop pays as instrument.

    python benchmarks/endogeneity.py --demand ../shared/data/demand [--results FILE]
"""
import argparse, json
from pathlib import Path
import numpy as np, pandas as pd
from malles.endogeneity import price_response
from malles.folders import replace_file


def main(a):
    juice = pd.read_parquet(a.demand/"orange_juice"/"demand.parquet")
    juice = juice[(juice.units > 0) & juice.profit.between(-50, 90)]
    juice = juice.assign(cost=np.log(juice.price * (1 - juice.profit / 100)))
    tuna = pd.read_parquet(a.demand/"tuna_chicago"/"demand.parquet")
    tuna = tuna.assign(cost=np.log(tuna.wholesale_price), block=tuna.week // 8)          # weeks near each other err together
    rows = []
    for name, sales, how in (("orange juice", juice, dict(effects=("store",), controls=("deal", "feature"))), ("tuna", tuna, dict(effects=("brand",), controls=("display",), cluster="block"))):
        for brand, own in sales.groupby("brand_name"):
            r = price_response(own, ["cost"], **how)
            rows.append(dict(market=name, brand=brand, sales=r.n, F=r.F, naive=r.naive[0], naive_low=r.naive[1], naive_high=r.naive[2], by_costs=r.instrumented[0], low=r.instrumented[1], high=r.instrumented[2]))
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    out = {m: dict(brands=len(t), identified=int(t.by_costs.notna().sum()), naive_median=round(float(t.naive.median()), 2), by_costs_median=round(float(t.by_costs.median()), 2)) for m, t in table.groupby("market")}
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=json.loads(table.to_json(orient="records")), **out), indent=1) + "\n"))
    print(json.dumps(out))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demand", type=Path, default=Path("../shared/data/demand")); p.add_argument("--results", type=Path)
    main(p.parse_args())
