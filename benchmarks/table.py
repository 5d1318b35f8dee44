"""The README's table from a finished bench: log-loss and hit rate of every model on the headline markets.

    malles bench --markets DIR [DIR ...] --out runs/bench
    python benchmarks/table.py runs/bench              which product
    python benchmarks/table.py runs/bench --quantity   how many: CRPS and absolute error, on first visits and later ones
"""
import argparse, json
from pathlib import Path

import pandas as pd


def headline_table(out, split="customer"):
    "Models x headline markets, log-loss (nats) and hit rate (%), largest gain over chance first."
    rows = pd.read_csv(Path(out)/"rows.csv")
    summary = json.loads((Path(out)/"summary.json").read_text(encoding="utf-8"))
    markets = [m["market"] for m in summary["markets"] if m["headline"]]
    one = rows[(rows.split == split) & rows.market.isin(markets)]
    one = one[(one.category == "all") | ~one.market.isin(one.market[one.category == "all"])]
    value = lambda metric: one[one.metric == metric].pivot(index="model", columns="market", values="value").reindex(columns=markets)
    loss, hit = value("log_loss"), value("hit_rate")
    order = loss.sub(loss.loc["uniform"]).mean(axis=1).sort_values(na_position="last").index  # gain over chance, on the markets where a model plays
    return loss.loc[order], hit.loc[order], summary


def quantity_table(out, split="customer"):
    "Market and model x metric: how well the pieces are foreseen, with and without a past."
    rows = pd.read_csv(Path(out)/"rows.csv")
    one = rows[(rows.split == split) & rows.metric.str.match("quantity_(crps|mae)")]
    one = one[(one.category == "all") | ~one.market.isin(one.market[one.category == "all"])]
    wanted = [f"quantity_{m}{apart}" for m in ("crps", "mae") for apart in ("", "_first", "_later")]
    return one.pivot(index=["market", "model"], columns="metric", values="value").reindex(columns=wanted).rename(columns=lambda c: c.removeprefix("quantity_"))


def main():
    parser = argparse.ArgumentParser(description="Print the table of a finished bench as Markdown, and its figures as one line of JSON.")
    parser.add_argument("out", type=Path, help="folder of a finished `malles bench`")
    parser.add_argument("--split", default="customer", choices=["customer", "time", "category"])
    parser.add_argument("--quantity", action="store_true", help="the pieces instead of the product")
    args = parser.parse_args()
    if args.quantity: return print(quantity_table(args.out, args.split).round(3).to_string())
    loss, hit, summary = headline_table(args.out, args.split)
    cell = lambda m, k: f"{loss.loc[m, k]:.3f} ({hit.loc[m, k]:.0%})" if loss.loc[m, k] == loss.loc[m, k] else ""
    print("| " + " | ".join(["model", *loss.columns]) + " |")
    print("|" + "---|" * (len(loss.columns) + 1))
    for m in loss.index: print("| " + " | ".join([f"**{m}**" if m.startswith("nano") else m, *(cell(m, k) for k in loss.columns)]) + " |")
    figures = {k: {m: round(float(v), 4) for m, v in loss[k].dropna().items()} for k in loss.columns}
    print(json.dumps(dict(split=args.split, seconds=summary["seconds"], failed=len(summary["failed"]), log_loss=figures)))


if __name__ == "__main__":
    main()
