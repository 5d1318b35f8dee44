"The parts of a rule: no text is evaluated, names stay data, units are checked, exports say the same, an engine in a child is talked to, a rule that chooses hands back."
import json, subprocess, sys, time
import numpy as np, pandas as pd, pytest
import sympy as sp

from malles import engines, rules
from malles.engines import OPERATORS, families, outside, pysr_command
from malles.formulas import refit, shortened, value
from malles.rulebook import RuleBook
from malles.rules import search_rules
from malles.spelling import formula, latex, python_source, spreadsheet
from malles.trials import open_trial, tried
from malles.units import add_up, unit_of, unit_text

X, Y = sp.symbols("x y", positive=True)
SYMBOLS = {X: "list price", Y: "size"}


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "size.__class__", "(lambda: 1)()", "size if size else 1", "[size]", "9**9**9", "9.0**9.0**9.0**9.0", "1/0", "log(-1.0)", "size()", "max()", "log(size, 2)", "f'{size}'", "size; size", "cost", "_0_",
    "size := 2", "(" * 300 + "size" + ")" * 300, "1" * 600, "1e999", "True", "size and 1", "exp(base=size)"])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ValueError): formula(text, SYMBOLS)


def test_a_large_power_is_not_written_out():
    form = formula("(size + `list price` + 1)**99", SYMBOLS)
    assert form.is_Pow and form.exp.is_Float


@pytest.mark.parametrize("text", ["40.0 * `list price`**-1.7 * max(0, size - 2.0)", "sqrt(size) / `list price` - 3", "-2.5**2 + log(size / `list price`)", "exp(-0.1 * size) - -size", "max(size, `list price`, 2.0) ^ 2"])
def test_python_and_spreadsheet_say_what_the_rule_says(text, tmp_path):
    form, columns = formula(text, SYMBOLS), {X: np.array([1.5, 3.]), Y: np.array([2.5, 8.])}
    file = tmp_path / "rule.py"
    file.write_text(python_source(form, SYMBOLS) + "import json, sys\nprint(json.dumps(np.broadcast_to(rule(json.load(sys.stdin)), 2).tolist()))\n")
    said = json.loads(subprocess.run([sys.executable, "-I", file], input=json.dumps({"list price": [1.5, 3], "size": [2.5, 8]}), capture_output=True, text=True, check=True).stdout)
    assert np.allclose(said, value(form, columns))
    again = spreadsheet(form, {X: "A2", Y: "B2"})[1:].replace("^", "**").replace("LN(", "log(").replace("EXP(", "exp(").replace("MAX(", "max(")
    cells = formula(again, {X: "A2", Y: "B2"})
    assert np.allclose(value(cells, columns), value(form, columns))


def test_names_never_become_code():
    evil = {X: '"]); __import__("os").system("touch pwned") #', Y: '=HYPERLINK("x")\n\\input{y}$'}
    compile(python_source(X * Y, evil), "rule", "exec")
    source = python_source(X * Y, evil)
    assert all(ascii(name) in source for name in evil.values()) and source.count("\n") == 6
    assert spreadsheet(X * Y, {X: "A2", Y: "B2"}) == "=(A2*B2)"
    assert not set("\\$\n") & set(latex(X, {X: evil[Y]}).removeprefix(r"\text"))
    with pytest.raises(ValueError, match="cells"): spreadsheet(X, {X: "A2+1"})
    with pytest.raises(ValueError, match="plain name"): python_source(X, SYMBOLS, "rule(); x")


def test_units():
    money, pieces = unit_of("money/pieces"), unit_of("pieces")
    units = {X: money, Y: pieces}
    assert unit_text(unit_of("pieces * weeks^2 / money")) == "pieces*weeks^2/money"
    for bad in ("", "money//pieces", "money+pieces", "2 money"):
        with pytest.raises(ValueError): unit_of(bad)
    assert add_up(2.5 * Y - 3. * X, units, pieces) and not add_up(Y - X, units, pieces)
    assert not add_up(Y**X, units, pieces) and not add_up(Y**2, units, pieces) and not add_up(sp.Max(Y, X), units, pieces)
    assert add_up(sp.Max(0, Y - 2.), units, pieces) and not add_up(Y * sp.exp(X), units, pieces)


def small(seed=0, n=90):
    rng = np.random.default_rng(seed)
    t = pd.DataFrame(dict(price=rng.uniform(1, 5, n), size=rng.uniform(1, 9, n)))
    return t.assign(quantity=20 / t.price * np.exp(.03 * rng.normal(size=n)))


STAND_IN = """
import json, sys
job = json.load(sys.stdin)
assert len(job["X"]) == len(job["y"]) and set(job["operators"]) <= {"add", "sub", "mul", "div", "pow", "sqrt", "exp", "log", "max"}
print("Compiling ...")
print(json.dumps(dict(formulas=["1.0 / x0", "2.0 * x1 + 0.5"])))
"""


