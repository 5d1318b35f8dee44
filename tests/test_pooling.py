"""Partial pooling of a rule's numbers: what few rows say counts little, what many say counts, and nobody seen gets the centre."""
import numpy as np
import pandas as pd
import pytest
from malles.pooling import pooled
from malles.rulebook import RuleBook
from malles.trials import open_trial


def shops(sizes, spread, seed=0, noise=.3):
    rng = np.random.default_rng(seed)
    slope = -2 + spread * rng.normal(size=len(sizes))
    k = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.uniform(0, 1, len(k))
    return pd.DataFrame(dict(shop=[f"s{i:02d}" for i in k], x=x, y=3 + slope[k] * x + noise * rng.normal(size=len(k)))), slope


def book(table): return RuleBook(open_trial(table, "y", ["x"]), (), True).consider("3.0 - 2.0 * x", source="me")


def test_alike_shops_are_pooled_whole_and_unlike_ones_stay_themselves():
    alike, _ = shops([40] * 40, 0.)
    rule = pooled(book(alike), alike, "shop")
    slopes = rule.numbers.xs(rule.names[int(rule.centre.argmin())], level="number")
    assert slopes.pooled.std() < .4 * slopes.alone.std() and abs(rule.centre.min() + 2) < .1
    unlike, slope = shops([400] * 12, 1.)
    rule = pooled(book(unlike), unlike, "shop")
    slopes = rule.numbers.xs(rule.names[int(rule.centre.argmin())], level="number")
    assert np.abs(slopes.pooled - slopes.alone).max() < .1 and np.abs(slopes.pooled - slope).max() < .25


def test_intervals_hold_the_truth():
    inside = []
    for seed in range(8):
        table, slope = shops([200, 20] * 8, .5, seed)
        rule = pooled(book(table), table, "shop")
        t = rule.numbers.xs(rule.names[int(rule.centre.argmin())], level="number")
        inside += ((t.low <= slope) & (slope <= t.high)).tolist()
    assert .8 < np.mean(inside) < .97


def test_a_shop_with_too_few_rows_and_one_never_seen_get_the_centre():
    table, _ = shops([50] * 5 + [2], .5)
    rule = pooled(book(table), table, "shop")
    few = rule.numbers.loc["s05"]
    assert few.alone.isna().all() and np.allclose(few.pooled, rule.centre) and (few.low < few.high).all()
    new = pd.DataFrame(dict(shop=["never"], x=[.5]))
    assert np.isclose(rule.predict(new)[0], rule.predict(new.assign(shop="s05"))[0])
    assert np.allclose(rule.predict(table[::-1])[::-1], rule.predict(table)), "each row by its own shop, in any order"


def test_refusals():
    table, _ = shops([50] * 2, .5)
    with pytest.raises(ValueError, match="three values of 'shop'"): pooled(book(table), table, "shop")
    with pytest.raises(ValueError, match="no column"): pooled(book(table), table, "town")
    with pytest.raises(ValueError, match="no number"): pooled(RuleBook(open_trial(table, "y", ["x"]), (), True).consider("x", source="me"), table, "shop")
