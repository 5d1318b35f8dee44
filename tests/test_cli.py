"The commands from outside: results, exit codes, JSON, a stopped run that continues, a page that needs nothing."
import contextlib, io, json, os, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from malles.cli import main

ROOT = Path(__file__).parent.parent
FEW = ("uniform", "popularity", "last-purchase", "dirichlet", "loyalty-logit")  # quick ones; nano's run is in nbs/69_cli.ipynb and test_report_browser.py


def only(names, more=()):
    "The field of contenders, reduced: what the commands do with it is tested here, the models are elsewhere."
    from malles import contenders
    whole = contenders.contenders_for
    return lambda trials, *a, **kw: (lambda field: lambda trial: [*(c for c in field(trial) if c.name in names), *more])(whole(trials, *a, **kw))


def never(): time.sleep(3600)


def held(whole, name):
    "The same field, in which one model is never made: a run that stands still there, however slow the machine."
    return lambda *a, **kw: (lambda field: lambda trial: [replace(c, make=never) if c.name == name else c for c in field(trial)])(whole(*a, **kw))


# the same, for a process of its own: `python -c DRIVER names... -- arguments...` stands still at the last of the names
DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background of a shell are born with Ctrl-C ignored
sys.path.insert(0, "tests")
import malles.contenders as contenders, malles.cli
from test_cli import held, only
cut = sys.argv.index("--")
contenders.contenders_for = held(only(sys.argv[1:cut]), sys.argv[cut-1])
sys.exit(malles.cli.main(sys.argv[cut+1:]))
"""


def start(names, *arguments):
    "A command in a process group of its own, which stands still at the last model."
    return subprocess.Popen([sys.executable, "-c", DRIVER, *names, "--", *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market")/"tiny"
    assert main(f"simulate --out {folder} --customers 50 --categories 2 --trade 0 --weeks 30 --seed 4".split()) == 0
    return folder


@pytest.fixture(scope="module")
def result(market, tmp_path_factory):
    "A run that nobody disturbs, and what it printed."
    from malles import contenders
    out = tmp_path_factory.mktemp("result")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as errors:
        patch.setattr(contenders, "contenders_for", only(FEW))
        assert main(["run", "--market", str(market), "--out", str(out), "--json", "--quiet"]) == 0
    return out, said.getvalue(), errors.getvalue()


def rows(out): return pd.read_csv(Path(out)/"rows.csv", keep_default_na=False)


# ---- simulate and check

def test_simulate_says_what_it_made(tmp_path, capsys):
    assert main(f"simulate --out {tmp_path/'one'} --customers 30 --categories 1 --trade 0 --seed 2 --json".split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["market"] == "one" and said["customers"] == 30
    assert {"choices.parquet", "transactions.parquet", "market.json", "truth"} <= {p.name for p in (tmp_path/"one").iterdir()}


def test_simulate_repeats_itself(tmp_path):
    for name in ("a", "b"): main(f"simulate --out {tmp_path/name} --customers 20 --categories 1 --trade 0 --seed 2 --name same".split())
    for table in ("choices", "truth/choices"): pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path/n/f"{table}.parquet") for n in ("a", "b")))


@pytest.mark.parametrize("wrong", ["--customers 0", "--customers -3", "--categories 9", "--trade 7", "--weeks 0"])
def test_simulate_refuses_impossible_sizes(tmp_path, wrong, capsys):
    assert main(f"simulate --out {tmp_path/'x'} {wrong}".split()) == 2
    assert wrong.split()[0][2:] in capsys.readouterr().err
    assert not (tmp_path/"x").exists()


def test_check(market, capsys):
    assert main(["check", str(market)]) == 0
    assert "which product is chosen" in capsys.readouterr().out
    assert main(["check", str(market), "--json"]) == 0
    assert {v["answer"] for v in json.loads(capsys.readouterr().out)["verdicts"]} <= {"yes", "partly", "no"}


# ---- exit codes of input that cannot be used: one line, no traceback

def refused(capsys, *arguments):
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert code == 2 and not said.out
    assert said.err.startswith(f"malles {arguments[0]}: ") and "Traceback" not in said.err
    return said.err


def test_no_such_market(tmp_path, capsys): assert "nowhere" in refused(capsys, "run", "--market", tmp_path/"nowhere", "--out", tmp_path/"out")


def test_no_such_file(tmp_path, capsys): refused(capsys, "check", tmp_path/"nothing.csv")


def test_empty_folder(tmp_path, capsys):
    (tmp_path/"empty").mkdir()
    assert "empty" in refused(capsys, "run", "--market", tmp_path/"empty", "--out", tmp_path/"out")


def test_no_such_model(market, tmp_path, capsys): assert "nanny" in refused(capsys, "run", "--market", market, "--model", "nanny", "--out", tmp_path/"out", "--quiet")


def test_out_is_a_file(market, tmp_path, capsys):
    (tmp_path/"taken").write_text("mine")
    assert "taken" in refused(capsys, "run", "--market", market, "--out", tmp_path/"taken")
    assert (tmp_path/"taken").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody, root included, can write")
def test_out_cannot_be_written(market, capsys): refused(capsys, "run", "--market", market, "--out", "/proc/malles")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_out_is_read_only(market, tmp_path, capsys):
    (tmp_path/"locked").mkdir(mode=0o500)
    refused(capsys, "run", "--market", market, "--out", tmp_path/"locked")


def test_two_markets_of_one_name(market, tmp_path, capsys): assert "name" in refused(capsys, "bench", "--markets", market, market, "--out", tmp_path/"out")


@pytest.mark.parametrize("line", ["", "dance", "run", "run --market x", "bench --out x", "run --market x --out y --seed few"])
def test_wrong_arguments(line, capsys):
    assert main(line.split()) == 2 and "usage: malles" in capsys.readouterr().err


def test_help_and_version_come_at_once():
    code, began = "import sys; from malles.cli import main; sys.exit(main())", time.perf_counter()
    for argument, expected in (("--help", "simulate"), ("--version", "malles ")):
        done = subprocess.run([sys.executable, "-c", code, argument], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
    assert time.perf_counter() - began < 6  # generous: a busy machine; each takes a fraction of a second


# ---- a run

def test_run_leaves_tidy_rows(result):
    table = rows(result[0])
    assert list(table) == "market category split model metric value low high n seed".split()
    assert set(FEW) <= set(table.model) and {"customer", "time", "category"} == set(table.split)
    assert {"log_loss", "hit_rate", "mcfadden_r2", "calibration_slope", "calibration_error"} <= set(table.metric)
    assert not table.duplicated(["market", "category", "split", "model", "metric"]).any()
    loss = table[table.metric == "log_loss"]
    assert (pd.to_numeric(loss.low) <= pd.to_numeric(loss.value)).all() and (pd.to_numeric(loss.value) <= pd.to_numeric(loss.high)).all()


def test_run_prints_its_summary(result):
    said = json.loads(result[1])
    assert said == json.loads((result[0]/"summary.json").read_text())
    assert said["failed"] == [] and [m["market"] for m in said["markets"]] == ["tiny"] and said["markets"][0]["customers"] <= 50


def test_run_is_quiet_when_asked(result): assert not result[2].strip()


def test_report_needs_nothing_else(result):
    page = (result[0]/"report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page) and "<script" not in page and "@import" not in page and "url(" not in page
    assert page.count("<svg") == page.count("</svg>") >= 3
    for name in FEW: assert name in page
    links = re.findall(r"href=['\"]#([^'\"]+)", page)
    assert all(re.search(rf"id=['\"]{re.escape(l)}['\"]", page) for l in links)


def test_nothing_half_written_is_left(result):
    assert not [p for p in result[0].rglob("*") if p.name.endswith(".part") or p.name.startswith(".")]


def test_second_run_reuses_the_first(market, result, monkeypatch, capsys):
    from malles import contenders
    monkeypatch.setattr(contenders, "contenders_for", only(FEW))
    before = {p.name: p.stat().st_mtime_ns for p in (result[0]/"parts").iterdir()}
    held = rows(result[0])
    assert main(["run", "--market", str(market), "--out", str(result[0]), "--quiet"]) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (result[0]/"parts").iterdir()} == before
    pd.testing.assert_frame_equal(rows(result[0]), held)


def test_another_seed_is_another_run(market, result, tmp_path, monkeypatch):
    from malles import contenders
    monkeypatch.setattr(contenders, "contenders_for", only(("popularity",)))
    assert main(["run", "--market", str(market), "--out", str(tmp_path), "--seed", "1", "--quiet"]) == 0
    mine, other = (t[(t.model == "popularity") & (t.split == "customer") & (t.category == "all") & (t.metric == "log_loss")].iloc[0] for t in (rows(tmp_path), rows(result[0])))
    assert mine.seed == 1 and mine.value != other.value  # another fold of the customers


def test_stopped_in_the_middle_and_continued(market, result, tmp_path, monkeypatch):
    "Ctrl-C after some jobs: code 130, whole parts only; the same command ends in the same rows."
    arguments = ["run", "--market", market, "--out", tmp_path, "--quiet"]
    run = start(FEW, *arguments)
    until = time.perf_counter() + 90
    while len(list(tmp_path.glob("parts/*.npz"))) < 3 and run.poll() is None and time.perf_counter() < until: time.sleep(.02)
    if run.poll() is None: os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole group, workers included
    try: said, errors = run.communicate(timeout=60)
    finally:
        if run.poll() is None: os.killpg(run.pid, signal.SIGKILL)  # it stands still and would outlive the test
    assert 3 <= len(list(tmp_path.glob("parts/*.npz"))) < len(list(result[0].glob("parts/*.npz"))), errors
    assert run.returncode == 130, (run.returncode, errors)
    assert errors == "malles: stopped; the same command continues where it was\n"
    for p in tmp_path.glob("parts/*.npz"):
        with np.load(p) as f: assert len(f.files)
    from malles import contenders
    monkeypatch.setattr(contenders, "contenders_for", only(FEW))
    assert main([str(a) for a in arguments]) == 0
    pd.testing.assert_frame_equal(rows(tmp_path), rows(result[0]))


def test_a_model_that_fails_ends_in_code_1(market, tmp_path, monkeypatch, capsys):
    from malles import contenders
    monkeypatch.setattr(contenders, "contenders_for", only(("popularity",), [failing()]))
    assert main(["run", "--market", str(market), "--out", str(tmp_path), "--quiet"]) == 1
    summary = json.loads((tmp_path/"summary.json").read_text())
    assert {f["model"] for f in summary["failed"]} == {"stubborn"} and "no opinion" in summary["failed"][0]["why"]
    assert "Not every model finished" in (tmp_path/"report.html").read_text()
    assert set(rows(tmp_path).model) >= {"popularity"}


class Stubborn:
    name = "stubborn"
    def fit(self, occasions): raise ValueError("no opinion")


def failing():
    from malles.bench import Contender
    return Contender("stubborn", Stubborn)


# ---- a foreign log

def test_foreign_log_from_check_to_report(market, tmp_path, monkeypatch, capsys):
    from malles import contenders
    monkeypatch.setattr(contenders, "contenders_for", only(("popularity", "dirichlet")))
    lines = pd.read_parquet(market/"transactions.parquet")
    log = pd.DataFrame(dict(Datum=lines.time.dt.strftime("%d.%m.%Y"), Kunde=lines.customer_id, Artikel=lines.product_id, Warengruppe=lines.category, Menge=lines.quantity,
        Betrag=(lines.quantity * lines.unit_price).map(lambda v: f"{v:.2f}".replace(".", ","))))
    log.loc[5, "Betrag"], log.loc[9, "Datum"] = "Storno", "31.02.2025"
    log.to_csv(tmp_path/"kasse.csv", sep=";", index=False)
    assert main(["check", str(tmp_path/"kasse.csv"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["set_aside"] == 2 and "line total" in report["reading"]
    assert main(["run", "--market", str(tmp_path/"kasse.csv"), "--out", str(tmp_path/"out"), "--quiet"]) == 0
    aside = pd.read_csv(tmp_path/"out/set_aside.csv")
    assert len(aside) == 2 and {"Storno", "31.02.2025"} == set(aside.value) and set(aside.market) == {"kasse"}
    assert "set_aside.csv" in (tmp_path/"out/report.html").read_text()


def test_log_without_customers_is_told_what_to_do(market, tmp_path, capsys):
    pd.read_parquet(market/"transactions.parquet").drop(columns=["customer_id", "basket_id"]).to_csv(tmp_path/"nobody.csv", index=False)
    assert "store_week_shares" in refused(capsys, "run", "--market", tmp_path/"nobody.csv", "--out", tmp_path/"out")


def test_whatif_writes_a_plan(tmp_path, capsys):
    "A lower price sells more and takes from named rivals; the category sells what it sold lately."
    out = tmp_path/"new"/"plan.csv"
    assert main(["whatif", "--market", "data_samples/corner", "--price", "YOG01=0.80", "--weeks", "8", "--out", str(out)]) == 0
    told = capsys.readouterr()
    whole = pd.read_csv(out)
    plan = whole[whole.place == "all"].set_index("product")
    row = plan.loc["YOG01"]
    assert set(plan.category) == {"yoghurt"} and row["price tested"] == .8 and row["units low"] > 0 and row["units rises"] == 1 and 0 <= row["margin rises"] <= 1
    assert row["takes most from"] in plan.index and abs(plan["units change"].sum()) < 1e-6 * plan["units now"].sum(), "the volume of the category is held"
    log = pd.read_parquet("data_samples/corner/transactions.parquet") if Path("data_samples/corner/transactions.parquet").exists() else pd.read_csv("data_samples/corner/transactions.csv", parse_dates=["time"])
    lately = log[(log.time > log.time.max() - pd.Timedelta(weeks=8)) & log.product_id.astype(str).str.startswith("YOG")].quantity.sum()
    assert abs(plan["units now"].sum() - lately) < 1e-3 * lately and "volume is held" in told.err
    here = whole[(whole.place != "all") & (whole["product"] == "YOG01")]
    assert len(here) == 2 and abs(here["units now"].sum() / row["units now"] - 1) < .05, "the stores add up to about the whole"
    assert row["past changes"] == 5 and 0 < row["past error"] < 100


def test_whatif_of_nano_as_a_workbook_that_replaces_an_old_one(tmp_path, capsys):
    out = tmp_path/"plan.xlsx"
    out.write_bytes(b"an old plan")
    assert main(["simulate", "--out", str(tmp_path/"shop"), "--customers", "30", "--categories", "1", "--trade", "0", "--weeks", "26", "--seed", "3"]) == 0
    capsys.readouterr()
    product = pd.read_parquet(tmp_path/"shop"/"products.parquet").product_id.iloc[0]
    assert main(["whatif", "--market", str(tmp_path/"shop"), "--model", "nano", "--price", f"{product}=0.5", "--out", str(out), "--json"]) == 0
    book, told = pd.read_excel(out, sheet_name=None), json.loads(capsys.readouterr().out)
    row = book["plan"][book["plan"]["product"] == product].iloc[0]
    assert row["share tested"] > row["share now"] and row["inside"] < 1 and len(book["notes"]) >= 3 and told[0].keys() == set(book["plan"])
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["plan.xlsx"], "nothing half written is left"


def test_backtest_says_what_would_have_been_foreseen(tmp_path, capsys):
    out = tmp_path/"changes.csv"
    assert main(["backtest", "--market", "data_samples/corner", "--out", str(out), "--json"]) == 0
    told, changes = {r["changes of"]: r for r in json.loads(capsys.readouterr().out)}, pd.read_csv(out)
    assert told["all"]["changes"] == len(changes) == sum(r["changes"] for k, r in told.items() if k != "all")
    assert told["all"]["error"] < told["all"]["no_change"] < told["all"]["same_as_last_time"] and .7 < told["all"]["inside"] < .95
    assert ((changes.price / changes.price_before - 1).abs() >= .05 - 1e-6).all()
    for arguments, says in ((["--least", "0"], "between 0 and 1"), (["--out", str(tmp_path)], ".csv or .xlsx"), (["--market", "nowhere"], "nowhere")):
        assert main(["backtest", "--market", "data_samples/corner", *arguments]) == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("arguments, says", [(["--price", "YOG1=1"], "did you mean"), (["--price", "YOG01"], "expected a product"), (["--price", "YOG01=nan"], "positive number"), (["--price", "YOG01=1", "--price", "YOG01=2"], "already"), (["--price", "YOG01=1", "--out", "plan.txt"], ".csv")])
def test_whatif_refuses(tmp_path, capsys, arguments, says):
    assert main(["whatif", "--market", "data_samples/corner", "--out", str(tmp_path/"plan.csv"), *arguments]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_discuss_saves_what_was_said(tmp_path, capsys):
    from malles.transcripts import load
    out = tmp_path/"talk.jsonl"
    assert main(["discuss", "--market", "data_samples/corner", "--out", str(out), "--decisions", "25", "--json"]) == 0
    told, talk = json.loads(capsys.readouterr().out), load(out)
    assert told["decisions"] == len(talk) == 25 and set(told["models"]) == {"nano-discussion", "nano", "popularity"} and 0 < told["tokens"] <= 1024
    assert all(0 < v["log_loss"] < 5 and 0 <= v["hit_rate"] <= 1 for v in told["models"].values())
    for wrong, says in ((["--helpers", "gossip"], "gossip"), (["--out", str(tmp_path)], "is a folder"), (["--out", str(tmp_path/"no"/"talk.jsonl")], "there is no folder"), (["--market", str(tmp_path/"nowhere")], "nowhere")):
        assert main(["discuss", "--market", "data_samples/corner", "--out", str(out), *wrong]) == 2 and says in capsys.readouterr().err


def test_bargain_ends_where_its_module_does(capsys):
    from malles.bargaining import Dealer, Manufacturer, bargain, solutions
    firms = "bargain --sales 90 100 120 80 95 105 --resale 9 --cost 4 --capacity 180 --outside 20 -5 --hardness .3 1 --turns 12".split()
    assert main([*firms, "--json"]) == 0
    told, deal = json.loads(capsys.readouterr().out), bargain(d := Dealer((90., 100, 120, 80, 95, 105), 9., outside=20.), m := Manufacturer(4., 180., outside=-5.), 12, (.3, 1.))
    assert told["agreed"] and told["offer"] == str(deal.offer) and told["dealer"] == deal.dealer and len(told["bids"]) == len(deal.bids) and told["solutions"]["Nash"]["dealer"] == solutions(d, m)["Nash"][0]
    assert main(firms) == 0 and "agreed" in capsys.readouterr().out
    for wrong, says in ((["--resale", "3"], "does not pay"), (["--hardness", "0", "1"], "above 0"), (["--capacity", "inf"], "must be a number"), (["--sales", "-1"], "at least 0"), (["--outside", "9000", "0"], "would lose")):
        assert main([*firms, *wrong]) == 2 and says in capsys.readouterr().err, wrong


def test_no_name_is_a_formula_and_short_logs_are_not_stretched():
    from malles.plans import as_text, sold_lately
    table = pd.DataFrame({"category": ["@x", "tea"], "change": [-1., 2.], "takes most from": ["=1+1", ""]}, index=["+2", "mild"])
    safe = as_text(table)
    assert list(safe.index) == ["'+2", "mild"] and safe["takes most from"].tolist() == ["'=1+1", ""] and safe.category.iloc[0] == "'@x" and safe.change.tolist() == [-1., 2.]
    class Market:
        products = pd.DataFrame(dict(product_id=["mild"], category=["tea"]))
        transactions = pd.DataFrame(dict(time=pd.date_range("2026-01-01", periods=14), product_id="mild", quantity=1.))
    assert abs(sold_lately(Market, 4)["tea"] - 28) < 1e-9
