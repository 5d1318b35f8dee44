"""What the crowd and calibration are worth on real markets, week by week: shares of the last periods foreseen with and without each, against shares that simply persist.

    python benchmarks/nowcast.py --markets ../shared/data/tafeng [../shared/data/panels/margarine ...] [--models running-tastes transfer-logit loyalty-logit nano] [--last 6] [--skip 0] [--customers N] [--seeds 10] [--results FILE]

Nowcast: every period sees what was bought until the one before, and the map of calibration is fitted on that one; with the mean field, as it looks from a period later (so that last period's surprise is not counted twice). Forecast: from the first tested period on, shares and pasts are the simulation's own.
A model that does not say how many pieces are taken is asked beside `quantity-hurdle`, fitted on the same periods; `pieces_error`: mean absolute error of the mean number of pieces of a category and period.
Window, shrinkage, half-life and what a new deal is worth are picked before every tested period, on all tested before it and the three before those (told by a model that had not seen them either), one period ahead; for the forecast once, on those three, where every purchase of the known period counts alike. A market without dates is read by rounds (the k-th occasion of a customer), those with at least 100 purchases. The last line is JSON.
"""
import argparse, json, os, time, warnings
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
import numpy as np, pandas as pd
from malles.calibration import Calibrated, fit_map, part_of
from malles.counts import QuantityHurdle
from malles.covariates import CROWD
from malles.divergence import divergences, kl, price_ground, product_shares, share_table
from malles.elicitation import LMChoice
from malles.evaluation import trial_markets
from malles.folders import replace_file
from malles.intervals import conformal_shares
from malles.logits import LoyaltyLogit
from malles.market import read_market
from malles.metrics import choice_scores, clustered_mean
from malles.occasions import category_of, mean_field, with_popularity
from malles.periods import counts_of, forward, lagged, period_of, sight
from malles.predictions import SUPPORT, Predictions
from malles.tastes import RunningTastes
from malles.transfer import TransferLogit

MODELS = {"running-tastes": RunningTastes, "transfer-logit": TransferLogit, "loyalty-logit": lambda: LoyaltyLogit(columns=CROWD), "nano": LMChoice.nano}
WINDOWS, STRENGTHS, HALF_LIVES, NEWS = (1, 2, 4), (1., 3., 10., 30., 100.), (1., 3., None), (None, .4, .7, 1., 1.3)   # periods, purchases, days, utility
CELLS = {"neither": (False, False), "mean field": (True, False), "calibration": (False, True), "both": (True, True)}


class Weeks:
    "One market, one model: predictions of the periods before `end`, made once."
    def __init__(self, occasions, period, make, first, end, moving):
        self.period, self.make, self.first, self.end, self.moving = period, make, first, end, moving    # moving: there are prices of one day and another
        before = period[occasions.rows] < first
        static = with_popularity(occasions, mean_field(occasions[before]), counted=occasions[before])
        dated = lambda o: o.with_columns(dict(week=period))
        self.views = {None: dated(static), **{w: dated(lagged(occasions, period, w)) for w in WINDOWS}}
        self.later = {w: dated(lagged(occasions, period, w, later=1)) for w in WINDOWS}
        self.quantity = QuantityHurdle().fit(static[before])
        self.models, self.told, self.maps = {}, {}, {}
    def model(self, window):
        view = self.views[window]
        k = self.period[view.rows]
        if window not in self.models: self.models[window] = self.make().fit(view[(k < self.first) & (k >= 1)])   # nobody sees anything in the first period
        return self.models[window]
    def foreseen(self, window, k, later=False):
        "Predictions and occasions of a period, as seen then or from a period later."
        later = later and window is not None                                        # shares that stand still look the same later
        if (window, later) not in self.told:                                        # all periods at once: a household's tastes are worked out for the whole log
            view = (self.later if later else self.views)[window]
            view = view[(self.period[view.rows] >= 1) & (self.period[view.rows] < self.end)]
            told = self.model(window).predict(view)
            self.told[window, later] = (told if told.quantity is not None else replace(told, quantity=self.quantity.predict(view).quantity, support=SUPPORT)), view
        told, view = self.told[window, later]
        return part_of(told, view, self.period[view.rows] == k)
    def predict(self, k, window=None, strength=None, half_life=None, news=None, known=None):
        "What is foreseen of a period, mapped as the last known one says."
        told, here = self.foreseen(window, k)
        return told if strength is None else self.map(k - 1 if known is None else known, window, strength, half_life, news)(told, here)
    def map(self, k, window, strength, half_life, news):
        "From what is foreseen of one period to what was bought in it."
        setting = k, window, strength, half_life                                        # what a new deal is worth does not move the biases
        if setting not in self.maps: self.maps[setting] = fit_map(*self.foreseen(window, k, later=True), strength=strength, half_life=half_life, news=0. if self.moving else None)
        return replace(self.maps[setting], news=news)


def kl_of(predictions, occasions):  # (groups,) nats, (groups,) purchases
    shares = product_shares(occasions, "week")
    return kl(shares, shares.simulated(predictions.choice))[0], shares.purchases


