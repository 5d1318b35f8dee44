"Laws of a market: round trips, folds, joins as of a day, foreign logs."
import hashlib, json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from malles.asof import as_of, valid_row
from malles.times import as_times
from malles.values import as_ids, as_numbers, escape
from malles.returns import follow
from malles.foreign import bare, decimal_mark, number
from malles.market import Market, MarketError, check_log, fold_of, read_market

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
prices = st.floats(.01, 1e4) | st.just(np.nan)


@st.composite
def choice_tables(draw):
    "Valid choices of a few occasions, with odd names."
    names = draw(st.lists(words, min_size=4, max_size=4, unique_by=lambda w: escape(w.strip())).filter(lambda ws: all(escape(w.strip()) not in ("", "nan", "NaN", "NULL", "null", "<NA>", "NaT", "#N/A", "None", "none", "N/A") and not w.strip().endswith(".0") for w in ws)))
    rows = []
    for o in range(draw(st.integers(1, 6))):
        size = draw(st.integers(2, 3))
        pick, q = draw(st.integers(0, size - 1)), draw(st.integers(1, 9))
        for j in range(size): rows.append((names[3] + str(o % 2), o, "jam", o, names[j], draw(prices), j == pick, q * (j == pick), draw(words)))
    return pd.DataFrame(rows, columns="customer_id occasion_id category time product_id price chosen quantity name".split())


@QUICK
@given(choice_tables())
def test_round_trip(tmp_path_factory, table):
    market = Market.from_frames("m", choices=table, currency="€", volume={"jam": 3.5})
    assert len(market.choices) + len(market.set_aside) == len(table)
    folder = tmp_path_factory.mktemp("m")/"folder"
    market.save(folder)
    again = Market.read(folder)
    pd.testing.assert_frame_equal(again.choices, market.choices)
    assert (again.name, again.currency, again.volume, again.ordered) == ("m", "€", {"jam": 3.5}, True) and not len(again.set_aside)
    again.save(folder)
    pd.testing.assert_frame_equal(Market.read(folder).choices, market.choices)
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


@QUICK
@given(choice_tables())
def test_admission_keeps_what_is_right(table):
    "A valid table is kept whole, row by row, and the frame given is not touched."
    before = table.copy(deep=True)
    market = Market.from_frames("m", choices=table)
    pd.testing.assert_frame_equal(table, before)
    assert not len(market.set_aside)
    assert np.array_equal(market.choices.price, table.price, equal_nan=True) and market.choices.chosen.tolist() == table.chosen.tolist()
    assert market.choices.occasion_id.tolist() == table.occasion_id.astype(str).tolist()


@QUICK
@given(choice_tables(), st.randoms())
def test_order_of_rows_does_not_matter(table, random):
    "Rows shuffled by whole occasions give the same customers' sequences."
    occasions = list(table.groupby("occasion_id"))
    random.shuffle(occasions)
    shuffled = Market.from_frames("m", choices=pd.concat([o for _, o in occasions])).choices
    straight = Market.from_frames("m", choices=table).choices
    key = ["customer_id", "time"]
    pd.testing.assert_frame_equal(shuffled.sort_values(key, kind="stable", ignore_index=True), straight.sort_values(key, kind="stable", ignore_index=True))


