"""A dealer who knows thirty past periods: regret against the best order for the true demand, negotiated deals against the Pareto frontier of the true demand (one product, and three that share a capacity), and a tournament with NegMAS.

    python benchmarks/wholesale.py [--cases 100] [--pasts 2000] [--tables 3] [--out benchmarks/results/wholesale.json]

The plug-in order puts the sample mean and spread in place of the true ones (newsvendor: normal quantile; EOQ: square root). Negotiated deals are judged on the true demand, which neither side knows.
"""
import argparse, json, math
from dataclasses import replace
import numpy as np, pandas as pd
from scipy.stats import norm
from malles.bargaining import Dealer, Manufacturer, bargain, best_terms, refused, solutions
from malles.negotiation import Table, tournament
from malles.wholesale import best_lot, best_order, demand_quantiles


def regret(q, mu, sd, c, r):
    "Exact, of a normal demand; also of arrays."
    def profit(q):
        z = (q - mu) / sd
        return r * (q - sd * (z * norm.cdf(z) + norm.pdf(z))) - c * q
    return profit(norm.ppf(1 - c / r, mu, sd)) - profit(q)


def newsvendor(pasts, rng):
    rows = []
    for ratio in (.1, .25, .5, .75, .9, .95):
        for spread in (.1, .2, .3):
            past = rng.normal(100, 100 * spread, (pasts, 30)).clip(0)
            dealer = np.array([best_order(demand_quantiles(x), 10 * (1 - ratio), 10.)[0] for x in past])
            plug = norm.ppf(ratio, past.mean(1), past.std(1, ddof=1))
            each = [regret(q, 100, 100 * spread, 10 * (1 - ratio), 10.) for q in (dealer, plug)]
            rows.append(dict(ratio=ratio, spread=spread, dealer=each[0].mean(), plug_in=each[1].mean(), error=(each[0] - each[1]).std() / math.sqrt(pasts)))
    t = pd.DataFrame(rows)
    return t.assign(over=t.dealer / t.plug_in - 1)


def lots(pasts, rng):
    past = rng.normal(100, 25, (pasts, 30)).clip(0)
    cost = lambda q: 50 * 100 / q + .4 * q / 2
    best = cost(math.sqrt(2 * 50 * 100 / .4))
    dealer = np.array([cost(best_lot(x.mean(), 50, .4)) - best for x in past])
    plug = cost(np.sqrt(2 * 50 * past.mean(1) / .4)) - best
    return dict(dealer=dealer.mean(), plug_in=plug.mean(), over=dealer.mean() / plug.mean() - 1)


def frontier(cases, rng, products=1, room=(.8, 2.)):
    "Share of the largest true joint gain that the deal realises, and how the gain is divided."
    rows = []
    for _ in range(cases):
        mu, spread, cost = (rng.uniform(*ends, products) for ends in ((50, 500), (.1, .35), (2, 6)))
        resale, capacity = cost * rng.uniform(1.5, 3, products), mu.sum() * rng.uniform(*room)
        dealer = Dealer(rng.normal(mu, mu * spread, (30, products)).clip(0), resale, outside=rng.uniform(0, .2) * mu @ (resale - cost))
        maker = Manufacturer(cost, capacity, outside=rng.uniform(0, .2) * mu @ (resale - cost))
        knowing = replace(dealer, sales=norm.ppf((np.arange(2000)[:, None] + .5) / 2000, mu, mu * spread).clip(0))
        best = best_terms(knowing, maker)
        for e in ((1., 1.), (.3, 1.), (1., .3), (3., 3.)):
            deal = bargain(dealer, maker, 40, e)
            bad = [b for b in deal.bids if refused(b.offer, dealer, maker)]
            assert deal.offer is None or not refused(deal.offer, dealer, maker)
            both = lambda o: knowing.profit(o) + maker.profit(o)
            of_frontier = np.nan if deal.offer is None else both(deal.offer) / both(replace(best, price=deal.offer.price))   # at its own price: credit is worth more on a higher one
            nash = solutions(dealer, maker)
            rows.append(dict(products=products, hardness=f"{e[0]:g}/{e[1]:g}", agreed=deal.offer is not None, of_frontier=of_frontier, dealer_share=(deal.dealer - dealer.outside) / max(deal.dealer + deal.maker - dealer.outside - maker.outside, 1e-9),
                             nash_share=.5, rubinstein_share=(nash["Rubinstein, dealer first"][0] - dealer.outside) / (sum(nash["Nash"]) - dealer.outside - maker.outside), refused_offers=len(bad)))
    return pd.DataFrame(rows)


def main(a):
    rng = np.random.default_rng(0)
    n = newsvendor(a.pasts, rng)
    print(n.round(4).to_string(index=False))
    over = n.dealer.sum() / n.plug_in.sum() - 1
    print(f"newsvendor: regret of the dealer over that of the plug-in, summed: {over:+.3%}; worst cell {n.over.max():+.3%}")
    q = lots(a.pasts, rng)
    print(f"EOQ: {q['over']:+.4%}")
    f = pd.concat([frontier(a.cases, rng), frontier(a.cases, np.random.default_rng(1), 3, (.5, 1.2))])
    by = f.groupby(["products", "hardness"]).agg(agreed=("agreed", "mean"), mean=("of_frontier", "mean"), worst=("of_frontier", "min"), p05=("of_frontier", lambda x: x.quantile(.05)), dealer_share=("dealer_share", "mean"), rubinstein=("rubinstein_share", "mean"))
    print(by.round(3).to_string(), f"\nwithin 5 % of the frontier: {(f.of_frontier >= .95).sum()} of {f.agreed.sum()} deals")
    tables = []
    for k in range(a.tables):
        mu = rng.uniform(50, 300); cost = rng.uniform(2, 6); resale = cost * rng.uniform(1.6, 3)
        tables.append(Table(Dealer(tuple(rng.normal(mu, .2 * mu, 30).clip(0)), resale, outside=.1 * mu * (resale - cost)), Manufacturer(cost, 2 * mu, outside=.1 * mu * (resale - cost))))
    t = tournament(tables)
    print(t.round(3).to_string())
    with open(a.out, "w") as out: json.dump(dict(newsvendor=n.to_dict("records"), newsvendor_over=over, eoq=q, frontier=by.reset_index().to_dict("records"), within_5_percent=int((f.of_frontier >= .95).sum()), deals=int(f.agreed.sum()), tournament=t.reset_index().to_dict("records")), out, indent=1)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--cases", type=int, default=100); p.add_argument("--pasts", type=int, default=2000); p.add_argument("--tables", type=int, default=3); p.add_argument("--out", default="benchmarks/results/wholesale.json")
    main(p.parse_args())
