"No model reads the outcome that it is to predict, nor anything later: outcomes are changed, predictions must not."
import numpy as np, pytest
from dataclasses import replace

from malles.bench import Contender
from malles.contenders import contenders_for
from malles.evaluation import TrialMarket, train_and_test
from malles.occasions import Occasions
from malles.populations import simulate_population
from malles.choicesets import build_occasions
from malles.profiles import with_profiles


def other_outcomes(occasions, which, seed=1):
    "The same occasions with other choices and quantities in some rows, profiles built anew."
    rng, L = np.random.default_rng(seed), occasions.log
    rows = occasions.rows[which]
    chosen, quantity = L.occasion["chosen"].copy(), L.occasion["quantity"].copy()
    sizes = np.diff(L.offsets)
    chosen[rows] = (chosen[rows] + 1 + rng.integers(0, 10**6, len(rows)) % np.maximum(sizes[rows] - 1, 1)) % sizes[rows]
    quantity[rows] = 1 + (quantity[rows] + rng.integers(0, 5, len(rows))) % 9
    alternative = {k: v for k, v in L.alternative.items() if k != "bought"}
    log = replace(L, occasion={**L.occasion, "chosen": chosen, "quantity": quantity}, alternative=alternative)
    return with_profiles(Occasions(log, occasions.rows))


@pytest.fixture(scope="module")
def trial():
    market, _ = simulate_population(90, categories=2, trade=0, weeks=30, seed=11)
    occasions = with_profiles(build_occasions(market))
    return TrialMarket("peek", "peek", occasions, True, None, True)


FIELD = ["uniform", "running-tastes", "popularity", "last-purchase", "dirichlet", "markov", "logit", "loyalty-logit", "mixed-logit", "latent-class", "lightgbm", "lightgbm-monotone", "transfer-logit", "sim-logit", "nano", "nano-no-facts", "nano-no-shares",
         "quantity-median", "quantity-last", "quantity-poisson", "quantity-hurdle", "quantity-lightgbm"]


@pytest.mark.parametrize("name", FIELD)
def test_predictions_do_not_depend_on_the_outcome(trial, name):
    field = {c.name: c for c in contenders_for([trial])(trial)}
    assert set(FIELD) == set(field), "the list above names the whole field"
    train, test = train_and_test(trial, "customer", 0)
    model = field[name].make().fit(train)
    latest = np.zeros(len(test.customers), test.time.dtype)
    np.maximum.at(latest, test.customer, test.time)
    last = test.time == latest[test.customer]  # the latest occasions of each household, in any category: nobody's past
    assert last.sum() >= 10
    changed = other_outcomes(test, last)
    a, b = model.predict(test), model.predict(changed)
    for x, y, what in ((a.choice, b.choice, "choice"), (a.quantity, b.quantity, "quantity")):
        if x is not None: np.testing.assert_allclose(x, y, atol=1e-5, err_msg=f"{name} reads the {what} that it is to predict")