def test_all_tables_round_trip(tmp_path):
    day = pd.Timestamp("2024-03-01")
    tables = dict(
        transactions=pd.DataFrame(dict(time=[day, day], customer_id=["a", None], product_id=["p", "q"], quantity=[1, 2], unit_price=[1., np.nan], store_id=["s", "s"], tags=[["x"], ["y", "z"]])),
        products=pd.DataFrame(dict(product_id=["p", "q"], category=pd.Categorical(["jam", "jam"]), base_price=[1., np.nan], organic=[True, False], made=[day, pd.NaT])),
        customers=pd.DataFrame(dict(customer_id=["a"], age=pd.array([None], dtype="Int64"))),
        dialogues=pd.DataFrame([dict(dialogue_id="d", turns=[dict(role="buyer", text="hi\nthere", price=None)], context=dict(a=1)), dict(dialogue_id="e", turns=[], outcome=3.5)]),
        demand=pd.DataFrame(dict(store=["s"], week=[1], brand=["p"], units=[3.], price=[2.])),
        costs=pd.DataFrame(dict(product_id=["p"], cost=[.5], valid_from=[day], valid_to=[pd.NaT])),
        prices=pd.DataFrame(dict(product_id=["p"], price=[2.], valid_from=[day])),
        promotions=pd.DataFrame(dict(product_id=["p"], mechanic=["2 for 1"], valid_from=[day], valid_to=[day])),
        stock=pd.DataFrame(dict(product_id=["p"], stock=[3], valid_from=[day])),
        stores=pd.DataFrame(dict(store_id=["s"], store_group=["north"])))
    market = Market.from_frames("m", **tables, ordered=False, synthetic=True)
    market.save(tmp_path/"m")
    again = Market.read(tmp_path/"m")
    assert set(again.tables()) == set(tables) and not again.ordered and again.synthetic
    for table, frame in market.tables().items():
        if table == "dialogues": assert json.dumps(frame.to_dict("records"), default=str) == json.dumps(again.dialogues.to_dict("records"), default=str)
        elif table == "transactions":
            assert [list(t) for t in again.transactions.tags] == [list(t) for t in frame.tags]
            pd.testing.assert_frame_equal(again.transactions.drop(columns="tags"), frame.drop(columns="tags"))
        else: pd.testing.assert_frame_equal(getattr(again, table), frame)
    joined = again.priced_transactions().lines
    assert joined.cost.tolist()[0] == .5 and joined.list_price.tolist()[0] == 2 and joined.promotion.tolist() == [True, False] and joined.stock.isna().all() and joined.store_group.tolist() == ["north"] * 2
    with pytest.raises(MarketError): Market.from_frames("n", transactions=tables["transactions"]).save(tmp_path/"m") if (tmp_path/"m"/"costs.csv").write_text("x") else None


def test_saving_leaves_no_half_file(tmp_path, monkeypatch):
    import malles.folders as folders
    market = Market.from_frames("m", transactions=pd.DataFrame(dict(time=[1], product_id=["p"], quantity=[1])))
    market.save(tmp_path/"m")
    before = (tmp_path/"m"/"transactions.parquet").read_bytes()
    def fail(*_): raise OSError("disk full")
    monkeypatch.setattr(folders.os, "replace", fail)
    market.transactions = market.transactions.assign(extra=1)
    with pytest.raises(OSError): market.save(tmp_path/"m")
    assert (tmp_path/"m"/"transactions.parquet").read_bytes() == before and not list((tmp_path/"m").glob(".*"))


def test_folds_are_the_contract():
    for customer in ("anna", "007", "é"):
        assert fold_of("catsup", customer) == int(hashlib.sha256(f"catsup/{customer}".encode()).hexdigest(), 16) % 5
    folds = fold_of("m", pd.Series(["anna", None, "anna", np.nan]))
    assert folds[0] == folds[2] == fold_of("m", "anna") and folds[1] == folds[3] == -1


@QUICK
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 8)), min_size=0, max_size=12), st.lists(st.tuples(st.integers(-1, 3), st.integers(-2, 30)), min_size=1, max_size=12))
def test_valid_row_is_what_a_search_finds(rows, lines):
    key, start, length = (np.array([r[i] for r in rows], dtype="int64") for i in range(3))
    line_key, time = (np.array([l[i] for l in lines], dtype="int64") for i in range(2))
    first, second = valid_row(line_key, time, key, start, start + length)
    for i in range(len(lines)):
        hold = [r for r in range(len(rows)) if key[r] == line_key[i] and start[r] <= time[i] <= start[r] + length[r]]
        hold.sort(key=lambda r: (start[r], r))
        assert first[i] == (hold[-1] if hold else -1)
        assert second[i] == (hold[-2] if len(hold) > 1 else -1)


