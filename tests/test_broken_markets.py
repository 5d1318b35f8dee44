"Broken markets: each kind gives one clear `MarketError`, or rows set aside with a reason and counted; never another exception."
import gzip, json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from malles.market import Market, MarketError, check_log

HEAD = "customer_id,occasion_id,category,time,product_id,price,chosen,quantity\n"
GOOD = HEAD + "".join(f"c{i % 3},{i},jam,2024-03-{i + 1:02d},{p},{1.5 + j},{int(p == 'fig')},{int(p == 'fig')}\n" for i in range(6) for j, p in enumerate(("plum", "fig")))
LOG = "time,customer_id,product_id,quantity,unit_price\n" + "".join(f"2024-03-{i + 1:02d},c{i % 3},{p},{1 + i % 2},{1.5 + j}\n" for i in range(6) for j, p in enumerate(("plum", "fig")))


def swap(text, row, column, value):
    "One entry of a csv text exchanged; row 1 is the first data row."
    lines = text.splitlines()
    fields = lines[row].split(",")
    fields[lines[0].split(",").index(column)] = value
    return "\n".join(lines[:row] + [",".join(fields)] + lines[row + 1:]) + "\n"


def every(text, column, value):
    for row in range(1, len(text.splitlines())): text = swap(text, row, column, value)
    return text


def without(text, column):
    frame = pd.read_csv(__import__("io").StringIO(text), dtype=str)
    return frame.drop(columns=column).to_csv(index=False)


def parquet(text=GOOD, **change):
    frame = pd.read_csv(__import__("io").StringIO(text)).assign(**change)
    return frame.to_parquet(index=False)


