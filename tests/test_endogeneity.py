"Prices that know too much: instruments find what least squares misses, and weak ones say that they cannot."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from malles.endogeneity import WEAK, price_response, with_price_residual
from malles.logits import Logit
from malles.profiles import with_profiles
from malles.shoppers import sample_world, simulate


def shop(seed, pass_through=.7, foresight=.8, stores=40, weeks=25, elasticity=-2.5):
    rng = np.random.default_rng(seed)
    store, week = np.repeat(np.arange(stores), weeks), np.tile(np.arange(weeks), stores)
    cost, demand, deal = .15 * rng.normal(size=len(store)), .3 * rng.normal(size=len(store)), rng.random(len(store)) < .2
    log_p = rng.normal(size=stores)[store] * .1 + pass_through * cost + foresight * .3 * demand - .1 * deal + .03 * rng.normal(size=len(store))
    return pd.DataFrame(dict(store=store, week=week, brand="b", price=np.exp(log_p), cost=cost, deal=deal.astype(float), units=np.exp(4 + rng.normal(size=stores)[store] + elasticity * log_p + .5 * deal + demand + .2 * rng.normal(size=len(store)))))


def test_costs_find_the_elasticity_that_foresight_hides():
    found = [price_response(shop(s), ["cost"], controls=["deal"], draws=200) for s in range(120)]
    by = np.array([f.instrumented for f in found])
    covered = np.mean((by[:, 1] <= -2.5) & (-2.5 <= by[:, 2]))
    assert .82 <= covered <= .97, f"90 % intervals cover the truth in {covered:.0%} of 120 shops"
    assert abs(by[:, 0].mean() + 2.5) < .05 and all(f.identified for f in found)
    assert np.mean([f.naive[2] > -2.5 and f.naive[1] > -2.5 for f in found]) > .95, "least squares is not misled, so nothing was shown"


def test_two_stage_least_squares_by_hand():
    sales = shop(3)
    x, z, y = (sales[c] - sales.groupby("store")[c].transform("mean") for c in ("lp", "cost", "lq")) if "lp" in sales else (
        (lambda v: v - v.groupby(sales.store).transform("mean"))(v) for v in (np.log(sales.price), sales.cost, np.log(sales.units)))
    assert abs(price_response(sales, ["cost"]).instrumented[0] - (z @ y) / (z @ x)) < 1e-8
    assert abs(price_response(sales, ["cost"]).naive[0] - (x @ y) / (x @ x)) < 1e-8


def test_weak_instruments_are_no_answer():
    weak = [price_response(shop(s, pass_through=0.), ["cost"], draws=50) for s in range(20)]
    assert np.mean([f.identified for f in weak]) <= .1
    no = next(f for f in weak if not f.identified)
    assert np.isnan(no.instrumented).all() and "not identified" in str(no) and no.F < WEAK


@pytest.mark.parametrize("change, says", [(lambda s: s.drop(columns="cost"), "lack the columns cost"), (lambda s: s.assign(units=0.), "no positive units"), (lambda s: s[s.store < 5], "at least ten clusters"), (lambda s: s.assign(deal=np.nan), "lack an instrument or a control")])
def test_bad_tables(change, says):
    with pytest.raises(ValueError, match=says): price_response(change(shop(1)), ["cost"], controls=["deal"])


def confounded(seed, move=1., beta=3., products=4):
    rng = np.random.default_rng(seed)
    world = replace(sample_world(rng, products), absent=0., turnover=0., empty=0., outside=-np.inf)
    o = simulate(world, 200, 12, rng=seed)[0]
    n = len(o.log.alternative["product"])
    cost, demand = .2 * rng.normal(size=n), .5 * rng.normal(size=n)
    log_p = move * cost + .4 * demand + .05 * rng.normal(size=n)
    chosen = (-beta * log_p + demand + rng.gumbel(size=n)).reshape(-1, products).argmax(1)
    return with_profiles(o.with_columns(dict(chosen=chosen), dict(price=np.exp(log_p).astype(np.float32), cost=cost.astype(np.float32))))


def test_the_control_function_mends_a_logit():
    "The response that a logit of the library answers a price with, with and without the residual (Petrin and Train 2010)."
    def response(o, columns):
        model = Logit(columns=columns).fit(o)
        p, q = model.predict(o).choice, model.predict(o.replace(price=o.price * np.where(o.product == 0, 1.05, 1))).choice
        odds = lambda p: np.log(p[o.product == 0] / (1 - p[o.product == 0]))
        return np.mean(odds(q) - odds(p)) / np.log(1.05)
    errors = []
    for s in range(4):
        market = confounded(s)
        errors.append((response(market, ()) + 3, response(with_price_residual(market), ("price_residual",)) + 3))
    naive, mended = np.abs(np.array(errors)).mean(0)
    assert mended < .35 < .8 < naive, f"errors of the slope: {naive:.2f} without, {mended:.2f} with"


def test_choices_without_an_instrument_are_refused():
    with pytest.raises(ValueError, match="not identified"): with_price_residual(confounded(1, move=0.))
    with pytest.raises(ValueError, match="no column 'wholesale'"): with_price_residual(confounded(1), "wholesale")