def test_as_of_counts_overlaps_gaps_and_contradictions():
    day = lambda d: pd.Timestamp(2024, 3, d)
    lines = pd.DataFrame(dict(time=[day(1), day(5), day(9), day(12), day(20)], product_id="p"))
    costs = pd.DataFrame(dict(product_id="p", cost=[1., 2, 3, 4], valid_from=[day(2), day(4), day(12), day(12)], valid_to=[day(10), day(6), day(14), day(14)]))
    joined = as_of(lines, costs=costs)
    assert np.array_equal(joined.lines.cost, [np.nan, 2, 1, np.nan, np.nan], equal_nan=True)
    assert joined.report.iloc[0].to_dict() == dict(table="costs", lines=5, matched=2, gaps=2, overlaps=2, conflicts=1, unusable=0)
    stores = pd.DataFrame(dict(store_id=["a", "b"], store_group=["n", "s"]))
    prices = pd.DataFrame(dict(product_id="p", price=[1., 2, 3], store_id=["a", None, None], store_group=[None, "s", None]))
    out = as_of(lines.head(3).assign(store_id=["a", "b", "c"]), prices=prices, stores=stores)
    assert out.lines.list_price.tolist() == [1, 2, 3] and out.report.gaps.tolist() == [1, 0]
    assert as_of(lines, prices=prices).report.unusable.tolist() == [2] # rows of stores, lines without


def test_stock_does_not_know_the_sale():
    t = pd.Timestamp("2024-03-01 10:00")
    stock = pd.DataFrame(dict(product_id="p", stock=[5, 4], valid_from=[t - pd.Timedelta("1h"), t]))
    assert as_of(pd.DataFrame(dict(time=[t], product_id=["p"])), stock=stock).lines.stock.tolist() == [5]


@QUICK
@given(st.floats(.01, 9e6).map(lambda x: round(x, 2)), st.sampled_from([".", ","]), st.sampled_from(["", "€", "$", " EUR", "CHF "]), st.booleans(), st.booleans())
def test_money_is_read_as_written(value, mark, sign, grouped, negative):
    text = f"{value:,.2f}" if grouped else f"{value:.2f}"
    if mark == ",": text = text.translate(str.maketrans(",.", ".,"))
    text = sign + text if sign.startswith(("$", "CHF")) else text + sign
    text = f"({text})" if negative else text
    assert decimal_mark({"x": [text]}) == mark and number(text, mark) == pytest.approx(-value if negative else value)


@QUICK
@given(st.text(max_size=20))
def test_any_text_is_a_number_or_itself(text):
    for mark in ".,": assert isinstance(number(text, mark), (float, str))
    as_numbers(pd.Series([text])); as_ids(pd.Series([text]))
    try: as_times(pd.Series([text]))
    except MarketError: pass


def log(path, text): Path(path).write_text(text); return path

TILL = "Date;Client;Article;Libellé;Quantité;Montant\n" + "".join(f"{13 + i:02d}/03/2024;c{i % 3};{'ab'[i % 2]};{'figue prune'.split()[i % 2]};{1 + i % 4};{(1 + i % 4) * (2 + i % 2):.2f} €\n".replace(".", ",") for i in range(16))


def test_line_totals_decimal_commas_and_french(tmp_path):
    market = Market.from_csv(log(tmp_path/"caisse.csv", TILL))
    t = market.transactions
    assert t.unit_price.round(6).isin([2, 3]).all() and (t.quantity * t.unit_price).sum() == pytest.approx(t.total.sum()) and len(t) == 16
    assert market.products.name.tolist() == ["figue", "prune"] and "line total" in market.reading and "day/month/year" in market.reading


def test_a_price_column_that_grows_with_quantity_is_a_total(tmp_path):
    lines = "date,sku,qty,price\n" + "".join(f"2024-03-{1 + i % 28:02d},a,{1 + i % 3},{2 * (1 + i % 3)}\n" for i in range(60))
    market = Market.from_csv(log(tmp_path/"x.csv", lines))
    assert (market.transactions.unit_price == 2).all() and "grow with the quantity" in market.reading
    unit = Market.from_csv(log(tmp_path/"y.csv", lines.replace("price", "amount").replace(",4\n", ",2\n").replace(",6\n", ",2\n")))
    assert (unit.transactions.unit_price == 2).all() and "price of a unit" in unit.reading


@pytest.mark.parametrize("how, kept, netted", [("day", [1, 5, 3], 1), ("net", [1, 3], 2), ("aside", [2, 5, 3], 0)])
def test_returns(tmp_path, how, kept, netted):
    text = "time,customer_id,product_id,quantity,unit_price\n2024-03-01,a,p,2,1\n2024-03-01,a,p,-1,1\n2024-03-02,a,q,5,1\n2024-03-09,a,q,-5,1\n2024-03-09,b,q,3,1\n2024-03-09,,q,-1,1\n"
    market = Market.from_csv(log(tmp_path/"x.csv", text), returns=how)
    assert market.transactions.quantity.tolist() == kept
    assert len(market.transactions) + len(market.set_aside) == 6
    assert f"{netted} lines netted" in market.reading and market.set_aside.reason.str.contains("return").all()


