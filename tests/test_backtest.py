"""Laws of looking back: nothing of a change is known before it, intervals hold what they say, and a table that cannot be judged is refused."""
import numpy as np
import pandas as pd
import pytest
from malles.backtest import FEWEST, backtest, price_changes, with_intervals
from malles.choicesets import build_occasions
from malles.market import MarketError
from malles.predictions import Popularity
from malles.profiles import with_profiles
from malles.sales import NOTHING, sales_market


def sold(prices, bought=None, foreseen=None, of=100., product="tea", place=0):
    n = len(prices)
    return pd.DataFrame(dict(place=place, period=np.arange(n), category="drinks", product=product, price=prices, bought=np.full(n, 50.) if bought is None else bought, of=of, foreseen=.5 if foreseen is None else foreseen))


def test_kinds():
    regular, sale = [2.] * 5, [1.5]
    kinds = lambda prices: price_changes(sold(prices)).kind.tolist()
    assert kinds(regular + sale + regular) == ["sale", "sale"]
    assert kinds(regular + [2.2] * 5) == ["everyday"]
    assert kinds(regular + [2.2] * 2) == ["open"], "the log ends before the price has lasted"
    assert kinds([2.] * 2 + [2.2] * 5) == ["open"]
    assert kinds(regular + [1.95] * 5 + [1.5] * 5) == ["everyday"], "two and a half percent is no change"


def test_only_changes_from_one_period_to_the_next_count():
    t = sold([2., 2., 1.5, 2., 2.])
    assert price_changes(t).period.tolist() == [2, 3]
    gap = t.drop(index=1).reset_index(drop=True)          # the week before the sale is missing
    assert price_changes(gap).period.tolist() == [3]
    with pytest.raises(ValueError, match="no price changes"): price_changes(sold([2.] * 5))
    with pytest.raises(ValueError, match="least must be"): price_changes(t, 0)


def test_last_time_is_this_product_in_this_direction_in_this_place():
    a = sold([2., 1.5, 2., 1.5, 2.], bought=[20., 40, 20, 60, 20])
    b = sold([2., 1.5, 2., 1.5, 2.], bought=[20., 30, 20, 30, 20], place=1)
    t = price_changes(pd.concat([a, b], ignore_index=True))
    down = t[(t.place == 0) & (t.price < t.price_before)].sort_values("period")
    assert np.isnan(down.last_time.iloc[0]) and down.last_time.iloc[1] == down.happened.iloc[0] > t[(t.place == 1) & (t.period == 1)].happened.iloc[0]


@pytest.mark.parametrize("level", [.5, .8, .9])
def test_intervals_hold_what_they_say(level):
    rng = np.random.default_rng(1)
    n, kinds = 6000, np.array(["sale", "everyday"])
    kind = rng.integers(2, size=n)
    noise = rng.uniform(.001, .2, n)
    changes = pd.DataFrame(dict(period=np.repeat(np.arange(n // 10), 10), kind=kinds[kind], foreseen=rng.normal(0, .5, n), noise=noise))
    changes["happened"] = changes.foreseen + rng.normal(0, np.sqrt(np.where(kind, .02, .3) + noise))
    t = with_intervals(changes, level)
    t = t[t.low.notna()]
    for _, some in t.groupby("kind"): assert abs(((some.happened >= some.low) & (some.happened <= some.high)).mean() - level) < .03


def test_an_interval_knows_only_what_came_before():
    rng = np.random.default_rng(2)
    changes = pd.DataFrame(dict(period=np.arange(60), kind="sale", foreseen=0., noise=.01, happened=rng.normal(0, .3, 60)))
    t = with_intervals(changes)
    other = with_intervals(changes.assign(happened=np.where(changes.period >= 40, 9., changes.happened)))
    assert t.low[:41].equals(other.low[:41]) and t.low[:FEWEST].isna().all() and t.low[FEWEST:].notna().all() and not t.low.equals(other.low)
    with pytest.raises(ValueError, match="level"): with_intervals(changes, 1)


SALES = pd.DataFrame([dict(store=s, week=w, brand=b, price=2. - .5 * (w % 4 == 0), units=10. * (1 + (w % 4 == 0)) + s) for s in (1, 2) for w in range(24) for b in ("a", "b")])


def test_sales_are_a_market_whose_draws_are_of_its_shares():
    market, size = sales_market(SALES, "juice", draws=200)
    chosen = market.choices[market.choices.chosen]
    share = chosen.groupby("product_id").size() / len(chosen)
    expected = SALES.assign(s=SALES.units / SALES.store.map(size)).groupby("brand").s.mean()
    assert np.allclose(share[["a", "b"]], expected[["a", "b"]], atol=.01) and np.isclose(share[NOTHING], 1 - expected.sum(), atol=.01)
    assert size[1] == 1.5 * SALES[SALES.store == 1].groupby("week").units.sum().max()
    again = sales_market(SALES, "juice", draws=200)[0]
    assert again.choices.equals(market.choices) and not sales_market(SALES, "juice", draws=200, seed=1)[0].choices.equals(market.choices)


@pytest.mark.parametrize("bad, says", [(lambda t: t.drop(columns="price"), "lack the columns price"), (lambda t: t.assign(units=-1.), "from 0 on"), (lambda t: pd.concat([t, t[:1]], ignore_index=True), "second rows"),
    (lambda t: t.assign(brand=NOTHING + ""), "second rows|stands for buying nothing"), (lambda t: t.assign(units=0.), "sells nothing in any week"), (lambda t: t.assign(units=np.nan), "from 0 on")])
def test_sales_that_cannot_be_a_market_are_refused(bad, says):
    with pytest.raises(MarketError, match=says): sales_market(bad(SALES), "juice")
    for kw in (dict(size=1.), dict(draws=0)):
        with pytest.raises(MarketError, match="size must be above 1"): sales_market(SALES, "juice", **kw)


def test_backtest_needs_both_halves_and_predicts_without_looking():
    market = sales_market(SALES, "juice")[0]
    occasions = with_profiles(build_occasions(market, prices="given"))
    week = occasions.log.occasion["time"].astype(int)
    told = backtest(occasions, Popularity(), week, by="customer")
    assert set(told.changes.place) == {0, 1} and told.changes.period.min() >= 12 and (told.changes.foreseen.abs() < 1e-6).all(), "popularity reads no prices"
    with pytest.raises(ValueError, match="needs purchases before"): backtest(occasions, Popularity(), week, first=0)
