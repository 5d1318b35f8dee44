"Offers that cannot be meant are refused, the dealer's order is the best one, and bargains keep every side above what it has without them."
from dataclasses import replace
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from malles.bargaining import Dealer, Manufacturer, bargain, best_terms, refused, solutions
from malles.wholesale import Offer, best_lot, best_order, demand_quantiles, expected_profit, parse_wholesale, read_offer


@pytest.mark.parametrize("bad", [dict(price=-1.), dict(price=0.), dict(price=math.nan), dict(price=math.inf), dict(quantity=(-5.,)), dict(quantity=(math.nan,)), dict(quantity=(1., 2.)), dict(delivery=-1), dict(terms=-3), dict(quantity=(1., 2.), products=(0, 0))])
def test_offers_that_cannot_be_meant(bad):
    with pytest.raises(ValueError): Offer(**dict(price=3., quantity=(10.,)) | bad)


@given(st.floats(.01, 1e4), st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 10**6)), min_size=1, max_size=5, unique_by=lambda x: x[0]), st.integers(0, 90), st.integers(0, 90))
@settings(max_examples=60, deadline=None)
def test_an_offer_survives_its_text(price, lines, delivery, terms):
    offer = Offer(round(price, 4) or .0001, tuple(float(q) for _, q in lines), tuple(j for j, _ in lines), delivery, terms)
    again = read_offer(str(offer))
    assert again.products == offer.products and np.allclose(again.quantity, offer.quantity, rtol=1e-4) and abs(again.price - offer.price) < 1e-3
    assert parse_wholesale(str(offer))[0] == offer.products


def test_the_order_is_the_best_one():
    rng = np.random.default_rng(0)
    for k in range(6):
        P = int(rng.integers(1, 4))
        demand = demand_quantiles(rng.normal(100, 25, (30, P)).clip(0))
        cost = rng.uniform(2, 6, P); resale = cost * rng.uniform(1.2, 3, P); volume = rng.uniform(.5, 2, P)
        budget, shelf = rng.uniform(.4, 1.2) * (cost * 100).sum(), rng.uniform(.4, 1.2) * (volume * 100).sum()
        q = best_order(demand, cost, resale, budget=budget, volume=volume, shelf=shelf)
        assert q @ cost <= budget * (1 + 1e-6) and q @ volume <= shelf * (1 + 1e-6)
        value = lambda x: -expected_profit(x, demand, cost, resale).sum()
        other = minimize(value, q * .9, method="SLSQP", bounds=[(0, None)] * P, constraints=[dict(type="ineq", fun=lambda x: budget - x @ cost), dict(type="ineq", fun=lambda x: shelf - x @ volume)])
        assert -value(q) >= -other.fun - 2e-3 * abs(other.fun)


def test_regret_is_that_of_the_plug_in():
    rng, dealer, plug = np.random.default_rng(1), [], []
    def regret(q, c):
        profit = lambda q: 10 * (q - 25 * ((q - 100) / 25 * norm.cdf((q - 100) / 25) + norm.pdf((q - 100) / 25))) - c * q
        return profit(norm.ppf(1 - c / 10, 100, 25)) - profit(q)
    for ratio in (.2, .5, .8):
        for _ in range(300):
            past = rng.normal(100, 25, 30).clip(0)
            dealer.append(regret(best_order(demand_quantiles(past), 10 * (1 - ratio), 10.)[0], 10 * (1 - ratio)))
            plug.append(regret(norm.ppf(ratio, past.mean(), past.std(ddof=1)), 10 * (1 - ratio)))
    assert np.mean(dealer) <= 1.02 * np.mean(plug)
    assert abs(best_lot(120., 50., .4) / math.sqrt(2 * 50 * 120 / .4) - 1) < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_bargains_keep_everybody_whole(seed):
    rng = np.random.default_rng(seed)
    mu, cost = rng.uniform(50, 500), rng.uniform(2, 6)
    resale = cost * rng.uniform(1.5, 3)
    dealer = Dealer(tuple(rng.normal(mu, .2 * mu, 30).clip(0)), resale, outside=.1 * mu * (resale - cost))
    maker = Manufacturer(cost, mu * rng.uniform(.8, 2), outside=.1 * mu * (resale - cost))
    frame, points = best_terms(dealer, maker), solutions(dealer, maker)
    for e in ((1., 1.), (.3, 2.)):
        deal = bargain(dealer, maker, 30, e)
        assert deal.offer is not None and not refused(deal.offer, dealer, maker) and deal.offer.units <= maker.capacity * (1 + 1e-9)
        assert deal.dealer >= dealer.outside - 1e-6 and deal.maker >= maker.outside - 1e-6
        assert deal.dealer + deal.maker >= .95 * (dealer.profit(frame) + maker.profit(frame))
    assert all(sum(v) == pytest.approx(sum(points["Nash"])) for v in points.values())
    said = [b.offer for b in deal.bids]
    again = bargain(dealer, maker, 30, e, given=said[:3])
    assert again.said == len(again.bids) - 3 and again.offer == deal.offer                # what was said is not said again, and changes nothing
    for bad in (replace(frame, quantity=(maker.capacity * 2,)), replace(frame, price=maker.cost * .5), replace(frame, price=dealer.resale * 2)): assert refused(bad, dealer, maker)


def test_nothing_to_bargain_about():
    with pytest.raises(ValueError, match="nothing to bargain"): best_terms(Dealer((50., 60., 55.), 3.), Manufacturer(5., 100.))
    with pytest.raises(ValueError): demand_quantiles([5.])
    with pytest.raises(ValueError): demand_quantiles([5., -1.])