def test_replaced_codes(tmp_path):
    text = "time,customer_id,product_id,name,quantity\n" + "".join(f"2024-03-{i:02d},a,{'old' if i < 10 else 'new'},fig jam,1\n" for i in range(1, 20))
    market = Market.from_csv(log(tmp_path/"x.csv", text))
    assert "replaced={'old': 'new'}" in market.reading and market.transactions.product_id.nunique() == 2
    told = Market.from_csv(tmp_path/"x.csv", replaced={"old": "new"})
    assert set(told.transactions.product_id) == {"new"} and "9 lines follow" in told.reading
    with pytest.raises(MarketError, match="circle"): follow({"a": "b", "b": "a"})


def test_nobody_is_not_a_customer(tmp_path):
    text = "time,customer_id,product_id,quantity,unit_price,store_id\n" + "".join(f"2024-03-{1 + i % 28:02d},{['0', 'guest', '', f'c{i}'][i % 4]},{'pq'[i % 2]},1,2,s{i % 2}\n" for i in range(200))
    market = Market.from_csv(log(tmp_path/"x.csv", text))
    assert market.transactions.customer_id.isna().mean() == .75 and market.transactions.customer_id.nunique() == 50
    assert (market.customer_fold(market.transactions.customer_id) == -1).mean() == .75
    shares = market.store_week_shares()
    assert np.allclose(shares.groupby(["store", "week", "category"]).share.sum(), 1) and shares.units.sum() == 200 and (shares.price == 2).all()
    assert check_log(market)["who bought"].answer == "no"


def test_no_customers_at_all(tmp_path):
    market = Market.from_csv(log(tmp_path/"x.csv", "date,sku,qty,price\n2024-03-01,p,1,2\n2024-03-02,q,2,3\n"))
    assert market.transactions.customer_id.isna().all() and "store and week shares only" in market.reading
    assert "store and week" in str(check_log(market))


@pytest.mark.parametrize("text, how, words", [
    ("a,b,c\n1,2,3\n", {}, ["no column looks like the time", "columns="]),
    ("date,sku,ean,qty\n2024-01-01,1,2,3\n", {}, ["'sku' or 'ean'", "columns={'product_id'"]),
    ("date,sku,price\n2024-01-01,1,2\n", {}, ["quantity", "quantity=1"]),
    ("date,sku,qty\n3/4/2024,1,2\n", {}, ["day/month or month/day", "dayfirst"]),
    ("date,sku,qty\n13/4/2024,1,2\n4/13/2024,1,2\n", {}, ["two orders"]),
    ("date,sku,qty,price\n2024-01-01,1,2,\"1,234\"\n", {}, ["'1,234'", "decimal="]),
    ("date,sku,qty,price\n2024-01-01,1,2,\"1,23\"\n2024-01-01,1,2,1.23\n", {}, ["two ways"]),
    ("date,sku,qty\n2024-01-01,1,2\n", dict(columns={"when": "date"}), ["no such role", "'when'"]),
    ("date,sku,qty\n2024-01-01,1,2\n", dict(columns={"time": "Datum"}), ["no such column", "'Datum'"]),
    ("date,sku,qty\n2024-01-01,1,2\n", dict(returns="keep"), ["returns='keep'"]),
    ("date,sku,qty\n", {}, ["no rows"]),
    ("date,sku,qty\n2024-01-01,1,-2\n", {}, ["nothing is left", "'quantity'"]),
])
def test_doubt_is_an_error_that_says_what_to_pass(tmp_path, text, how, words):
    with pytest.raises(MarketError) as error: Market.from_csv(log(tmp_path/"x.csv", text), **how)
    for word in words: assert word in str(error.value), error.value


def test_what_the_user_says_goes_first(tmp_path):
    path = log(tmp_path/"x.csv", "Datum;EAN;Artikel;Menge;Preis\n03/04/2024;007;Feige;2;1,234\n")
    t = Market.from_csv(path, columns={"product_id": "EAN"}, dayfirst=True, decimal=",").transactions
    assert t.product_id[0] == "007" and t.time[0] == pd.Timestamp("2024-04-03") and t.unit_price[0] == 1.234
    assert Market.from_csv(path, columns={"EAN": "product_id"}, dayfirst=False, decimal=".").transactions.unit_price[0] == 1234
    assert Market.from_csv(log(tmp_path/"y.csv", "date,sku\n2024-03-01,a\n"), quantity=1).transactions.quantity[0] == 1


