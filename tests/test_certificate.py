"Laws of the certificate: the bar is exact, sees no future, flags what it cannot know; what is measured against it is measured rightly."
from dataclasses import fields, replace, MISSING
import json

import numpy as np
import pytest

from malles.certificate import certify, implied_response, main, plain, posterior_predictive, records, shuffled_past, tastes_matrix
from malles.facts import log_price
from malles.metrics import cross_entropy
from malles.occasions import Occasions
from malles.predictions import ChoiceModel, Predictions, softmax
from malles.profiles import with_profiles
from malles.shoppers import simulate
from malles.worlds import sample_world


def world_of(seed, J=None, **kw): return replace(plain(sample_world(np.random.default_rng(seed), J)), **kw)

def price_only(J=3, **kw):
    "A world where households differ in their price coefficient alone."
    w = world_of(1, J, **dict(spread=0., devoted=0., price=3., price_spread=.9, drift=.3, deal=0., display=0., feature=0., inertia=0., habit=0., absent=0.) | kw)
    return replace(w, loadings=0 * w.loadings)


class Knows(ChoiceModel):
    "Reads the answer off the simulator."
    name = "knows"
    def predict(self, occasions, mu=None): return Predictions(occasions.alternative("true_probability", 0.))

class Logit(ChoiceModel):
    name = "logit"
    def __init__(self, coefficient): self.coefficient = coefficient
    def predict(self, occasions, mu=None):
        u = -self.coefficient * log_price(occasions) + np.sin(occasions.product)
        return Predictions(softmax(np.where(occasions.mask & ~np.isnan(u), u, -np.inf)))


@pytest.mark.parametrize("seed", range(12))
def test_records_say_what_the_simulator_did(seed):
    world = world_of(seed)
    if seed % 2: world = replace(world, reference=1.5, inertia=.7, habit=2., absent=0.)
    occ, truth = simulate(world, 6, 12, seed)
    for h, taste in enumerate(tastes_matrix(truth.tastes[0])):
        one = occ[occ.customer == h]
        x, added = records(world, one)
        p = softmax(np.where(one.mask, x @ taste, 0) + added)
        assert np.abs(p - one.alternative("true_probability", 0.)).max() < 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_plain_hides_nothing(seed):
    world = world_of(seed)
    assert all(np.array_equal(getattr(world, f.name), f.default) or getattr(world, f.name) is f.default for f in fields(world) if f.default is not MISSING)
    assert not (world.absent and world.reference)
    occ, _ = simulate(world, 3, 5, seed)
    assert (occ.chosen >= 0).all() and np.isfinite(occ.price[occ.mask]).all() and len(occ) == 15


def test_remembered_prices_of_absent_alternatives_are_refused():
    world = price_only(absent=.5, reference=1.)
    with pytest.raises(ValueError, match="plain"): posterior_predictive(world, simulate(world, 4, 10, 0)[0])


def test_posterior_is_the_integral():
    "One unknown, so Bayes' rule can be had by quadrature."
    world = price_only(reference=1.)
    occ, truth = simulate(world, 8, 15, 2)
    got = posterior_predictive(world, occ, truth.tastes[0].price + 1, draws=20_000, least=2000)
    z = np.linspace(-6, 6, 4001)
    weight = np.exp(-z**2 / 2)
    coefficient = 3. * np.exp(.9 * np.sqrt(2) * .7 * z)                       # two parts of .7: the household's trait and its own
    for h in range(8):
        at = np.flatnonzero(occ.customer == h)
        lp = log_price(occ[at])
        memory = lp[0].copy()
        w = weight.copy()
        for t, i in enumerate(at):
            p = softmax(world.appeal - coefficient[:, None] * lp[t] + (memory - lp[t]))
            memory = .7 * memory + .3 * lp[t]
            assert np.abs(w @ p / w.sum() - got.choice[i]).max() < .01
            assert abs(w @ np.log(coefficient + 1) / w.sum() - got.log_price[i]) < .02
            assert abs(w @ (coefficient < truth.tastes[0].price[h]) / w.sum() - got.below[i]) < .03
            w = w * p[:, occ.chosen[i]]


def test_alike_households_hold_no_secret():
    world = price_only(reference=1., price_spread=0.)
    occ, _ = simulate(world, 5, 30, 0)
    got = posterior_predictive(world, occ, draws=200)
    assert np.abs(got.choice - occ.alternative("true_probability")).max() < 1e-5 and np.allclose(got.effective, 200) and got.known.all()