# name -> (files, words that the error must hold)
FATAL = {
    "no folder contents": ({}, ["no table", "transactions"]),
    "no table by that name": ({"transaction.csv": LOG}, ["no table", "transactions", "transaction.csv"]),
    "empty file": ({"choices.csv": ""}, ["choices.csv", "empty"]),
    "blank file": ({"choices.csv": "\n\n  \n"}, ["choices.csv", "empty"]),
    "header only": ({"choices.csv": HEAD}, ["choices.csv", "no rows"]),
    "empty parquet table": ({"choices.parquet": pd.read_csv(__import__("io").StringIO(GOOD)).head(0).to_parquet()}, ["choices.parquet", "no rows"]),
    "missing column": ({"choices.csv": without(GOOD, "chosen")}, ["choices.csv", "'chosen'", "missing"]),
    "misspelt column": ({"choices.csv": GOOD.replace("product_id", "Product Id", 1)}, ["choices.csv", "'product_id'", "Did you mean 'Product Id'"]),
    "no header": ({"choices.csv": GOOD.split("\n", 1)[1]}, ["choices.csv", "row of names is missing"]),
    "doubled column": ({"choices.csv": GOOD.replace("quantity", "price", 1)}, ["choices.csv", "'price'", "more than once"]),
    "truncated parquet": ({"choices.parquet": parquet()[:400]}, ["choices.parquet", "complete"]),
    "text called parquet": ({"choices.parquet": GOOD}, ["choices.parquet", "parquet"]),
    "empty parquet": ({"choices.parquet": b""}, ["choices.parquet", "empty"]),
    "parquet called csv": ({"choices.csv": parquet()}, ["choices.csv", "not a text file"]),
    "truncated gzip": ({"choices.csv.gz": gzip.compress(GOOD.encode())[:-20]}, ["choices.csv.gz", "complete"]),
    "no gzip at all": ({"choices.csv.gz": GOOD}, ["choices.csv.gz", "unpacked"]),
    "folder instead of file": ({"choices.csv/": ""}, ["choices.csv", "folder"]),
    "two files for one table": ({"choices.csv": GOOD, "choices.parquet": parquet()}, ["choices.csv", "choices.parquet", "one file"]),
    "too many fields": ({"choices.csv": GOOD.replace("plum", "plum, ripe", 1)}, ["choices.csv", "row", "fields"]),
    "open quote": ({"choices.csv": GOOD.replace("plum", '"plum', 1)}, ["choices.csv"]),
    "every price a word": ({"choices.csv": every(GOOD, "price", "cheap")}, ["choices.csv", "'price'", "row 1", "'cheap'", "number"]),
    "every price with a decimal comma": ({"choices.csv": every(GOOD, "price", "1.50 EUR")}, ["choices.csv", "'price'", "Market.from_csv"]),
    "every date unreadable": ({"choices.csv": every(GOOD, "time", "soon")}, ["choices.csv", "'time'", "'soon'", "2024-03-31"]),
    "dates of two readings": ({"choices.csv": every(GOOD, "time", "03/04/2024")}, ["choices.csv", "'time'", "day/month"]),
    "occasions numbered within customers": ({"choices.csv": every(every(GOOD, "occasion_id", "1"), "time", "1")}, ["choices.csv", "occasion_id", "unique"]),
    "one alternative everywhere": ({"choices.csv": HEAD + "".join(l + "\n" for l in GOOD.splitlines()[1:] if "fig" in l)}, ["choices.csv", "one alternative"]),
    "nothing is ever chosen": ({"choices.csv": every(every(GOOD, "chosen", "0"), "quantity", "0")}, ["choices.csv", "'chosen'", "no alternative"]),
    "no known product": ({"choices.csv": GOOD, "products.csv": "product_id\nbread\n"}, ["choices.csv", "'product_id'", "products table"]),
    "lost zeros": ({"choices.csv": GOOD.replace("plum", "007").replace("fig", "008"), "products.csv": "product_id\n7\n8\n"}, ["leading zeros"]),
    "no customer in choices": ({"choices.csv": every(GOOD, "customer_id", "")}, ["choices.csv", "'customer_id'", "missing"]),
    "market.json is no json": ({"choices.csv": GOOD, "market.json": "{name:"}, ["market.json", "JSON"]),
    "market.json is a list": ({"choices.csv": GOOD, "market.json": "[]"}, ["market.json", "record"]),
    "market.json with a number for a name": ({"choices.csv": GOOD, "market.json": '{"name": 5}'}, ["market.json", "'name'", "got 5 (int)", "expected a text"]),
    "market.json with an empty name": ({"choices.csv": GOOD, "market.json": '{"name": " "}'}, ["market.json", "'name'", "not empty"]),
    "market.json of a later format": ({"choices.csv": GOOD, "market.json": '{"format": 2}'}, ["market.json", "'format'", "got 2", "expected 1"]),
    "market.json without end": ({"choices.csv": GOOD, "market.json": "[" * 100000}, ["market.json", "JSON"]),
    "cause before consequence": ({"choices.csv": HEAD + "".join(f"a,{i},jam,{i},p{j},{'cheap' if j == i else 2},{int(j == 1)},{int(j == 1)}\n" for i in range(4) for j in range(4))}, ["choices.csv", "'price'", "'cheap'", "4 of 16"]),
    "market.json with a wrong type": ({"choices.csv": GOOD, "market.json": '{"ordered": "no"}'}, ["market.json", "'ordered'"]),
    "dialogue that is no record": ({"dialogues.jsonl": '{"dialogue_id": "a"}\nhello\n'}, ["dialogues.jsonl", "row 2"]),
    "dialogue line a list": ({"dialogues.jsonl": "[1]\n"}, ["dialogues.jsonl", "row 1"]),
    "costs against time": ({"transactions.csv": LOG, "costs.csv": "product_id,cost,valid_from,valid_to\nplum,1,1,2024-01-01\n"}, ["costs.csv", "valid_"]),
    "costs without costs": ({"transactions.csv": LOG, "costs.csv": "product_id,price\nplum,1\n"}, ["costs.csv", "'cost'", "missing"]),
    "utf-16 cut": ({"choices.csv": GOOD.encode("utf-16")[:-1]}, ["choices.csv", "UTF-16"]),
}