def test_date_and_clock_in_two_columns(tmp_path):
    t = Market.from_csv(log(tmp_path/"x.csv", "Date,Time,SKU,Qty\n2024-03-01,17:30,a,1\n")).transactions
    assert t.time[0] == pd.Timestamp("2024-03-01 17:30")


def test_from_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    choices = dict(customer_id=["a", "a"], occasion_id=[1, 1], product_id=["p", "q"], chosen=[True, False], price=[1., 2.])
    one = Market.from_dataset(datasets.Dataset.from_dict(choices), "m")
    two = Market.from_dataset(datasets.DatasetDict(train=datasets.Dataset.from_dict(choices), test=datasets.Dataset.from_dict(choices | dict(occasion_id=[2, 2]))), "m")
    three = Market.from_dataset(datasets.DatasetDict(choices=datasets.Dataset.from_dict(choices), products=datasets.Dataset.from_dict(dict(product_id=["p", "q"], category=["jam", "jam"]))), "m")
    assert len(one.choices) == 2 and two.choices.split.tolist() == ["train"] * 2 + ["test"] * 2 and three.choices.category.tolist() == ["jam"] * 2
    with pytest.raises(MarketError): Market.from_dataset([1, 2], "m")


def test_check_log_reads_whatever_it_is(tmp_path):
    market = Market.from_csv(log(tmp_path/"caisse.csv", TILL))
    market.save(tmp_path/"m")
    for path in (tmp_path/"m", tmp_path/"caisse.csv", tmp_path/"m"/"transactions.parquet"):
        report = check_log(path)
        assert report["what a price does"].answer == "no" and report["margins"].answer == "no" and "margins" in str(report) and "|" in report._repr_markdown_()
        json.dumps(report.to_dict())
    choices = pd.DataFrame(dict(customer_id="a", occasion_id=[1, 1], product_id=["p", "q"], chosen=[True, False]))
    choices.to_csv(tmp_path/"survey.csv", index=False)
    assert read_market(tmp_path/"survey.csv").name == "survey" and check_log(tmp_path/"survey.csv")["which product"].answer == "yes"


def test_extra_columns_travel_along(tmp_path):
    path = log(tmp_path/"choices.csv", "customer_id,occasion_id,product_id,chosen,size,code,note,sugar\n1,1,007,1,3,01,,0.5\n1,1,008,0,4,02,x,\n")
    c = Market.read(tmp_path).choices
    assert c["size"].dtype == "int64" and c.code.tolist() == ["01", "02"] and c.sugar.dtype == float and c.product_id.tolist() == ["007", "008"]
    c["new"] = 1 # a market's tables are ordinary, writable DataFrames


def test_names_are_codes_where_there_are_no_others(tmp_path):
    market = Market.from_csv(log(tmp_path/"x.csv", "Date,Item Description,Qty,Unit Price\n2024-03-01,fig jam,1,$2.50\n2024-03-02,plum jam,2,$3.00\n"))
    assert market.transactions.product_id.tolist() == ["fig jam", "plum jam"] and market.transactions.unit_price.tolist() == [2.5, 3]


def test_strangers_and_other_files_are_named(tmp_path):
    log(tmp_path/"transactions.csv", "time,customer_id,product_id,quantity\n1,a,p,1\n2,b,p,1\n")
    log(tmp_path/"customers.csv", "customer_id,age\na,30\n")
    log(tmp_path/"coupons.csv", "coupon\n10 off\n")
    market = Market.read(tmp_path)
    assert ("transactions.csv", "customer_id", "customers without a row in the customers table", 1) in market.notes
    assert market.ignored == ["coupons.csv"] and "coupons.csv" in market._repr_markdown_() and not len(market.set_aside)


CHOICES = pd.DataFrame(dict(customer_id="a", occasion_id=[1, 1, 2, 2, 3, 3], category="jam", time=[1, 1, 2, 2, 3, 3], product_id=["p", "q"] * 3, price=2., chosen=[1, 0] * 3, quantity=[1., 0, 2, 0, 3, 0]))