def settings(crowd, calibrated, recent, moving):  # window, strength, half-life, news
    return list(product(WINDOWS if crowd else (None,), STRENGTHS if calibrated else (None,), HALF_LIVES if calibrated and recent else (None,), NEWS if calibrated and moving else (None,)))


def pick(tried, loss, periods):
    "The setting of least KL in these periods; loss: what `losses` gives."
    return min(tried, key=lambda setting: sum(loss(setting, k) for k in periods)) if len(tried) > 1 else tried[0]


def losses(weeks_at, known=None):
    "KL of a setting in a period, purchases times nats, worked out once; known: the period that the map is fitted on, None: each time the one before."
    @cache
    def loss(setting, k):
        weeks = weeks_at(k)
        value, n = kl_of(weeks.predict(k, *setting, known), weeks.foreseen(setting[0], k)[1])
        return value @ n
    return loss


def persistent(counts, occasions, period, k, window):
    "Shares in sight, among what is on offer: nobody's choice model."
    seen, add = sight(counts, category_of(occasions.products), window)
    today = occasions[period[occasions.rows] == k]
    s = np.where(today.mask, (seen + add)[k][np.maximum(today.product, 0).astype(int)], 0)
    return Predictions(s / s.sum(1, keepdims=True))


def pieces_error(told, occasions):
    "Mean absolute error of the mean pieces of a purchase, over categories, by their purchases."
    if told.quantity is None: return {}
    known = np.nan_to_num(occasions.quantity) >= 1
    gap = np.where(known, (told.choice * told.expected_quantity()).sum(1) - np.nan_to_num(occasions.quantity), 0)
    return dict(pieces_error=float(np.abs(np.bincount(occasions.category, gap)).sum() / known.sum()))


def describe(told, weeks, tested, ground):
    "Figures of one row: predictions and occasions by period."
    each = [divergences(told[k], weeks[k], "week", ground=ground) | pieces_error(told[k], weeks[k]) for k in tested]
    n = np.array([len(weeks[k]) for k in tested])
    out = {c: float(np.average([e[c] for e in each], weights=n)) for c in each[0]}
    out["kl_unweighted"] = float(np.mean(np.concatenate([kl_of(told[k], weeks[k])[0] for k in tested])))
    out["hit_rate"] = float(np.average([choice_scores(told[k], weeks[k]).hit.mean() for k in tested], weights=n))
    return out


def coverage(told, weeks, tested):
    "Share of observed weekly shares inside 90 % conformal intervals from the periods before."
    tables = {k: share_table(told[k], weeks[k], "week") for k in told}
    past = {k: pd.concat([tables[j] for j in tables if j < k]) for k in tested}
    t = pd.concat([conformal_shares(past[k], tables[k]) for k in tested if len(past[k]) >= 9])       # fewer cannot tell 90 %
    return float(((t.observed >= t.low - 1e-9) & (t.observed <= t.high + 1e-9)).mean())


def against(told, reference, weeks, tested, draws=2000):
    "Paired differences: log-loss by customer, KL by category and period."
    loss = np.concatenate([choice_scores(told[k], weeks[k]).log_loss.to_numpy() - choice_scores(reference[k], weeks[k]).log_loss.to_numpy() for k in tested])
    d, low, high, _ = clustered_mean(loss, np.concatenate([weeks[k].customer for k in tested]))
    a, b = (list(zip(*[kl_of(t[k], weeks[k]) for k in tested])) for t in (told, reference))
    gap, w = np.concatenate(a[0]) - np.concatenate(b[0]), np.concatenate(a[1]).astype(float)
    at = np.random.default_rng(0).integers(len(gap), size=(draws, len(gap)))
    drawn = (gap[at] * w[at]).sum(1) / w[at].sum(1)
    return dict(log_loss_difference=d, log_loss_low=low, log_loss_high=high, kl_difference=float(np.average(gap, weights=w)), kl_low=float(np.quantile(drawn, .025)), kl_high=float(np.quantile(drawn, .975)))


def stability(paths, occasions):
    "Coefficient of variation of each product's demand over simulated paths, beside what independent draws would have: mean squares, weighted by demand, and the excess."
    P, code = len(occasions.products), np.maximum(occasions.product, 0).astype(int)
    drawn, expected, noise = [], [], []
    for lived, p in paths:
        view = lived[np.isin(lived.rows, occasions.rows)]
        total = lambda v: np.bincount(code[occasions.mask], weights=v[occasions.mask], minlength=P)
        drawn.append(np.bincount(view.product[np.arange(len(view)), view.chosen], minlength=P)); expected.append(total(p.choice)); noise.append(total(p.choice * (1 - p.choice)))
    mean, there = np.mean(drawn, 0), np.mean(expected, 0) >= 20                           # rarer products say nothing of a coefficient of variation
    square = lambda v: float(np.average((v / mean**2)[there], weights=mean[there]))
    cv2, floor2 = square(np.var(drawn, 0, ddof=1)), square(np.mean(noise, 0))
    return dict(cv=np.sqrt(cv2), cv_floor=np.sqrt(floor2), excess_cv2=cv2 - floor2)


