"Public markets by name, from a mirror on this machine: right file, wrong file, no network, kept folder."
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import threading

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pooch")

from malles.fetch import SOURCES, fetch, read_panel
from malles.market import Market, MarketError

REAL = Path(__file__).parents[2]/"shared"/"data"/"panels"


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
    choices = pd.read_parquet(REAL/name/"choices.parquet")
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


def offer(tmp_path, name, raw):
    file = tmp_path/"mirror"/SOURCES[name].path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)
    return file


@pytest.mark.parametrize("name", SOURCES)
def test_the_known_file_becomes_the_known_market(name, mirror, tmp_path):
    if not (REAL/name).is_dir(): pytest.skip("real data is not here")
    file = offer(tmp_path, name, source_file(name))
    market = Market.fetch(name, tmp_path/"folder", mirror=mirror)
    known = Market.read(REAL/name).choices
    for c in set(market.choices) & set(known): assert (market.choices[c].to_numpy() == known[c].to_numpy()).all() if known[c].dtype.kind not in "f" else np.allclose(market.choices[c], known[c]), c
    assert {"customer_id", "occasion_id", "category", "time", "product_id", "price", "chosen", "quantity"} <= set(market.choices) & set(known)
    kept = Market.read(tmp_path/"folder")
    assert kept.name == name and len(kept.choices) == len(known) and kept.ordered == market.ordered
    assert "licence" in market.reading and SOURCES[name].citation in market.reading and mirror in market.reading
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
    with pytest.raises(MarketError, match="no public market 'milk'; there are catsup, ketchup, tuna"): fetch("milk")


def test_another_layout_is_said(tmp_path):
    (tmp_path/"x.csv").write_text("id,choice,price.heinz41\n1,heinz41,3\n")
    with pytest.raises(MarketError, match="no column price.heinz32"): read_panel(tmp_path/"x.csv", SOURCES["catsup"])
    s = SOURCES["ketchup"]
    (tmp_path/"y.csv").write_text(",".join([s.household, s.choice, *(f"price.{p}" for p in s.products)]) + "\n1,mustard,1,1,1,1\n")
    with pytest.raises(MarketError, match="chosen was mustard, expected one of heinz"): read_panel(tmp_path/"y.csv", s)
