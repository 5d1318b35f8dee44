"Nothing from the future, and nothing of an occasion's own outcome, is in an occasion, a profile or a shelf price."
import numpy as np, pandas as pd
from hypothesis import given, settings, strategies as st

from malles.choicesets import build_occasions, from_transactions
from malles.market import Market
from malles.occasions import Occasions, mean_field, with_popularity
from malles.profiles import with_profiles

OUTCOMES = {"chosen", "quantity", "bought", "chosen_online", "chosen_review"}


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_last_fifth_of_the_dates_does_not_choose_the_candidates(seed):
    "Fewer candidates than products; what sells later, and how often, leaves earlier sets as they were."
    log, rng = random_log(seed, products=8), np.random.default_rng(seed + 1)
    log = pd.concat([log, log[log.time == log.time.min()].sample(60, replace=True, random_state=seed)], ignore_index=True)  # lines crowd on the first day
    dates = np.unique(log.time)
    cut = dates[int(np.ceil(len(dates) * .8)) - 1]
    later = log.time > cut
    other = log.copy()
    other.loc[later, "product_id"] = rng.integers(0, 8, later.sum()).astype(str)
    other.loc[later, "unit_price"] = rng.uniform(1, 50, later.sum())
    other = pd.concat([other] + [other[later & (other.time != log.time.min())]] * 5, ignore_index=True)  # a best seller of later
    a, b = (with_profiles(from_transactions(Market.from_frames("m", transactions=t), alternatives=3)) for t in (log, other))
    stamp = np.datetime64(cut, "s")
    assert known(a, stamp) and known(a, stamp) == known(b, stamp)


def corner(**tables):
    day = lambda d: pd.Timestamp("2026-01-01") + pd.Timedelta(days=d)
    tx = pd.DataFrame(dict(time=[day(d) for d in (0, 0, 1, 2, 3, 4)], customer_id=list("abcabc"), product_id=["milk", "oat"] * 3, category="drinks", quantity=1, unit_price=[1., 2, 1, 2, 1, 2], discount=[0, 0, 0, 0, .5, .5]))
    dated = {k: v.assign(valid_from=[day(d) for d in v.valid_from], valid_to=[day(d) for d in v.valid_to]) for k, v in tables.items() if "valid_from" in v}
    dated |= {k: v.assign(time=[day(d) for d in v.time]) for k, v in tables.items() if "time" in v}
    o = from_transactions(Market.from_frames("corner", transactions=tx, **dated))
    return o, {int((t - np.datetime64("2026-01-01", "s")).astype(int) // 86400): i for i, t in enumerate(o.time)}


def test_promotions_and_list_prices_hold_on_their_days():
    o, at = corner(promotions=pd.DataFrame(dict(product_id=["oat", "milk"], display=[1, 0], feature=[0, 1], valid_from=[2, 4], valid_to=[3, 4])),
        prices=pd.DataFrame(dict(product_id=["milk"], price=[.7], valid_from=[3], valid_to=[3])))
    look = lambda name: {d: o.alternative(name)[i].astype(float).round(3).tolist() for d, i in at.items()}
    assert look("price") == {1: [1, 2], 2: [1, 2], 3: [.7, 2], 4: [1, 2]}
    assert look("discount")[3] == [.3, 0] and look("discount")[4] == [0, 0]  # never that of the receipt
    assert look("display") == {1: [0, 0], 2: [0, 1], 3: [0, 1], 4: [0, 0]}
    assert look("feature")[4] == [1, 0] and look("promotion") == {1: [0, 0], 2: [0, 1], 3: [0, 1], 4: [1, 0]}


def test_promotions_by_store_and_week():
    "The tables' own keys are used: a week's promotion of one store is not seen in another."
    rng = np.random.default_rng(0)
    n, day = 60, np.repeat(np.arange(30), 2)
    tx = pd.DataFrame(dict(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(day, unit="D"), week=day // 7, store_id=np.where(rng.random(n) < .5, "S1", "S2"), customer_id=rng.integers(0, 5, n).astype(str),
        product_id=rng.choice(["x", "y"], n), category="c", quantity=1, unit_price=1.))
    o = from_transactions(Market.from_frames("m", transactions=tx, promotions=pd.DataFrame(dict(product_id=["x"], store_id=["S2"], week=[2], display=[1]))))
    week = (o.time - np.datetime64("2026-01-01", "s")).astype(int) // 86400 // 7
    store = pd.factorize(tx.store_id)[1][o.column("store")]
    want = (o.products.product_id.to_numpy()[o.product] == "x") & ((week == 2) & (store == "S2"))[:, None] & o.mask
    assert want.any() and (np.nan_to_num(o.alternative("display")) == want).all()


def test_an_empty_shelf_the_day_before_takes_the_product_away():
    more = pd.DataFrame(dict(product_id=["milk", "oat", "milk"], stock=[0, 5, 4], time=[2, 0, 3]))
    o, at = corner(stock=more)
    assert 1 in at and 2 in at          # counted at the day itself: not yet known
    assert 3 not in at and 4 in at      # milk was out on the eve of day 3; day 4 knows the count of day 3
    assert o.log.notes["alternatives left out because the stock before the day was 0"] == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_channel_and_review_are_read_of_earlier_purchases_only(seed):
    rng, log = np.random.default_rng(seed), random_log(seed)
    log = log.assign(channel=rng.choice(["online", "store"], len(log)), review_score=np.where(rng.random(len(log)) < .7, rng.integers(1, 6, len(log)), np.nan))
    log.loc[0, "channel"] = "online"
    when = log.time.sort_values().iloc[len(log) // 2]
    now = log.time >= when
    other = log.copy()
    other.loc[now, "channel"], other.loc[now, "review_score"] = "online", 1.
    a, b = (with_profiles(build_occasions(Market.from_frames("m", transactions=t), alternatives=50)) for t in (log, other))
    assert known(a, np.datetime64(when, "s")) == known(b, np.datetime64(when, "s"))
    L, o = a.log, a
    line = log.assign(online=(log.channel == "online").astype(float)).groupby(["customer_id", "category", "product_id", "time"])[["online", "review_score"]].mean()
    chosen = [(L.customers[o.customer[i]], L.categories[o.category[i]], o.products.product_id[o.product[i, o.chosen[i]]], pd.Timestamp(o.time[i])) for i in range(len(o))]
    for i in rng.integers(0, len(o), 10):
        past = [k for k in range(len(o)) if o.customer[k] == o.customer[i] and o.time[k] < o.time[i]]
        for column, name in (("online", "online_share"), ("review_score", "mean_review")):
            v = [line.loc[[chosen[k]], column].iloc[0] for k in past]
            v = [x for x in v if not np.isnan(x)]
            same = [k for k in past if sum(c[0] == chosen[k][0] and c[2:] == chosen[k][2:] for c in line.index) > 1]  # one product id in two categories on one trip
            if not same: np.testing.assert_allclose(o.column(name)[i], np.mean(v) if v else np.nan, rtol=1e-5)


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