def main(a):
    warnings.simplefilter("ignore")
    start, rows = time.time(), []
    for path in a.markets:
        trial = next(t for t in trial_markets(read_market(path), 0, a.customers) if t.headline)
        occasions, period = trial.occasions, period_of(trial.occasions)
        dated = np.issubdtype(occasions.time.dtype, np.datetime64)
        if not dated:
            occasions = occasions[(np.bincount(period[occasions.rows]) >= 100)[period[occasions.rows]]]
        end = int(period[occasions.rows].max()) + 1 - a.skip
        tested, first = list(range(end - a.last, end)), end - a.last
        occasions = occasions[period[occasions.rows] < end]
        ground, counts = price_ground(occasions), counts_of(occasions, period)
        ground = None if np.isnan(ground[np.unique(occasions.product[occasions.mask])]).any() else ground
        moving = dated and ground is not None
        plainly = occasions.with_columns(dict(week=period))
        weeks = {k: plainly[period[plainly.rows] == k] for k in range(1, end)}
        add = lambda **row: rows.append(dict(market=trial.name, **row))
        frozen = counts * (np.arange(len(counts)) < first)[:, None]
        for name, c, w in (("static", frozen, 0), ("last week", counts, 1), ("last four weeks", counts, 4)):
            add(model=f"shares, {name}", task="nowcast", cell="", **describe({k: persistent(c, occasions, period, k, w) for k in tested}, weeks, tested, ground))
        for name in a.models:
            W, inner = Weeks(occasions, period, MODELS[name], first, end, moving), Weeks(occasions, period, MODELS[name], first - 3, first, moving)
            weeks_at = lambda k: W if k >= first else inner                               # a model that has not seen the period
            near, far, told = losses(weeks_at), losses(weeks_at, first - 4), {}
            for cell, (crowd, calibrated) in CELLS.items():
                used = {k: pick(settings(crowd, calibrated, dated, moving), near, range(first - 3, max(k, first))) for k in range(first - 3, end)}
                told[cell] = {k: weeks_at(k).predict(k, *used[k]) for k in used}
                extra = {} if cell == "neither" else against(told[cell], told["neither"], weeks, tested)
                add(model=name, task="nowcast", cell=cell, **{n: " ".join("-" if used[k][i] is None else f"{used[k][i]:g}" for k in tested) for i, n in enumerate(("window", "strength", "half_life", "news"))}, coverage=coverage(told[cell], weeks, tested), **describe(told[cell], weeks, tested, ground), **extra)
                if name == "nano" or not a.seeds: continue                            # a forecast reads every past anew, draw by draw
                setting = pick(settings(crowd, calibrated, False, moving), far, range(first - 3, first))
                model = W.model(setting[0])
                if calibrated: model = Calibrated(model, W.map(first - 1, *setting))
                paths = [forward(model, W.views[setting[0]], period, first, setting[0], seed) for seed in range(a.seeds)]
                p, late = paths[0][1], period[occasions.rows] >= first
                ahead = {k: Predictions(p.choice[period[occasions.rows][late] == k][:, :weeks[k].mask.shape[1]]) for k in tested}
                add(model=name, task="forecast", cell=cell, window=setting[0], strength=setting[1], half_life=setting[2], news=setting[3], **describe(ahead, weeks, tested, ground), **(stability(paths, occasions[late]) if a.seeds > 1 else {}))
            print(pd.DataFrame([r for r in rows if r["market"] == trial.name and r["model"] in (name, "shares, static", "shares, last week", "shares, last four weeks")])
                .drop(columns=["market"]).round(4).to_string(index=False), flush=True)
    nowcast = {f"{r['market']} {r['model']}": {} for r in rows if r["cell"]}
    for r in rows:
        if r["cell"] and r["task"] == "nowcast": nowcast[f"{r['market']} {r['model']}"][r["cell"]] = round(r["excess"], 4)
    summary = dict(last=a.last, skip=a.skip, excess_kl=nowcast, shares={f"{r['market']} {r['model'][8:]}": round(r["excess"], 4) for r in rows if not r["cell"]}, seconds=round(time.time() - start))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=json.loads(pd.DataFrame(rows).round(4).to_json(orient="records")), **summary), indent=1) + "\n"))
    print(json.dumps(summary))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--markets", nargs="+", type=Path, required=True); p.add_argument("--models", nargs="+", default=["running-tastes", "transfer-logit", "loyalty-logit"], choices=MODELS)
    p.add_argument("--last", type=int, default=6); p.add_argument("--skip", type=int, default=0, help="last periods that are left out"); p.add_argument("--customers", type=int); p.add_argument("--seeds", type=int, default=10, help="simulated paths of each forecast; 0: no forecast"); p.add_argument("--results", type=Path)
    main(p.parse_args())