# name -> (files, column, words of the reason, rows set aside)
ASIDE = {
    "a word for a price": ({"choices.csv": swap(GOOD, 1, "price", "cheap")}, "price", "expected a number", 2),
    "negative price": ({"choices.csv": swap(GOOD, 1, "price", "-1")}, "price", "more than 0", 2),
    "zero price": ({"choices.csv": swap(GOOD, 1, "price", "0")}, "price", "more than 0", 2),
    "infinite price": ({"choices.csv": swap(GOOD, 1, "price", "inf")}, "price", "infinite", 2),
    "huge price": ({"choices.csv": swap(GOOD, 1, "price", "1e30")}, "price", "absurdly large", 2),
    "price a million times the others": ({"choices.csv": swap(GOOD, 1, "price", "9999999")}, "price", "absurdly large", 2),
    "negative quantity": ({"choices.csv": swap(GOOD, 2, "quantity", "-1")}, "quantity", "at least 0", 2),
    "half a unit": ({"choices.csv": swap(GOOD, 2, "quantity", "0.5")}, "quantity", "whole number", 2),
    "chosen, none taken": ({"choices.csv": swap(GOOD, 2, "quantity", "0")}, "quantity", "chosen with quantity 0", 2),
    "taken, not chosen": ({"choices.csv": swap(GOOD, 1, "quantity", "3")}, "quantity", "not chosen", 2),
    "alternative twice": ({"choices.csv": GOOD + GOOD.splitlines()[1] + "\n"}, "product_id", "twice", 3),
    "two chosen": ({"choices.csv": swap(swap(GOOD, 1, "chosen", "1"), 1, "quantity", "1")}, "chosen", "several", 2),
    "none chosen": ({"choices.csv": swap(swap(GOOD, 2, "chosen", "0"), 2, "quantity", "0")}, "chosen", "no alternative", 2),
    "chosen unreadable": ({"choices.csv": swap(GOOD, 2, "chosen", "maybe")}, "chosen", "True or False", 2),
    "one alternative": ({"choices.csv": "\n".join(l for n, l in enumerate(GOOD.splitlines()) if n != 1) + "\n"}, "occasion_id", "one alternative", 1),
    "customer missing": ({"choices.csv": swap(GOOD, 1, "customer_id", "")}, "customer_id", "missing", 2),
    "product missing": ({"choices.csv": swap(GOOD, 1, "product_id", "")}, "product_id", "missing", 2),
    "occasion missing": ({"choices.csv": swap(GOOD, 1, "occasion_id", "")}, "occasion_id", "missing", 2),
    "occasion of two customers": ({"choices.csv": swap(GOOD, 2, "customer_id", "zoe")}, "customer_id", "differs", 2),
    "occasion of two times": ({"choices.csv": swap(GOOD, 2, "time", "2024-05-05")}, "time", "differs", 2),
    "unknown product": ({"choices.csv": swap(GOOD, 1, "product_id", "mud"), "products.csv": "product_id\nplum\nfig\n"}, "product_id", "products table", 2),
    "bad date": ({"choices.csv": swap(GOOD, 1, "time", "2024-02-31")}, "time", "date", 2),
    "year 9999": ({"choices.csv": swap(GOOD, 1, "time", "9999-01-01")}, "time", "1900 to 2100", 2),
    "file cut in a row": ({"choices.csv": GOOD[:-4]}, "chosen", "True or False", 2),
    "line: return": ({"transactions.csv": swap(LOG, 1, "quantity", "-1")}, "quantity", "return", 1),
    "line: nothing": ({"transactions.csv": swap(LOG, 1, "quantity", "0")}, "quantity", "1 or more", 1),
    "line: by weight": ({"transactions.csv": swap(LOG, 1, "quantity", "0.35")}, "quantity", "whole number", 1),
    "line: quantity missing": ({"transactions.csv": swap(LOG, 1, "quantity", "")}, "quantity", "missing", 1),
    "line: quantity a word": ({"transactions.csv": swap(LOG, 1, "quantity", "two")}, "quantity", "number", 1),
    "line: quantity infinite": ({"transactions.csv": swap(LOG, 1, "quantity", "inf")}, "quantity", "infinite", 1),
    "line: quantity huge": ({"transactions.csv": swap(LOG, 1, "quantity", "1e18")}, "quantity", "absurdly", 1),
    "line: negative price": ({"transactions.csv": swap(LOG, 1, "unit_price", "-2")}, "unit_price", "more than 0", 1),
    "line: no product": ({"transactions.csv": swap(LOG, 1, "product_id", "")}, "product_id", "missing", 1),
    "line: no date": ({"transactions.csv": swap(LOG, 1, "time", "")}, "time", "missing", 1),
    "line: some times zoned": ({"transactions.csv": swap(LOG, 1, "time", "2024-03-01T10:00:00+01:00")}, "time", "date", 1),
    "product twice": ({"choices.csv": GOOD, "products.csv": "product_id,category\nplum,jam\nfig,jam\nplum,jam\n"}, "product_id", "twice", 1),
    "customer twice": ({"choices.csv": GOOD, "customers.csv": "customer_id,age\nc0,1\nc0,2\n"}, "customer_id", "twice", 1),
    "promotion ends before it starts": ({"transactions.csv": LOG, "promotions.csv": "product_id,valid_from,valid_to\nplum,2024-02-01,2024-01-01\nplum,2024-01-01,2024-02-01\n"}, "valid_to", "before", 1),
    "dialogue twice": ({"dialogues.jsonl": '{"dialogue_id": "a", "turns": []}\n{"dialogue_id": "a", "turns": []}\n'}, "dialogue_id", "twice", 1),
    "dialogue without turns": ({"dialogues.jsonl": '{"dialogue_id": "a", "turns": "hi"}\n{"dialogue_id": "b", "turns": []}\n'}, "turns", "list", 1),
}


