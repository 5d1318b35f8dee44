"What is carried from other categories: only what came before, only from others, and nothing once customers are dealt out anew."
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from malles.across import AcrossLogit, carried, dealt_anew, first_visits, receipt_lines, split_half, standing, trust, with_history, with_standing
from malles.choicesets import build_occasions
from malles.covariates import ready
from malles.elicitation import LMChoice
from malles.market import Market
from malles.occasions import Occasions
from malles.receipts import render
from malles.shoppers import TRAITS, simulate_market
from malles.tuning import fit_pooled, predict_pooled, same_crowd
from malles.worlds import sample_world


@pytest.fixture(scope="module")
def occasions():
    "Three categories, priced and counted."
    rng = np.random.default_rng(3)
    worlds = [replace(sample_world(rng, 5), priced=True, counted=True, gaps=0., turnover=0., visits=4.) for _ in range(3)]
    return ready(simulate_market(worlds, rng.standard_normal((80, len(TRAITS))), rng)[0])


def thrifty(customers=400, categories=10, each=3, common=1., noise=1., seed=0):
    "Lines whose standing is a customer's trait plus noise; every line is another product."
    rng = np.random.default_rng(seed)
    n = customers * categories * each
    who, category = np.arange(n) // (categories * each), np.arange(n) // each % categories
    return pd.DataFrame(dict(customer_id=[f"c{i}" for i in who], category=[f"k{k}" for k in category], product_id=np.arange(n).astype(str), time=rng.integers(0, 50, n),
        standing=np.sqrt(common) * rng.standard_normal(customers)[who] + np.sqrt(noise) * rng.standard_normal(n)))


def test_carried_is_what_a_loop_would_find(occasions):
    lines = receipt_lines(occasions)
    lines.loc[lines.index[::7], "price_level"] = np.nan
    lines = lines.sample(frac=1, random_state=0)                      # in any order
    n, mean = carried(occasions, lines, "price_level")
    for i in range(0, len(occasions), 11):
        mine = lines[(lines.customer_id == occasions.customers[occasions.customer[i]]) & (lines.category != occasions.categories[occasions.category[i]]) & (lines.time < occasions.time[i])].price_level.dropna()
        assert n[i] == len(mine) and (np.isnan(mean[i]) if not len(mine) else np.isclose(mean[i], mine.mean()))
    assert n.max() > 3 and (n == 0).any()


def same(a, b): return np.allclose(a, b, rtol=0, atol=1e-9, equal_nan=True)   # sums are differences of running sums


def test_nothing_of_the_same_moment_of_later_or_of_the_own_category(occasions):
    lines, (n, mean) = receipt_lines(occasions), carried(occasions, receipt_lines(occasions), "log_price")
    t = int(np.median(lines.time))
    late = lines.assign(log_price=np.where(lines.time >= t, 99., lines.log_price))
    m, other = carried(occasions, late, "log_price")
    now = occasions.time <= t
    assert (n == m).all() and same(mean[now], other[now]) and not same(mean[~now], other[~now])
    one = occasions[occasions.category == 0]
    own = lines.assign(log_price=np.where(lines.category == str(occasions.categories[0]), 99., lines.log_price))
    assert same(*(carried(one, x, "log_price")[1] for x in (lines, own)))


def test_carried_from_a_log_with_clock_times():
    "A line of the morning is not before an occasion of that day, which is known by its date only."
    products = pd.DataFrame(dict(product_id=["a", "b"], category=["tea", "tea"]))
    o = Occasions.from_arrays("m", ["x", "stranger"], ["tea"], products, [0, 1], [0, 0], np.array(["2024-05-02", "2024-05-02"], "datetime64[s]"), [0, 2, 4], [0, 1, 0, 1], [0, 1], [1, 1])
    lines = pd.DataFrame(dict(customer_id=["x"] * 3, category=["milk", "milk", "tea"], time=pd.to_datetime(["2024-05-01 18:00", "2024-05-02 09:00", "2024-05-01 18:00"]), v=[1., 5., 7.]))
    n, mean = carried(o, lines, "v")
    assert n.tolist() == [1, 0] and mean[0] == 1 and np.isnan(mean[1])
    with pytest.raises(ValueError, match="both be dates"): carried(o, lines.assign(time=[1, 2, 3]), "v")


def test_no_order_no_history(occasions):
    shuffled = Occasions(replace(occasions.log, ordered=False))
    with pytest.raises(ValueError, match="does not mean time"): carried(shuffled, receipt_lines(occasions), "log_price")
    with pytest.raises(ValueError, match="lack private"): AcrossLogit(receipt_lines(occasions), ("private",)).fit(occasions)
    with pytest.raises(ValueError, match="own, other or both"): with_history(occasions, "others")


def test_standing_is_standardised_over_purchases_and_silent_where_products_are_alike():
    lines = pd.DataFrame(dict(category=["tea"] * 4 + ["salt"] * 3, product_id=["a", "a", "a", "b", "s", "t", "t"], x=[1., 1., 1., 5., 2., 2., np.nan]))
    table = standing(lines, "x")
    assert table["tea", "b"] == pytest.approx(3 / np.sqrt(3)) and table["tea", "a"] == pytest.approx(-1 / np.sqrt(3)) and "salt" not in table.index.get_level_values(0)
    assert with_standing(lines, table).standing.isna().tolist() == [False] * 4 + [True] * 3


