"Offers that cannot be meant are refused, the dealer's order is the best one, and bargains keep every side above what it has without them."
from dataclasses import replace
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from malles.bargaining import Dealer, Manufacturer, at_profit, bargain, best_terms, refused, solutions
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


@pytest.mark.parametrize("seed", range(6))
def test_a_scarce_shelf_is_filled_and_no_more(seed):
    rng = np.random.default_rng(seed)
    demand, cost = demand_quantiles(rng.normal(100, 20, (30, 3))), rng.uniform(2, 6, 3)
    resale, shelf = cost * rng.uniform(1.3, 3, 3), rng.uniform(40, 160)
    q = best_order(demand, cost, resale, shelf=shelf)
    size = np.diff(np.vstack([np.zeros(3), demand]), axis=0).ravel()            # units between two demands, and what one more of them earns: taken in its order, they are the best order
    worth = (resale * (1 - np.arange(len(demand))[:, None] / len(demand)) - cost).ravel()
    best = np.argsort(-worth)
    taken = np.clip(shelf - np.append(0, np.cumsum(size[best])[:-1]), 0, size[best])
    assert q.sum() == pytest.approx(shelf, rel=1e-9) and expected_profit(q, demand, cost, resale).sum() == pytest.approx(taken @ worth[best], rel=1e-4)


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


@pytest.mark.parametrize("seed, recorded", [  # before firms of several products; the second fills its capacity
    (1, (5.801854785303741, 269.65946535759457, 965.9213723315147, -42.88386833575765, 6.93724155141688, 665.7930581879982, 259.50924862549925, 461.51875199787855)),
    (3, (2.947242026384399, 78.80848001540971, 371.7781062681895, -9.75931594522781, 4.369784804944569, 261.8811261761803, 100.96695941298715, 181.00939516148085))])
def test_one_product_is_what_it_was(seed, recorded):
    rng = np.random.default_rng(seed)
    mu, cost = rng.uniform(50, 500), rng.uniform(2, 6)
    resale = cost * rng.uniform(1.5, 3)
    sales = rng.normal(mu, .2 * mu, 30).clip(0)
    maker = Manufacturer(cost, mu * rng.uniform(.6, 2), outside=.1 * mu * (resale - cost))
    for dealer, other in ((Dealer(tuple(sales), resale, .2 * cost, maker.outside), maker), (Dealer(sales[:, None], [resale], [.2 * cost], maker.outside), replace(maker, cost=[cost]))):
        frame, deal, points = best_terms(dealer, other), bargain(dealer, other, 30, (.3, 2.)), solutions(dealer, other)
        got = frame.price, frame.units, dealer.profit(frame), other.profit(frame), deal.offer.price, deal.dealer, deal.maker, points["Nash"][0]
        assert got == pytest.approx(recorded, rel=1e-9) and (frame.delivery, frame.terms, deal.said) == (3, 90, 20)


def three_products(seed, room):
    rng = np.random.default_rng(seed)
    mu, cost = rng.uniform(50, 300, 3), rng.uniform(2, 9, 3)
    resale = cost * rng.uniform(1.6, 3, 3)
    alone = .05 * mu @ (resale - cost)
    return Dealer(rng.normal(mu, .2 * mu, (30, 3)).clip(0), resale, .2 * cost, alone), Manufacturer(cost, room * mu.sum(), alone)


@pytest.mark.parametrize("seed, room", [(0, .35), (1, .6), (2, .8), (3, 2.)])
def test_three_products_share_a_capacity(seed, room):
    dealer, maker = three_products(seed, room)
    both = lambda q, d, t: sum(side.profit(Offer(maker.cost @ q / sum(q), tuple(q), (0, 1, 2), d, t)) for side in (dealer, maker))
    start, limit = np.full(3, maker.capacity / 4), dict(type="ineq", fun=lambda q: maker.capacity - sum(q))
    frontier = max(-minimize(lambda q: -both(q, d, t), start, method="SLSQP", bounds=[(.01, None)] * 3, constraints=limit).fun for d in (1, 2, 3, 5, 7) for t in (0, 90))
    frame, nash = best_terms(dealer, maker), solutions(dealer, maker)["Nash"]
    assert dealer.profit(frame) + maker.profit(frame) == pytest.approx(frontier, rel=5e-4)
    assert (frame.units == pytest.approx(maker.capacity, rel=1e-9)) == (room < 1)
    assert nash[0] - dealer.outside == pytest.approx(nash[1] - maker.outside)
    for e in ((1., 1.), (.3, 2.)):
        deal = bargain(dealer, maker, 30, e)
        assert not any(refused(b.offer, dealer, maker) for b in deal.bids) and deal.dealer + deal.maker >= .95 * frontier
    said = [b.offer for b in deal.bids]
    again = bargain(dealer, maker, 30, e, given=said[:3])
    assert again.said == len(again.bids) - 3 and again.offer == deal.offer
    strange = replace(said[1], products=(*said[1].products[1:], 7))
    part = at_profit(maker, maker.outside + 1, replace(said[2], quantity=said[2].quantity[1:], products=said[2].products[1:]))
    edited = bargain(dealer, maker, 30, e, given=(said[0], strange, part))           # what nobody sells cannot stand, a part can; the talk goes on
    assert "knows no product #7" in edited.bids[1].note and (edited.bids[2].offer, edited.bids[2].note) == (part, "asks") and edited.offer is not None and edited.offer.products == frame.products


