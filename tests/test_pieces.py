"The guess of pieces: whole distributions, nobody's own purchase, the law of demand, and what a known world does."
from dataclasses import replace

import numpy as np
import pytest

from malles.evaluation import train_and_test, trial_markets
from malles.facts import market_moments
from malles.metrics import quantity_scores
from malles.occasions import Occasions
from malles.pieces import CHEAPER, HALF, Lately, guess_pieces, usual_pieces
from malles.predictions import SUPPORT, Predictions
from malles.quantity import QuantityMedian
from malles.samples import sample_market
from malles.tastes import RunningTastes


@pytest.fixture(scope="module")
def corner():
    train, test = train_and_test(trial_markets(sample_market())[0], "customer", 0)
    facts = market_moments(train)
    return train, test, replace(facts, taken=usual_pieces(train, facts.usual))


def with_pieces(occasions, pieces):
    "The same purchases in other numbers of pieces, (rows of the log,)."
    return Occasions(replace(occasions.log, occasion={**occasions.log.occasion, "quantity": pieces.astype(float)}), occasions.rows)


def test_distributions_are_whole_and_better_than_the_categories(corner):
    train, test, facts = corner
    q = guess_pieces(test, facts)
    assert q.shape == (*test.mask.shape, len(SUPPORT)) and np.allclose(q.sum(2), 1, atol=1e-5) and (q >= 0).all() and np.allclose(facts.taken.shares.sum(1), 1)
    score = lambda p: quantity_scores(p, test).crps.mean()
    assert score(Predictions(quantity=q, support=SUPPORT)) < score(QuantityMedian().fit(train).predict(test)) - .01
    assert np.abs(RunningTastes().fit(train).predict(test).quantity - q).max() < 1e-6


def test_what_is_dearer_is_not_taken_in_larger_numbers(corner):
    "For whole distributions: dearer, and every P(more than k) falls or stays."
    _, test, facts = corner
    facts = replace(facts, taken=replace(facts.taken, weights=np.where(np.arange(18) == CHEAPER[0], .8, facts.taken.weights)))
    more = [guess_pieces(test.replace(price=test.price * f), facts).astype(float)[..., ::-1].cumsum(2)[test.mask] for f in (.7, 1, 1.4)]
    assert (more[0] >= more[1] - 1e-5).all() and (more[1] >= more[2] - 1e-5).all() and (more[0] - more[2]).max() > .05
    assert facts.taken.weights[CHEAPER[1]] <= 0 and (np.diff(facts.taken.tilt, axis=1) <= 1e-9).all()


def test_habits_and_deals_of_a_known_world_are_found(corner):
    "Pieces drawn from the very law, with other weights: what it says of households and of deals is found again."
    train, _, facts = corner
    flat = lambda facts, weights: replace(facts, taken=replace(facts.taken, tilt=0 * facts.taken.tilt, weights=weights))
    law = flat(facts, np.array([.5, 1., .6, 2., 0, 0, 0, 0, 0., 0., -1., 0, 0, 0, 0, 0, 0, .8]))
    pieces = np.ones(len(train.log.occasion["quantity"]))
    pieces[train.rows] = Predictions(np.ones((len(train), 1)), guess_pieces(train, law)[np.arange(len(train)), train.chosen][:, None], SUPPORT).sample()[1]
    drawn = with_pieces(train, pieces)                                       # its columns of the past are still those of the records
    found = replace(facts, taken=usual_pieces(drawn, facts.usual))
    told, true = (guess_pieces(train, f) for f in (found, law))
    kl = (true * np.log(np.maximum(true, 1e-12) / np.maximum(told, 1e-12))).sum(2)[train.mask].mean()
    blind = (true * np.log(np.maximum(true, 1e-12) / np.maximum(guess_pieces(train, flat(found, np.zeros(18))), 1e-12))).sum(2)[train.mask].mean()
    assert kl < blind / 5, (kl, blind)
    cut = train.replace(price=train.price * .7)
    effect = [(guess_pieces(cut, f) @ SUPPORT - guess_pieces(train, f) @ SUPPORT)[train.mask].mean() for f in (found, law)]
    assert abs(effect[0] / effect[1] - 1) < .25, effect


def test_nobodys_own_purchase_speaks_for_it(corner):
    "With numbers drawn at random there is nothing to tell but the shares; who saw the own purchase among them would believe them too much."
    train, test, facts = corner
    pieces = np.random.default_rng(1).integers(1, 7, len(train.log.occasion["quantity"]))
    noise = replace(facts, taken=usual_pieces(with_pieces(train, pieces), facts.usual))
    q = guess_pieces(test, noise)[test.mask]
    assert np.abs(q[:, :6].mean(0) - 1 / 6).max() < .02 and np.abs(q[:, :6] - 1 / 6).mean() < .03


def test_without_prices_households_still_tell(corner):
    train, test, facts = corner
    blind = [o.without("price", "price_level", "discount") for o in (train, test)]
    facts = market_moments(blind[0])
    facts = replace(facts, taken=usual_pieces(blind[0], facts.usual))
    q = guess_pieces(blind[1], facts)
    score = lambda p: quantity_scores(p, test).crps.mean()
    assert score(Predictions(quantity=q, support=SUPPORT)) < score(QuantityMedian().fit(train).predict(test)) - .01


def test_a_market_that_does_not_count(corner):
    train, test, facts = corner
    blank = with_pieces(train, np.full(len(train.log.occasion["quantity"]), np.nan))
    assert usual_pieces(blank, facts.usual) is None
    assert RunningTastes().fit(blank).predict(test).quantity is None


def test_what_others_took_these_days_counts_and_the_own_does_not():
    "Against the sums written out."
    rng = np.random.default_rng(0)
    m, products = 400, 5
    customer, product, time, more = rng.integers(30, size=m), rng.integers(products, size=m), rng.integers(40, size=m).astype(float), rng.normal(size=m)
    lately = Lately(customer, product, time, more, products)
    who, what, when = np.r_[customer[:50], 99], np.r_[product[:50], 1], np.r_[time[:50], 45.]
    w = np.where((product == what[:, None]) & (customer != who[:, None]), .5**(np.abs(time - when[:, None]) / HALF), 0)
    assert np.allclose(lately(who, what, when), w @ more / (w.sum(1) + 20))
    assert np.abs(lately(np.array([99, 99]), np.array([1, products - 1]), np.array([1e6, -1e6]))).max() < 1e-9   # long before and long after


def test_a_limit_of_one_for_a_few_days_is_noticed(corner):
    "Everybody takes five, but one each in one week: on that week's other purchases it shows, where prices say nothing."
    train, test, facts = corner
    day = lambda o: o.log.occasion["time"].astype("datetime64[D]").astype(int)
    week = (day(train) >= np.median(day(train))) & (day(train) < np.median(day(train)) + 7)
    pieces = np.where(week, 1, 5)
    blind = with_pieces(train, pieces).without("price", "price_level", "discount"), with_pieces(test, pieces).without("price", "price_level", "discount")
    told = replace(facts, taken=usual_pieces(blind[0], facts.usual))
    q = guess_pieces(blind[1], told)[np.arange(len(test)), test.chosen] @ SUPPORT
    limited = week[test.rows]
    assert limited.sum() > 20 and q[limited].mean() < q[~limited].mean() - 1, (q[limited].mean(), q[~limited].mean())
    without = guess_pieces(blind[1], replace(told, taken=replace(told.taken, lately=None)))[np.arange(len(test)), test.chosen] @ SUPPORT
    assert abs(without[limited].mean() - without[~limited].mean()) < .5