def test_no_future_and_any_view():
    world = world_of(4, 5)
    occ, _ = simulate(world, 6, 12, 0)
    one = dict(draws=3000, blocks=1, least=10)
    whole = posterior_predictive(world, occ, **one)
    some = np.random.default_rng(0).choice(len(occ), 20, replace=False)
    assert np.abs(posterior_predictive(world, occ[some], **one).choice - whole.choice[some]).max() < 1e-6
    at = np.tile(np.arange(12), 6)
    chosen = np.where(at >= 7, (occ.chosen + 1) % occ.sizes, occ.chosen).astype(np.int32)
    other = posterior_predictive(world, Occasions(replace(occ.log, occasion={**occ.log.occasion, "chosen": chosen})), **one).choice
    assert np.abs(other - whole.choice)[at <= 7].max() < 1e-6 < 1e-3 < np.abs(other - whole.choice)[at > 7].max()


def test_a_long_loyal_past_stays_within_floats():
    "Four hundred purchases of nearly always one of twelve: against pure chance each draw gains a factor of twelve a visit, 12^400 in all."
    world = price_only(12, appeal=np.r_[6., np.zeros(11)], price=1.)
    occ, truth = simulate(world, 3, 400, 0)
    got = posterior_predictive(world, occ, truth.tastes[0].price, draws=1000, least=20)
    for x in (got.choice, got.effective, got.log_price, got.below, got.response): assert np.isfinite(x).all()
    q = occ.alternative("true_probability")
    assert got.known.all() and np.allclose(got.choice.sum(1), 1) and np.abs(got.choice - q)[np.arange(1200) % 400 > 300].max() < .02
    no_help = posterior_predictive(world_of(5, 12, spread=6., loadings=np.zeros((12, 1)), reference=0.), simulate(world_of(5, 12, spread=6., reference=0.), 1, 400, 0)[0], draws=500, blocks=2, least=20)
    assert np.isfinite(no_help.choice).all() and (no_help.known == (no_help.effective >= 20)).all() and not no_help.known[-1]


@pytest.mark.parametrize("hidden", [dict(shock=.3), dict(empty=.1), dict(ghosts=True, turnover=.5), dict(outside=.3), dict(gaps=.1), dict(priced=False), dict(marked=False, deal=1.)])
def test_worlds_of_which_records_hide_a_part_are_refused(hidden):
    world = price_only(**hidden)
    occ, _ = simulate(world, 4, 5, 0)
    with pytest.raises(ValueError, match=next(iter(hidden))): posterior_predictive(world, occ, draws=50)
    posterior_predictive(plain(world), simulate(plain(world), 4, 5, 0)[0], draws=50, blocks=1)


def test_visits_without_a_purchase_are_refused():
    occ, _ = simulate(price_only(), 4, 5, 0)
    chosen = occ.chosen.copy(); chosen[7] = -1
    with pytest.raises(ValueError, match="without a purchase"): posterior_predictive(price_only(), Occasions(replace(occ.log, occasion={**occ.log.occasion, "chosen": chosen}))[:3], draws=50)


def test_more_draws_where_few_count_and_a_flag_where_none_help():
    world = world_of(5, 9, spread=2., price=3.)
    occ, _ = simulate(world, 6, 20, 0)
    once, more = (posterior_predictive(world, occ, draws=1000, blocks=b, least=50) for b in (1, 100))
    assert once.known.mean() < more.known.mean() and (once.known == (once.effective >= 50)).all() and once.effective.max() <= 1000
    assert np.isfinite(once.choice).all() and np.allclose(once.choice.sum(1), 1)
    assert np.allclose(posterior_predictive(world, occ, draws=1000, blocks=3).choice, posterior_predictive(world, occ, draws=1000, blocks=3).choice)


def test_true_price_is_anywhere_in_its_posterior():
    "Simulation-based calibration; and a reader with another law in mind is caught."
    from scipy.stats import kstest
    below, wrong = [], []
    for seed in range(12):
        world = world_of(100 + seed, 3, price_spread=.8, drift=.15)
        occ, truth = simulate(world, 30, 10, seed)
        price, last = truth.tastes[0].price + world.reference, occ[np.arange(9, 300, 10)]
        below.append(posterior_predictive(world, last, price, draws=3000).below)
        wrong.append(posterior_predictive(replace(world, price=1.5 * world.price), last, price, draws=3000).below)
    below, wrong = np.concatenate(below), np.concatenate(wrong)
    tenths = np.histogram(below, 10, (0, 1))[0]
    assert kstest(below, "uniform").pvalue > .001 and ((tenths - 36)**2 / 36).sum() < 27.9  # chi-square, 9 degrees, one in a thousand
    assert kstest(wrong, "uniform").pvalue < 1e-6