def test_profits_are_those_of_the_products_named():
    dealer, maker = three_products(5, 1.)
    alone = lambda j: (replace(dealer, sales=dealer.sales[:, j], resale=dealer.resale[j], salvage=dealer.salvage[j]), replace(maker, cost=maker.cost[j]))
    offer = Offer(9., (40., 70.), (2, 0), 3, 60)
    for k, side in enumerate((dealer, maker)):
        parts = [alone(j)[k].profit(Offer(9., (q,), (0,), 3, 60)) for j, q in zip(offer.products, offer.quantity)]
        assert side.profit(offer) == pytest.approx(sum(parts), rel=1e-12) and side.profit(read_offer(str(offer))) == pytest.approx(sum(parts))
    dear = replace(maker, cost=np.array([1e4, *maker.cost[1:]]))
    assert best_terms(dealer, dear).products == (1, 2)                                # what does not pay is not named
    assert best_terms(replace(dealer, resale=20.), replace(maker, cost=5.)).products == (0, 1, 2)   # one number holds for all


def test_what_firms_do_not_know_or_cannot_make():
    dealer, maker = three_products(5, 1.)
    frame, part = best_terms(dealer, maker), replace(maker, cost=maker.cost[:2])
    assert refused(replace(frame, products=(0, 1, 3)), dealer, maker) == "the dealer knows no product #3, only #0 to #2"
    assert refused(frame, dealer, part) == "the manufacturer knows no product #2, only #0 to #1" and best_terms(dealer, part).products == (0, 1)
    assert "knows no product #-1" in refused(replace(frame, products=(0, 1, -1)), dealer, maker)
    assert "beyond the capacity" in refused(replace(frame, quantity=(maker.capacity * .4,) * 3), dealer, maker)
    for wrong in (dict(resale=(9., 8.)), dict(salvage=(1.,))):
        with pytest.raises(ValueError, match="one for each of 3 products"): replace(dealer, **wrong)


def test_nothing_to_bargain_about():
    with pytest.raises(ValueError, match="nothing to bargain"): best_terms(Dealer((50., 60., 55.), 3.), Manufacturer(5., 100.))
    with pytest.raises(ValueError): demand_quantiles([5.])
    with pytest.raises(ValueError): demand_quantiles([5., -1.])


def test_a_bargain_has_room_for_what_is_given():
    d, m = Dealer((50., 60., 70., 55.), 5.), Manufacturer(2., 100.)
    offer = bargain(d, m).bids[0].offer
    for turns, given in ((1, ()), (3, (offer,) * 4)):
        with pytest.raises(ValueError, match="at least two turns"): bargain(d, m, turns=turns, given=given)
    assert bargain(d, m, turns=3, given=(offer,) * 3).said == 0


def test_what_takes_no_room_is_no_trouble_to_a_shelf():
    sales = np.random.default_rng(0).normal(50, 10, (30, 2))
    q = best_order(demand_quantiles(sales), 2., 5., volume=[0., 1.], shelf=20.)
    assert abs(q[1] - 20) < 1e-6 and q[0] > 40


@pytest.mark.parametrize("seed", range(4))
def test_the_service_agent_overlooks_nothing(seed):
    "Against every delivery, credit and warranty, each with its best order."
    from itertools import product
    rng = np.random.default_rng(seed)
    dealer = Dealer(rng.normal([60, 40], 12, (30, 2)).clip(0), resale=tuple(rng.uniform(8, 12, 2)), salvage=.5, rate=rng.uniform(.02, .12), wait=rng.uniform(0, .01), assurance=rng.uniform(0, .15))
    maker = Manufacturer(tuple(rng.uniform(3, 6, 2)), 80., rate=rng.uniform(.02, .12), haste=rng.uniform(0, 1), repair=rng.uniform(.05, .5))
    joint = lambda o: dealer.profit(o) + maker.profit(o)
    best, tried = best_terms(dealer, maker), []
    for x in product((1, 2, 3, 5, 7, 10, 14, 21), (0, 14, 30, 60, 90), (0, 6, 12, 24, 36)):
        probe, cost = Offer(1., (1., 1.), (0, 1), *x), np.array(maker.cost)
        q = best_order(dealer.demand(), dealer.price_paid(probe, cost) - cost + maker.unit_cost(probe, cost), np.array(dealer.resale), np.full(2, .5), shelf=80.)
        if (q > 0).all(): tried.append(joint(Offer(float(cost @ q / q.sum()), tuple(q), (0, 1), *x)))
    assert joint(best) > max(tried) - 1e-6 * abs(max(tried))
    assert read_offer(str(replace(best, warranty=24))).warranty == 24 and read_offer("#0 x1 @ 2").warranty == 0
    with pytest.raises(ValueError, match="a warranty is months"): replace(best, warranty=-1)