def write(folder, files):
    folder.mkdir()
    for name, text in files.items():
        if name.endswith("/"): (folder/name).mkdir()
        else: (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_there_are_enough_kinds(): assert len(FATAL) + len(ASIDE) >= 40


@pytest.mark.parametrize("kind", FATAL)
def test_fatal(tmp_path, kind):
    files, words = FATAL[kind]
    with pytest.raises(MarketError) as error: Market.read(write(tmp_path/"m", files))
    message = str(error.value)
    for word in words: assert word in message, message
    assert len(message) < 700 and "\n" not in message
    assert error.value.__cause__ is None and (error.value.__context__ is None or error.value.__suppress_context__)


@pytest.mark.parametrize("kind", ASIDE)
def test_set_aside(tmp_path, kind):
    files, column, reason, rows = ASIDE[kind]
    market = Market.read(write(tmp_path/"m", files))
    aside = market.set_aside
    assert len(aside) == rows, aside.to_string()
    hit = aside[(aside.column == column) & aside.reason.str.contains(reason, regex=False)]
    assert len(hit), aside.to_string()
    assert (hit.row >= 1).all() and set(hit.table) <= set(files)
    market.write_set_aside(tmp_path/"out"/"set_aside.csv")
    assert len(pd.read_csv(tmp_path/"out"/"set_aside.csv")) == rows
    for table, frame in market.tables().items(): # nothing is lost and nothing is doubled
        source = next(n for n in files if n.startswith(table))
        there = files[source] if isinstance(files[source], str) else files[source].decode()
        lines = len([l for l in there.splitlines() if l.strip()]) - (not source.endswith("jsonl"))
        assert len(frame) + (aside.table == source).sum() == lines
    assert f"{rows:,} rows set aside" in market._repr_markdown_()


# name -> (files, what the notes must say): odd, but readable without a doubt; nothing is set aside
STATED = {
    "byte-order mark": ({"choices.csv": b"\xef\xbb\xbf" + GOOD.encode()}, ""),
    "utf-16": ({"choices.csv": GOOD.encode("utf-16")}, "UTF-16"),
    "old encoding": ({"choices.csv": GOOD.replace("plum", "quetsche à l'eau").encode("cp1252")}, "Windows-1252"),
    "semicolons": ({"choices.csv": GOOD.replace(",", ";")}, "';'"),
    "tabs": ({"choices.csv": GOOD.replace(",", "\t")}, "'\\t'"),
    "windows line ends": ({"choices.csv": GOOD.replace("\n", "\r\n")}, ""),
    "unnamed index": ({"choices.csv": "\n".join(("," if i == 0 else f"{i},") + l for i, l in enumerate(GOOD.splitlines())) + "\n"}, "without a name"),
    "yes and no": ({"choices.csv": "\n".join(l if not i else ",".join([*l.split(",")[:6], {"1": "Yes", "0": "no"}[l.split(",")[6]], l.split(",")[7]]) for i, l in enumerate(GOOD.splitlines())) + "\n"}, ""),
    "time zone": ({"choices.parquet": parquet(time=pd.Timestamp("2024-03-01", tz="Europe/Paris"))}, "(Europe/Paris): turned into UTC"),
    "zoned texts": ({"choices.csv": every(GOOD, "time", "2024-03-01T10:00:00+02:00")}, "UTC"),
    "dates as numbers": ({"choices.csv": every(GOOD, "time", "20240301")}, "20240331"),
    "german dates": ({"choices.csv": every(GOOD, "time", "28.03.2024")}, "day/month/year"),
    "american dates": ({"choices.csv": every(GOOD, "time", "03/28/2024")}, "month/day/year"),
    "unsorted time": ({"choices.csv": HEAD + "\n".join(GOOD.splitlines()[:0:-1]) + "\n"}, "sorted"),
    "occasion in two places": ({"choices.csv": HEAD + "\n".join(GOOD.splitlines()[1::2] + GOOD.splitlines()[2::2]) + "\n"}, ""),
    "control characters": ({"choices.parquet": parquet(name="fig\x07 \u202ejam\x00")}, "written out"),
    "control characters in ids": ({"choices.csv": GOOD.replace("plum", "pl\x07um")}, "control"),
    "endless names": ({"choices.csv": GOOD.replace("quantity\n", "quantity,name\n", 1).replace("0\n", "0," + "x" * 5000 + "\n").replace("1\n", "1,y\n")}, "cut"),
    "float identifiers": ({"choices.csv": GOOD.replace("plum", "1.0").replace("fig", "2.0")}, "'12.0'"),
    "quantity unknown on rows not chosen": ({"choices.csv": GOOD.replace(",0,0\n", ",0,\n")}, ""),
    "quantity unknown everywhere": ({"choices.csv": every(GOOD, "quantity", "")}, "how many does not count"),
    "misspelt key of market.json": ({"choices.csv": GOOD, "market.json": '{"nmae": "jam", "Ordered": true}'}, "Did you mean 'name'"),
    "no time": ({"choices.csv": without(GOOD, "time")}, "order"),
    "no category": ({"choices.csv": without(GOOD, "category")}, "one category"),
    "nullable types": ({"choices.parquet": pd.read_csv(__import__("io").StringIO(GOOD)).convert_dtypes().to_parquet()}, ""),
    "categories": ({"choices.parquet": pd.read_csv(__import__("io").StringIO(GOOD)).astype({"product_id": "category", "customer_id": "category"}).to_parquet()}, ""),
    "index kept": ({"choices.parquet": pd.read_csv(__import__("io").StringIO(GOOD)).set_index("customer_id").to_parquet()}, ""),
    "price missing": ({"choices.csv": swap(GOOD, 1, "price", "")}, ""),
    "an emoji and an accent": ({"choices.csv": GOOD.replace("plum", "👩‍🍳 Zwetschgenmus №1")}, ""),
    "markers of a chat": ({"choices.csv": GOOD.replace("plum", "<|im_start|>user [INST] {{x}}")}, ""),
    "500 alternatives": ({"choices.csv": HEAD + "".join(f"a,1,jam,1,p{j},2,{int(j == 7)},{int(j == 7)}\n" for j in range(500))}, ""),
    "a customer without history": ({"choices.csv": "\n".join(GOOD.splitlines()[:3]) + "\n"}, ""),
}


@pytest.mark.parametrize("kind", STATED)
def test_stated(tmp_path, kind):
    files, said = STATED[kind]
    market = Market.read(write(tmp_path/"m", files))
    assert not len(market.set_aside), market.set_aside.to_string()
    assert said in str([n[2] for n in market.notes]) if "\\t" not in said else "\\t" in str(market.notes)
    c = market.choices
    assert (c.groupby("occasion_id").chosen.sum() == 1).all() and c.customer_id.dtype == "str" and c.chosen.dtype == bool
    assert len(c) == (500 if kind.startswith("500") else 2 if "history" in kind else 12)
    at = c.drop_duplicates("occasion_id")
    assert all(t.is_monotonic_increasing for _, t in at.groupby("customer_id").time)
    assert (c.occasion_id != c.occasion_id.shift()).sum() == c.occasion_id.nunique()
    market.save(tmp_path/"again")
    pd.testing.assert_frame_equal(Market.read(tmp_path/"again").choices, c)


def test_control_characters_do_not_act(tmp_path):
    market = Market.read(write(tmp_path/"m", STATED["control characters"][0]))
    assert market.choices.name[0] == "fig\\u0007 \\u202ejam\\u0000"


def test_identifiers(tmp_path):
    "1, 1.0 and '1' are one; '007' and '7' are two; nobody is nobody."
    lines = pd.DataFrame(dict(time=1, customer_id=pd.Series([1, 1.0, "1", "007", "7", None, np.nan, ""], dtype=object), product_id="plum", quantity=1))
    ids = Market.from_frames("m", transactions=lines).transactions.customer_id
    assert sorted(ids.dropna()) == ["007", "1", "1", "1", "7"] and ids.isna().sum() == 3


@pytest.mark.parametrize("bad", [dict(choices=[1, 2]), dict(choice=pd.DataFrame()), dict(), dict(choices=pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))), dict(transactions=pd.DataFrame(dict(time=[pd.Timedelta(1)], product_id=[1], quantity=[1]))),
                                 dict(transactions=pd.DataFrame(dict(time=[1], product_id=[1], quantity=[pd.Timestamp("2024")]))), dict(transactions=pd.DataFrame(dict(time=[1.5], product_id=[1], quantity=[1]))), dict(transactions=pd.DataFrame(dict(time=[1], product_id=[1], quantity=[1j]))),
                                 dict(transactions=pd.DataFrame(dict(time=[[1]], product_id=[[1]], quantity=[[1]]))), dict(transactions=pd.DataFrame(dict(time=[True], product_id=[None], quantity=[True])))])
def test_frames_that_are_none(bad):
    with pytest.raises(MarketError): Market.from_frames("m", **bad)


def test_any_bytes_are_a_market_error_or_a_market(tmp_path):
    "A fuzz: bytes of good files exchanged, cut and doubled."
    rng = np.random.default_rng(0)
    good = {"choices.csv": GOOD.encode(), "choices.parquet": parquet(), "transactions.csv": LOG.encode(), "dialogues.jsonl": b'{"dialogue_id": "a", "turns": [{"role": "b", "text": "c"}]}\n'}
    for i in range(160):
        name = list(good)[i % 4]
        raw = bytearray(good[name])
        for _ in range(rng.integers(1, 6)): raw[rng.integers(len(raw))] = rng.integers(256)
        if i % 3 == 0: raw = raw[:rng.integers(len(raw))]
        folder = write(tmp_path/f"m{i}", {name: bytes(raw)})
        try: Market.read(folder)
        except MarketError as e: assert "\n" not in str(e)
        try: check_log(folder/name)
        except MarketError as e: assert "\n" not in str(e)
