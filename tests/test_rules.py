"Rules: planted laws are found, signs reject, searches repeat, and tables that cannot be searched say why."
import numpy as np
import pandas as pd
import pytest
import sympy as sp

from malles.formulas import nodes, value
from malles.rules import search_rules
from malles.trials import breaks_sign


def table(seed=0, n=300, noise=.05):
    rng = np.random.default_rng(seed)
    t = pd.DataFrame(dict(mean=rng.uniform(5, 50, n), price=rng.uniform(3, 10, n), cost=rng.uniform(.5, 2.5, n)))
    return t.assign(order=t["mean"] * np.log(t.price / t.cost) * np.exp(noise * rng.normal(size=n)))


@pytest.fixture(scope="module")
def newsvendor():
    return search_rules(table(), "order", signs=dict(mean=1, cost=-1), seconds=600)


def test_newsvendor_with_exponential_demand_is_chosen(newsvendor):
    exact = table(9, noise=0)
    assert np.abs(newsvendor.predict(exact) - exact.order).max() < .06 * exact.order.mean(), newsvendor.rule
    assert {type(f) for f in newsvendor.rule.atoms(sp.Function)} == {sp.log}, newsvendor.rule
    assert newsvendor.complete and newsvendor.front.chosen.sum() == 1
    assert (newsvendor.front.error.diff().dropna() < 0).all() and (newsvendor.front.nodes.diff().dropna() >= 0).all()
    pick = newsvendor.front[newsvendor.front.chosen].iloc[0]
    assert .95 < pick.explained < 1 and "$" in newsvendor._repr_markdown_()
    assert np.sqrt(np.mean((newsvendor.predict(table(5)) - table(5).order)**2)) == pytest.approx(pick.error, rel=.25), "held-out error is that of new rows"


def test_search_repeats_by_seed(newsvendor):
    again = search_rules(table(), "order", signs=dict(mean=1, cost=-1), seconds=600)
    assert again.front.equals(newsvendor.front) and again.coefficients.equals(newsvendor.coefficients)


def test_a_discount_counts_from_a_threshold_on():
    rng = np.random.default_rng(0)
    t = pd.DataFrame(dict(depth=rng.uniform(0, .5, 300), age=rng.uniform(20, 70, 300)))
    t["uplift"] = 3 * np.maximum(0, t.depth - .15) + .02 * rng.normal(size=300)
    book = search_rules(t, "uplift", seconds=600)
    said = book.predict(pd.DataFrame(dict(depth=[0., .1, .2, .3, .5], age=40.)))
    assert np.allclose(said, [0, 0, .15, .45, 1.05], atol=.03), book.rule
    assert book.rule.has(sp.Max) and len(book.rule.free_symbols) == 1


def test_signs_and_lengths_are_those_of_the_formula():
    p, q = sp.symbols("p q", positive=True)
    columns = {p: np.linspace(1, 3, 40), q: np.linspace(2, 5, 40)}
    rng = np.random.default_rng(0)
    assert not breaks_sign(q / p, columns, p, -1, rng) and breaks_sign(q / p, columns, p, 1, rng)
    assert breaks_sign((p - 2)**2, columns, p, 1, rng) and breaks_sign(sp.log(p - 2), columns, p, 1, rng)
    assert not breaks_sign(q, columns, p, 1, rng), "what does not move breaks no sign"
    assert [nodes(f) for f in (p, p / q, p - q, sp.sqrt(p), 2.5 * p + 1, 1 / p, sp.Max(0, p - 1.))] == [1, 3, 3, 2, 5, 3, 5]


def test_only_the_operators_of_a_rule_are_computed():
    with pytest.raises(ValueError, match="rule is made of"): value(sp.sin(sp.Symbol("p")), {sp.Symbol("p"): np.ones(3)})
    with pytest.raises(ValueError, match="rule is made of"): value(sp.Symbol("other"), {sp.Symbol("p"): np.ones(3)})


@pytest.mark.parametrize("change, said", [
    (lambda t: t.head(2), "30 rows"),
    (lambda t: t.assign(price=t.price.where(t.price > 4)), "'price' has .* missing"),
    (lambda t: t.assign(cents=100 * t.price), "say the same"),
    (lambda t: t.assign(price=t.price.astype(str)), "must hold numbers"),
    (lambda t: t.drop(columns="cost"), "no column"),
])
def test_tables_that_cannot_be_searched_say_why(change, said):
    t = change(table())
    with pytest.raises(ValueError, match=said): search_rules(t, "order", ["mean", "price", "cost", *({"cents"} & set(t))])


def test_a_constant_is_a_rule_and_a_demanded_sign_is_kept():
    book = search_rules(table().assign(order=7.), "order")
    assert float(book.rule) == 7 and len(book.front) == 1 and (book.predict(table()) == 7).all()
    with pytest.raises(ValueError, match="signs are"): search_rules(table(), "order", signs=dict(price="down"))
    wrong = search_rules(table(n=60), "order", ["mean"], signs=dict(mean=-1), seconds=600)
    assert (wrong.front.form.map(lambda f: not f.free_symbols)).all() and (wrong.evidence.verdict == "rejected").any()


@pytest.mark.parametrize("scale", [1e-8, 1e9])
def test_the_unit_of_measurement_does_not_matter(scale):
    rng = np.random.default_rng(0)
    t = pd.DataFrame(dict(price=rng.uniform(1, 5, 60)))
    t["quantity"] = 20 / t.price * np.exp(.02 * rng.normal(size=60))
    said = search_rules(t * scale, "quantity", seconds=600).predict(t.head() * scale)
    assert np.allclose(said / scale, 20 / t.price.head(), rtol=.05)