@pytest.mark.parametrize("quantity, unknown", [([1, np.nan, 2, np.nan, 3, np.nan], 0), ([1, 0, np.nan, 0, 3, 0], 1), ([np.nan] * 6, 3), ([1, None, "", 0, "3", None], 1)])
def test_an_unknown_quantity_is_no_slip(tmp_path, quantity, unknown):
    "Missing quantities are unknown, on rows that were not chosen or everywhere; from frames and from csv."
    table = CHOICES.assign(quantity=pd.Series(quantity, dtype=object))
    table.to_csv(tmp_path/"choices.csv", index=False)
    for market in (Market.from_frames("m", choices=table), Market.read(tmp_path)):
        assert len(market.choices) == 6 and not len(market.set_aside)
        assert market.choices.quantity[market.choices.chosen].isna().sum() == unknown
        assert [n[3] for n in market.notes if n[1] == "quantity"] == [unknown] * bool(unknown)
        market.save(tmp_path/"m")
        pd.testing.assert_frame_equal(Market.read(tmp_path/"m").choices, market.choices)
        assert check_log(market)["which product"].answer == "yes"


def test_check_names_ignored_files_and_notes(tmp_path):
    log(tmp_path/"choices.csv", CHOICES.to_csv(index=False).replace(",", ";"))
    log(tmp_path/"transaction.csv", "time,product_id,quantity\n1,p,1\n")
    log(tmp_path/"market.json", '{"nmae": "shop", "Ordered": true, "shelf life": 3}')
    report = check_log(tmp_path)
    for text in (str(report), report._repr_markdown_(), json.dumps(report.to_dict())):
        for words in ("transaction.csv", "Did you mean 'transactions'", "nmae", "Did you mean 'name'", "Did you mean 'ordered'", "shelf life", "separated by"): assert words in text, text
    assert report.to_dict()["ignored"] == ["transaction.csv"] and len(report.to_dict()["notes"]) == 5
    lines = Market.read(tmp_path).remarks()
    assert len(lines) == 4 and lines[0].startswith("transaction.csv: ignored") and all("\n" not in l for l in lines)
    assert ("market.json", "nmae", "unknown key, ignored. Did you mean 'name'? Rename the key.", 0) in Market.read(tmp_path).notes