@pytest.mark.parametrize("common", [.25, 1.])
def test_trust_and_correlation_recover_what_was_put_in(common):
    lines = thrifty(common=common)
    assert trust(lines) == pytest.approx(1 / common, rel=.15)
    r = split_half(lines, least=5)
    expected = common / (common + 1 / 15)                             # five categories of three lines
    assert r["low"] < expected < r["high"] and r["customers"] == 400 and split_half(lines, least=5) == r
    cut = dealt_anew(lines)
    assert abs(split_half(cut, least=5)["correlation"]) < .15 and trust(cut) > 10 * trust(lines)


def test_dealing_anew_keeps_what_happens_within_a_category(occasions):
    lines = receipt_lines(occasions)
    cut = dealt_anew(lines, 1)
    histories = lambda x: sorted(tuple(g.sort_index().product_id) for _, g in x.groupby(["category", "customer_id"]))
    assert histories(cut) == histories(lines) and cut.drop(columns="customer_id").equals(lines.drop(columns="customer_id")) and (cut.customer_id != lines.customer_id).mean() > .8


def test_too_few_customers_is_said():
    with pytest.raises(ValueError, match="at least 3 are needed"): split_half(thrifty(customers=5, categories=4), least=3)


def test_histories_are_what_the_words_say(occasions):
    own, other, both = (with_history(occasions, h) for h in ("own", "other", "both"))
    a, n = both.column("n_past_all"), both.column("n_past")
    assert (own.column("n_past") == n).all() and (own.column("n_past_all") == n).all()
    assert (other.column("n_past") == 0).all() and np.allclose(other.column("n_past_all"), a - n)
    assert (other.past_stop == other.past_start).all() and np.nansum(other.alternative("own_count")) == 0 and np.nansum(other.alternative("last")) == 0
    here, there = (np.nan_to_num(x.column("price_level" if x is own else "price_level_all")) for x in (own, other))
    assert np.allclose(here * n + there * (a - n), np.nan_to_num(both.column("price_level_all")) * a, atol=1e-3)


def test_a_first_visit_reads_the_same_with_both_as_with_the_others(occasions):
    first = first_visits(occasions)
    own, other, both = (render(with_history(first, h), answer=False) for h in ("own", "other", "both"))
    assert len(first) > 50 and other.text(0) == both.text(0) and np.array_equal(other.ids, both.ids) and not np.array_equal(own.ids, both.ids)
    assert all("elsewhere" not in own.text(i) and "elsewhere" in both.text(i) for i in range(len(first)))
    nano, some = LMChoice.nano(facts=False), first[:20]
    p, q = (nano.predict(with_history(some, h)).choice for h in ("other", "both"))
    assert np.allclose(p, q, atol=1e-5)


def test_without_traits_it_is_popularity_with_a_slope(occasions):
    first = first_visits(occasions)
    model = AcrossLogit(receipt_lines(occasions), ())
    model.minimum = 10**9                                             # the coefficients of all categories only
    assert np.allclose(model.fit(first).predict(first).choice, predict_pooled(fit_pooled(same_crowd(first), ("log popularity",)), first))


def test_without_prices_nothing_is_carried(occasions):
    first = first_visits(occasions.without("price"))
    lines = receipt_lines(occasions.without("price"))
    assert lines.log_price.isna().all() and not len(standing(lines, "log_price"))
    blind, crowd = (AcrossLogit(lines, t).fit(first) for t in (("log_price",), ()))
    assert np.isinf(blind.learned["log_price"][1]) and np.allclose(blind.predict(first).choice, crowd.predict(first).choice, atol=1e-4)


def test_a_held_out_customer_teaches_nothing(occasions):
    lines, out = receipt_lines(occasions), occasions.customer % 4 == 0
    ids = occasions.customers[np.unique(occasions.customer[out])].astype(str)
    train = first_visits(occasions[~out])
    changed = lines.assign(log_price=np.where(lines.customer_id.isin(ids), 50., lines.log_price))
    a, b = AcrossLogit(lines).fit(train), AcrossLogit(changed).fit(train)
    assert np.array_equal(a.pool.coefficient, b.pool.coefficient) and (a.learned["log_price"][0] == b.learned["log_price"][0]).all()


def test_a_label_is_a_trait_like_a_price():
    "Customers who take private labels everywhere: foreseen on a first visit, to the side where they lean."
    rng = np.random.default_rng(0)
    H, C = 300, 6
    lean = np.where(rng.random(H) < .5, 1.5, -1.5)
    who, category = np.repeat(np.arange(H), C), np.tile(np.arange(C), H)
    private = rng.random(H * C) < 1 / (1 + np.exp(-lean[who]))
    rows = pd.DataFrame(dict(customer_id=[f"c{i}" for i in np.repeat(who, 2)], category=[f"k{k}" for k in np.repeat(category, 2)], occasion_id=np.repeat(np.arange(H * C), 2),
        time=np.repeat(np.stack([rng.permutation(C) for _ in range(H)]).ravel(), 2), product_id=["national", "private"] * (H * C), chosen=np.stack([~private, private], 1).ravel()))
    occasions = ready(build_occasions(Market.from_frames("labels", choices=rows)))
    lines = receipt_lines(occasions).assign(private=lambda d: (d.product_id == "private").astype(float))
    out = occasions.customer % 5 == 0
    late = first_visits(occasions[out])
    late = late[late.column("n_past_all") > 3]
    model = AcrossLogit(lines, ("private",)).fit(first_visits(occasions[~out]))
    is_private = late.products.product_id.astype(str).to_numpy()[late.product] == "private"
    said, truth = (model.predict(late).choice * is_private).sum(1), lean[[int(c[1:]) for c in late.customers[late.customer]]]
    assert said[truth > 0].mean() > said[truth < 0].mean() + .3
