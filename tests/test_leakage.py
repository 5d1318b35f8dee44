"Nothing from the future, and nothing of an occasion's own outcome, is in an occasion, a profile or a shelf price."
import numpy as np, pandas as pd
from hypothesis import given, settings, strategies as st

from malles.choicesets import from_transactions
from malles.market import Market
from malles.occasions import Occasions, mean_field, with_popularity
from malles.profiles import with_profiles

OUTCOMES = {"chosen", "quantity", "bought"}


def random_log(seed, n=160, customers=6, products=5, days=40):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, days, n), unit="D"), customer_id=rng.integers(0, customers, n).astype(str),
        product_id=rng.integers(0, products, n).astype(str), category=np.where(rng.random(n) < .5, "tea", "jam"), quantity=rng.integers(1, 5, n), unit_price=rng.uniform(1, 5, n).round(2)))


def known(occasions, when):
    "Everything that an occasion up to a moment shows, keyed by customer, category and time, without outcomes."
    L = occasions.log
    rows = np.flatnonzero(L.occasion["time"] <= when)
    out = {}
    for r in rows:
        key = (L.customers[L.occasion["customer"][r]], L.categories[L.occasion["category"][r]], str(L.occasion["time"][r]))
        part = slice(L.offsets[r], L.offsets[r+1])
        names = tuple(L.products.product_id.to_numpy()[L.alternative["product"][part]])
        columns = {k: v[part].tolist() for k, v in L.alternative.items() if k not in OUTCOMES | {"product"}}
        habits = {k: float(v[r]) for k, v in L.occasion.items() if v.dtype.kind == "f" and k not in OUTCOMES}
        out[key] = (names, str(columns), str(habits))
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_changing_the_future_changes_nothing_before(seed):
    log, rng = random_log(seed), np.random.default_rng(seed + 1)
    when = log.time.sort_values().iloc[len(log) * 7 // 10]  # before the 80 % of dates that choose the candidates
    later = log.time > when
    other = log.copy()
    other.loc[later, "unit_price"] = rng.uniform(1, 50, later.sum())
    other.loc[later, "quantity"] = rng.integers(1, 9, later.sum())
    sets = dict(alternatives=50)  # all products are candidates, so that the choice of candidates cannot tell
    a, b = (with_profiles(from_transactions(Market.from_frames("m", transactions=t), **sets)) for t in (log, other))
    stamp = np.datetime64(when, "s")
    assert known(a, stamp) and known(a, stamp) == known(b, stamp)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_changing_the_chosen_line_changes_only_its_outcome(seed):
    "Another price and quantity on one's own receipt of the last day: the set, its prices and the profile stay."
    log = random_log(seed)
    last = log.time == log.time.max()
    other = log.copy()
    other.loc[last, "unit_price"] *= 7
    other.loc[last, "quantity"] += 3
    a, b = (with_profiles(from_transactions(Market.from_frames("m", transactions=t), alternatives=50)) for t in (log, other))
    stamp = np.datetime64(log.time.max(), "s")
    assert known(a, stamp) and known(a, stamp) == known(b, stamp)


def random_panel(seed, n=120, customers=8, J=4):
    rng = np.random.default_rng(seed)
    return dict(customer=rng.integers(0, customers, n), category=rng.integers(0, 2, n), time=rng.integers(0, 15, n), offsets=np.arange(0, n*J+1, J),
        product=np.tile(np.arange(J), n), chosen=rng.integers(0, J, n), quantity=rng.integers(1, 6, n).astype(float)), dict(price=rng.uniform(1, 3, n*J), discount=rng.uniform(0, .3, n*J))


def panel(columns, alternative):
    products = pd.DataFrame(dict(product_id=list("abcd"), category="c"))
    return with_profiles(Occasions.from_arrays("p", np.arange(8).astype(str), ["x", "y"], products, **columns, alternative=alternative))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_profiles_do_not_see_the_present_or_the_future(seed):
    columns, alternative = random_panel(seed)
    rng = np.random.default_rng(seed + 1)
    when = 7
    changed = {k: v.copy() for k, v in columns.items()}
    now = columns["time"] >= when
    changed["chosen"][now] = rng.integers(0, 4, now.sum())
    changed["quantity"][now] = rng.integers(1, 9, now.sum())
    a, b = panel(columns, alternative), panel(changed, alternative)
    for x in (a, b): assert (x.time == a.time).all()
    early = a.time <= when
    for k in a.log.occasion:
        if k in OUTCOMES: continue
        np.testing.assert_array_equal(a.column(k)[early], b.column(k)[early], err_msg=k)
    for k in a.log.alternative:
        if k in OUTCOMES: continue
        np.testing.assert_array_equal(a.alternative(k)[early], b.alternative(k)[early], err_msg=k)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_popularity_leaves_out_ones_own_purchases(seed):
    "A customer's own choices do not move the popularity that he sees."
    columns, alternative = random_panel(seed)
    a = panel(columns, alternative)
    mine = columns["customer"] == 0
    columns["chosen"] = np.where(mine, np.random.default_rng(seed).integers(0, 4, len(mine)), columns["chosen"])
    b = panel(columns, alternative)
    a, b = (with_popularity(x, mean_field(x), counted=x) for x in (a, b))
    his = a.customer == 0
    np.testing.assert_allclose(a.alternative("popularity")[his], b.alternative("popularity")[his])


def test_shuffled_pasts_repeat_by_seed_and_hide_the_order():
    columns, alternative = random_panel(3)
    products = pd.DataFrame(dict(product_id=list("abcd"), category="c"))
    make = lambda seed: with_profiles(Occasions.from_arrays("p", np.arange(8).astype(str), ["x", "y"], products, **columns, alternative=alternative, ordered=False, seed=seed))
    a, b, c = make(0), make(0), make(1)
    assert (a.chosen == b.chosen).all() and (a.chosen != c.chosen).any()
    assert not a.alternative("last", 0).any() and "recency" not in a.log.occasion