@pytest.mark.parametrize("how", [lambda t: t, lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.250%z"), lambda t: t.strftime("%d/%m/%Y %H:%M:%S%z"), lambda t: t.strftime("%Y/%m/%d %H:%M:%S%z"), str])
def test_one_rule_for_time_zones(tmp_path, how):
    "UTC, whether a column comes from parquet, as zoned text, or as objects; and it is said."
    zoned = [pd.Timestamp("2024-03-31 10:00", tz="Europe/Paris"), pd.Timestamp("2024-01-13 10:00", tz="Europe/Paris")]
    for column in (pd.Series([how(t) for t in zoned]), pd.Series([how(t) for t in zoned], dtype=object)):
        times, wrong, notes = as_times(column)
        assert times.dt.floor("s").tolist() == [pd.Timestamp("2024-03-31 08:00"), pd.Timestamp("2024-01-13 09:00")] and not wrong.any()
        assert any("UTC" in n for n in notes)
    lines = pd.DataFrame(dict(time=[how(t) for t in zoned], customer_id="a", product_id="p", quantity=1))
    lines.to_csv(tmp_path/"transactions.csv", index=False)
    from_csv, from_frame = Market.read(tmp_path), Market.from_frames("m", transactions=lines)
    assert from_csv.transactions.time.tolist() == from_frame.transactions.time.tolist() and any("UTC" in r for r in from_csv.remarks())


def test_fractions_of_a_second_are_no_date(): assert as_times(pd.Series(["2024.03.01 10:00:00.25"]))[0][0] == pd.Timestamp("2024-03-01 10:00:00.25")


def test_names_do_not_act(tmp_path):
    table = CHOICES.rename(columns={"price": "a|b\n<img>"}).assign(**{"a|b\n<img>": [1, "x"] * 3})
    market = Market.from_frames("<script>|\n\x1b[2J", choices=pd.concat([table, table.head(1).assign(occasion_id=9)]))
    assert "\n" not in market.name and "\x1b" not in market.name
    for text in (market._repr_markdown_(), check_log(market)._repr_markdown_()): assert "<script>" not in text and "<img>" not in text and "script>|" not in text and "a|b" not in text
    assert "\x1b" not in str(check_log(market))
    (tmp_path/"m\x1b[2J").mkdir()
    CHOICES.to_csv(tmp_path/"m\x1b[2J"/"choices.csv", index=False)
    assert Market.read(tmp_path/"m\x1b[2J").name == "m\\u001b[2J"
    market.save(tmp_path/"again")
    assert Market.read(tmp_path/"again").name == market.name


@pytest.mark.parametrize("key, value", [("name", None), ("name", ""), ("name", "  "), ("name", 5), ("ordered", "no"), ("ordered", None), ("volume", "many"), ("volume", {"jam": "many"}), ("volume", -1), ("volume", True), ("currency", 3), ("synthetic", 1)])
def test_settings_of_the_wrong_kind(tmp_path, key, value):
    with pytest.raises(MarketError) as error: Market.from_frames(**{"name": "m", "choices": CHOICES, key: value})
    for word in (repr(key), repr(value), "expected"): assert word in str(error.value)
    CHOICES.to_csv(tmp_path/"choices.csv", index=False)
    log(tmp_path/"market.json", json.dumps({key: value}))
    with pytest.raises(MarketError) as error: Market.read(tmp_path)
    for word in ("market.json", repr(key), repr(value), type(value).__name__, "expected"): assert word in str(error.value)


@pytest.mark.parametrize("option, value", [("columns", ["time"]), ("columns", {"time": ["date"]}), ("columns", {"time": "date", "clock": "date"}), ("replaced", ["old", "new"]), ("replaced", {"old": ["new"]}), ("decimal", ";"), ("decimal", ["."]), ("dayfirst", "yes"), ("unknown", None), ("name", ""), ("name", 5), ("currency", 5)])
def test_options_of_the_wrong_kind(tmp_path, option, value):
    path = log(tmp_path/"x.csv", "date,client,sku,qty\n2024-03-01,c1,a,1\n2024-03-02,c2,b,1\n")
    with pytest.raises(MarketError, match=option): Market.from_csv(path, **{option: value})


def test_one_customer_that_means_nobody(tmp_path):
    path = log(tmp_path/"x.csv", "date,client,sku,qty\n2024-03-01,c1,a,1\n2024-03-02,c2,b,1\n2024-03-03,c,b,1\n")
    for unknown in ("c1", ("c1",)): assert Market.from_csv(path, unknown=unknown).transactions.customer_id.isna().tolist() == [True, False, False]


def test_a_log_without_categories_is_one_category(tmp_path):
    path = log(tmp_path/"x.csv", "date,client,sku,qty\n2024-03-01,c1,a,1\n2024-03-02,c2,b,1\n")
    report, words = check_log(path), "everything is one category of its 10 best sellers"
    assert words in report["which product"].why and "pass columns={'category': ...} or a products table" in report["which product"].why
    assert any(words in r for r in Market.from_csv(path).remarks())
    lines = pd.DataFrame(dict(time=[1, 2], customer_id="a", product_id=["p", "q"], quantity=1))
    named = Market.from_frames("m", transactions=lines, products=pd.DataFrame(dict(product_id=["p", "q"], category="jam")))
    assert words not in str(check_log(named))
    assert words in str(check_log(Market.from_frames("m", transactions=lines.assign(category=None))))


def test_check_promises_only_what_is_read():
    lines = pd.DataFrame(dict(time=[1, 2], customer_id="a", product_id=["p", "q"], quantity=1, unit_price=2.))
    beside = dict(promotions=pd.DataFrame(dict(product_id=["p"], mechanic="2 for 1")), stock=pd.DataFrame(dict(product_id=["p"], stock=3)), prices=pd.DataFrame(dict(product_id=["p"], price=2.)), costs=pd.DataFrame(dict(product_id=["p"], cost=1.)))
    for tables, answer, words in ((dict(transactions=lines), "partly", "joined to lines by priced_transactions()"), (dict(choices=CHOICES), "no", "no transactions")):
        report = check_log(Market.from_frames("m", **tables, **beside))
        for question in ("promotion", "out of stock", "list prices", "margins"): assert report[question].answer == answer and words in report[question].why