def test_the_law_of_the_world_beats_any_other_law():
    total = np.zeros(3)
    for seed in range(6):
        world = world_of(200 + seed, 4)
        occ, _ = simulate(world, 20, 15, seed)
        q = occ.alternative("true_probability", 0.)
        others = (replace(world, appeal=world.appeal[::-1]), replace(world, spread=.3 * world.spread, loadings=.3 * world.loadings, price=.3 * world.price))
        total += [cross_entropy(q, posterior_predictive(w, occ, draws=3000).choice).mean() for w in (world, *others)]
    assert total[0] < total[1:].min()


@pytest.mark.parametrize("coefficient", [.5, 3., 8.])
def test_response_of_a_logit_is_its_coefficient(coefficient):
    occ, _ = simulate(world_of(3, 6, absent=.3, reference=0.), 5, 4, 0)
    assert np.allclose(implied_response(Logit(coefficient), occ), coefficient, atol=1e-6)
    blind = occ.replace(price=np.nan)
    assert np.isnan(implied_response(Logit(coefficient), blind)).all()


def test_response_of_the_posterior_is_what_a_what_if_gives():
    world = world_of(7, 4, price_spread=.8, absent=0., reference=0.)
    occ, _ = simulate(world, 10, 8, 0)
    last = occ[np.arange(7, 80, 8)]
    class Exact(ChoiceModel):
        def predict(self, occasions, mu=None):
            out = []
            for i in range(len(occasions)):      # the what-if price stands in the log, where the posterior reads
                a, b = occasions.log.offsets[occasions.rows[i]:occasions.rows[i] + 2]
                price = occasions.log.alternative["price"].copy(); price[a:b] = occasions.price[i]
                changed = Occasions(replace(occasions.log, alternative={**occasions.log.alternative, "price": price}), occasions.rows[[i]])
                out.append(posterior_predictive(world, changed, draws=2000, blocks=1).choice[0])
            return Predictions(np.array(out))
    exact = posterior_predictive(world, last, draws=2000, blocks=1)
    assert np.allclose(implied_response(Exact(), last, .02), exact.response, rtol=.02)


def test_shuffling_changes_the_order_and_nothing_else():
    occ = with_profiles(simulate(world_of(2, 4, absent=.2, reference=0.), 20, 9, 0)[0])
    last = occ[np.arange(8, 180, 9)]
    mixed = shuffled_past(last, 1)
    assert (mixed.occasion_id == last.occasion_id).all() and (mixed.chosen == last.chosen).all() and (mixed.column("n_past") == 8).all()
    for name in ("price", "product", "true_probability", "own_count"): assert np.array_equal(mixed.alternative(name), last.alternative(name), equal_nan=True)
    assert not np.array_equal(mixed.alternative("loyalty", 0), last.alternative("loyalty", 0))
    for i in range(20):
        before, after = occ.past(i * 9 + 8), mixed.past(i)
        assert sorted(before.occasion_id) == sorted(after.occasion_id)
        again = {o: p for o, p in zip(after.occasion_id, np.nan_to_num(after.price)[np.arange(8), after.chosen])}
        assert all(again[o] == p for o, p in zip(before.occasion_id, before.price[np.arange(8), before.chosen]))
    with pytest.raises(ValueError, match="order"): shuffled_past(simulate(world_of(2, 4), 4, 5, 0, ordered=False)[0])


def test_a_model_that_knows_beats_the_bar_and_does_not_mind_a_shuffle():
    c = certify(Knows(), worlds=3, households=4, occasions=12, crowd=20, draws=2000)
    assert np.allclose(c.table.model, c.table.truth) and (c.table.gap < 0).all() and c.table.loc["all", "n"] == c.occasions.known.sum() <= 144
    assert c.households.cost.abs().max() == 0 and c.households.moved.max() == 0
    none = certify(Knows(), worlds=2, households=6, occasions=8, crowd=20, draws=200, blocks=1, least=60)
    assert 0 < none.figures["left_out"] < 1 and none.table.loc["all", "n"] == none.occasions.known.sum()
    assert {"gap_after_20", "price_correlation", "price_correlation_posterior", "shuffle_cost"} <= set(none.figures)


def test_command_line_ends_with_json(capsys):
    main(["--worlds", "2", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["model"] == "nano" and told["worlds"] == 2 and 0 <= told["left_out"] < .2 and -1 <= told["price_correlation"] <= 1