def test_an_engine_in_a_child_process(monkeypatch):
    monkeypatch.setattr(rules, "pysr_command", lambda: [sys.executable, "-c", STAND_IN])
    book = search_rules(small(), "quantity", engine="pysr")
    assert book.rule.free_symbols == {s for s, c in book.trial.symbols.items() if c == "price"} and set(book.evidence.source) >= {"pysr"}
    terms, table = [X, Y], small()
    ask = lambda code: outside([sys.executable, "-c", code], terms, table[["price", "size"]].to_numpy(), table.quantity.to_numpy(), OPERATORS, 0, 1)
    with pytest.raises(RuntimeError, match="ended with 3: no licence"): ask("import sys; print('no licence', file=sys.stderr); sys.exit(3)")
    with pytest.raises(RuntimeError, match="must answer"): ask("print('hello')")
    with pytest.raises(ValueError): [f() for f in ask("import json; print(json.dumps(dict(formulas=['__import__(\"os\")'])))")]


def test_without_pysr_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pysr"): pysr_command()
    with pytest.raises(ValueError, match="engine is"): search_rules(small(), "quantity", engine="julia")
    with pytest.raises(ValueError, match="operators are"): families(["add", "sin"])


def test_the_clock_and_an_interrupt_end_the_search(monkeypatch):
    hurried = search_rules(small(), "quantity", seconds=0)
    assert not hurried.complete and hurried.front.chosen.sum() == 1
    runs = []
    def interrupted(*job):
        if runs: raise KeyboardInterrupt
        runs.append(job)
        return [lambda: 3.5 / job[0][0]]
    monkeypatch.setattr(rules, "operon", interrupted)
    book = search_rules(small(), "quantity")
    assert not book.complete and len(runs) == 1


def test_only_admitted_operators_and_units_come_out():
    book = search_rules(small(), "quantity", units=dict(quantity="pieces", price="money/pieces", size="grams"), operators=("add", "mul", "div"))
    assert not any(f.atoms(sp.Function) or f.has(sp.Max) for f in book.front.form)
    assert all(book.trial.allowed(f) for f in book.front.form) and (book.coefficients.unit != "").any()
    with pytest.raises(ValueError, match="units are told"): search_rules(small(), "quantity", units=dict(cost="money"))


def test_a_million_rows_are_opened_and_measured():
    rng = np.random.default_rng(0)
    t = pd.DataFrame(dict(price=rng.uniform(1, 5, 10**6))).assign(quantity=lambda t: 3 / t.price)
    trial = open_trial(t, "quantity")
    assert len(trial.rows) == 5000 and trial.held.sum() == 333_333
    from malles.trials import tried
    assert tried(trial, trial.refit(2. / next(iter(trial.symbols))).form, "by hand").squared < 1e-12


def test_a_proposal_is_tried_and_its_evidence_kept():
    book = search_rules(small(), "quantity", ["price"], operators=("add", "mul"))
    better = book.consider("10.0 / price", source="a model")
    assert better.evidence.verdict.iloc[-1] == "chosen" and better.evidence.source.iloc[-1] == "a model" and len(book.evidence) + 1 == len(better.evidence)
    worse = better.consider("10.0 / price**2 + 1.0 + 0.001 * price", source="a model")
    assert worse.evidence.verdict.iloc[-1] == "dropped" and "no longer" in worse.evidence.reason.iloc[-1] and worse.rule == better.rule
    with pytest.raises(ValueError, match="no column"): book.consider("10.0 / cost", source="a model")


@pytest.mark.parametrize("exponent, half", [(.5, True), (.53, False)])
def test_a_half_stands_only_where_the_interval_holds_it(exponent, half):
    rng = np.random.default_rng(3)
    x = {X: rng.uniform(1, 50, 400)}
    y = 2 * x[X]**exponent * np.exp(.03 * rng.normal(size=400))
    for start in (2. * X**.51, 2. * sp.sqrt(X)):                          # fitted, and a root that the search brought
        form = shortened(refit(start, x, y), x, y).form
        power = next(p.exp for p in form.atoms(sp.Pow))
        assert (power == sp.Rational(1, 2)) == half and abs(float(power) - exponent) < .01, form


def test_intervals_of_a_number_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(300):
        rng, groups = np.random.default_rng(seed), np.repeat(np.arange(10), 6)
        x = {X: rng.uniform(1, 5, 60)}
        fit = refit(1.5 * X, x, 2 * x[X] + rng.normal(size=10)[groups] * x[X] * .3 + .2 * rng.normal(size=60), groups)
        held += abs(next(iter(fit.numbers.values())) - 2) <= fit.reach[0]
    assert .96 < held / 300, "few customers, whose errors go together"


def test_a_search_does_not_depend_on_the_clock(monkeypatch):
    quick = search_rules(small(), "quantity", ["price"], operators=("add", "mul"))
    slow = rules.operon
    monkeypatch.setattr(rules, "operon", lambda *job: (time.sleep(.5), slow(*job))[1])
    again = search_rules(small(), "quantity", ["price"], operators=("add", "mul"))
    assert again.complete and again.front.equals(quick.front)


def test_a_longer_rule_that_gains_next_to_nothing_is_dropped_with_a_reason():
    book = search_rules(small(), "quantity", ["price"], operators=("add", "mul")).consider("10.0 / price", source="a model")
    for power in (-1.000000001, -.999999999):                                 # one of them errs less, by a hair
        form = book.rule * next(iter(book.rule.free_symbols))**sp.Float(power + 1)
        late = RuleBook(book.trial, (*book.tried, tried(book.trial, form, "late")), True)
        assert late.evidence.verdict.iloc[-1] == "dropped" and "no longer" in late.evidence.reason.iloc[-1]
