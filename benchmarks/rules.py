"""Are planted laws found? Five laws of economics with noise, 300 rows each: is the right form, whatever its constants, on the front of `search_rules`, and is it the chosen rule?

    python benchmarks/rules.py [--noise .01 .05 .2] [--seeds 0 1] [--gplearn PYTHON] [--results FILE]
    python benchmarks/rules.py --noise --markets DIR [DIR ...] --model DIR [--folds 0] [--results FILE]

A rule has the form of a law if some constants make the law agree with it to a millionth of its spread on the rows of the table. The last line is JSON.
A rule that chooses is distilled from what one post-trained model says of its own training customers (at most 1,500 of a market in all), and both are judged on the fold that this model has not seen. Its speed is that of formula and softmax
when what the rule reads is given as columns; beside it, with these columns (tastes, shares, tables) computed from the occasions.
"""
import argparse, ast, json, subprocess, time
from pathlib import Path
import numpy as np, pandas as pd, sympy as sp
from scipy.optimize import least_squares
from malles.elicitation import LMChoice
from malles.evaluation import trial_markets
from malles.folders import replace_file
from malles.lm import LM
from malles.market import Market, fold_of
from malles.occasions import mean_field, with_popularity
from malles.rulechoice import RuleChoice
from malles.formulas import shortened, value, written
from malles.rules import search_rules
from malles.trials import open_trial

LAWS = {  # constants, table -> what the law says; the planted constants
    "constant elasticity": (lambda c, t: c[0] * t.price**c[1], (40., -1.7)),
    "economic order quantity": (lambda c, t: c[0] * np.sqrt(t.demand * t.fixed / t.holding), (np.sqrt(2),)),
    "newsvendor, exponential demand": (lambda c, t: c[0] * t["mean"] * np.log(abs(c[1]) * t.price / t.cost), (1., 1.)),
    "discount threshold": (lambda c, t: c[0] * np.maximum(0, t.depth - c[1]), (3., .15)),
    "logit utility with interaction": (lambda c, t: c[0] + c[1] * t.price + c[2] * t.promotion * t.price, (.5, -1.2, .8)),
}
ADDITIVE = ("discount threshold", "logit utility with interaction")     # their noise is added, of the others' a factor
RANGES = {"constant elasticity": dict(price=(1, 5), age=(20, 70)), "economic order quantity": dict(demand=(50, 500), fixed=(20, 80), holding=(.5, 4)), "newsvendor, exponential demand": dict(mean=(5, 50), price=(3, 10), cost=(.5, 2.5)),
    "discount threshold": dict(depth=(0, .5), age=(20, 70)), "logit utility with interaction": dict(price=(0, 3), promotion=(0, 2))}


def planted(name, noise, seed, rows=300):
    rng, (law, constants) = np.random.default_rng(seed), LAWS[name]
    t = pd.DataFrame({c: rng.uniform(*ends, rows) for c, ends in RANGES[name].items()})
    if "promotion" in t: t["promotion"] = np.floor(t.promotion)             # on or off
    y = np.asarray(law(constants, t))
    return t.assign(y=y + noise * y.std() * rng.normal(size=rows) if name in ADDITIVE else y * np.exp(noise * rng.normal(size=rows)))


def has_form(said, name, table):  # said: (rows,) of a rule
    law, constants = LAWS[name]
    spread = max(np.std(said), 1e-12)
    fit = least_squares(lambda c: (np.asarray(law(c, table)) - said) / spread, constants, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    return bool(np.abs(fit.fun).max() < 1e-6)


GPLEARN = """
import json, sys, numpy as np
from gplearn.genetic import SymbolicRegressor
job = json.load(sys.stdin)
model = SymbolicRegressor(population_size=1000, generations=20, function_set=("add", "sub", "mul", "div", "log", "sqrt", "max"), parsimony_coefficient=.001, max_samples=.9, random_state=job["seed"], n_jobs=1).fit(np.array(job["X"]), np.array(job["y"]))
print(json.dumps(dict(program=str(model._program))))
"""


def gplearn_form(python, table, seed):
    "What gplearn finds, in an interpreter that has it, as a formula of the columns; its numbers are then fitted and its form shortened like ours."
    trial = open_trial(table, "y", seed=seed)
    job = dict(X=np.column_stack(list(trial.seen.values())).tolist(), y=trial.y[trial.rows].tolist(), seed=seed)
    program = json.loads(subprocess.run([python, "-c", GPLEARN], input=json.dumps(job), capture_output=True, text=True, check=True).stdout.splitlines()[-1])["program"]
    act = dict(add=sp.Add, mul=sp.Mul, sub=lambda a, b: a - b, div=lambda a, b: a / b, log=sp.log, sqrt=sp.sqrt, max=sp.Max)
    x = list(trial.symbols)
    def read(e):
        if isinstance(e, ast.Call): return act[e.func.id](*map(read, e.args))
        if isinstance(e, ast.Name): return x[int(e.id[1:])]
        return -read(e.operand) if isinstance(e, ast.UnaryOp) else sp.Float(e.value)
    form = written(lambda: read(ast.parse(program, mode="eval").body))
    return trial, None if form is None else shortened(trial.refit(form), trial.seen, trial.y[trial.rows]).form


def one(name, noise, seed, gplearn):
    table = planted(name, noise, seed)
    start, cpu = time.perf_counter(), time.process_time()
    book = search_rules(table, "y", seed=seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    said = lambda form, trial: np.broadcast_to(value(form, trial.columns), len(table)).astype(float)
    right = np.array([has_form(said(f, book.trial), name, table) for f in book.front.form])
    row = dict(law=name, noise=noise, seed=seed, on_front=bool(right.any()), chosen=bool(right[book.front.chosen.to_numpy()].any()), seconds=round(seconds, 1), cpu_seconds=round(cpu, 1), complete=book.complete, rule=str(book.rule))
    if gplearn:
        start = time.perf_counter()
        trial, form = gplearn_form(gplearn, table, seed)
        row |= dict(gplearn=form is not None and bool(np.isfinite(said(form, trial)).all()) and has_form(said(form, trial), name, table), gplearn_seconds=round(time.perf_counter() - start, 1), gplearn_rule=str(form))
    return row


def lessons(folder, occasions):
    "What a model says of customers who taught it. A lesson for a rule and never a score, so its card may be set aside."
    lm = LM.from_pretrained(folder)
    lm.card = {**lm.card, "folds": {}}
    return LMChoice(lm).fit(occasions).predict(occasions).choice


def distilled(path, model, fold):
    "A rule distilled from the model of one fold, beside this model on the customers of that fold."
    trial = trial_markets(Market.read(path), customers=1500)[0]
    occasions = trial.occasions
    out = fold_of(trial.source, occasions.customers)[occasions.customer] == fold
    look = with_popularity(occasions, mean_field(occasions[~out]), counted=occasions[~out])
    taught, asked, folder = look[~out], look[out], f"{model}/fold{fold}"
    teacher = LMChoice(LM.from_pretrained(folder)).fit(taught)
    student = RuleChoice(teacher).distil(taught, lessons(folder, taught))
    seconds = lambda act: (time.perf_counter(), act(), time.perf_counter())
    start, told, end = seconds(lambda: teacher.predict(asked).choice); slow = len(asked) / (end - start)
    start, columns, end = seconds(lambda: student.columns(asked)); computed = end - start
    many, mask = {c: np.tile(x, (20, 1)) for c, x in columns.items()}, np.tile(asked.mask, (20, 1))
    start, _, end = seconds(lambda: student.decide(many, mask)); each = (end - start) / len(mask)
    alone = student.decide(columns, asked.mask)
    kept, same, n = ~student.doubts(alone), alone.argmax(1) == told.argmax(1), np.arange(len(asked))
    loss = lambda p, where: float(-np.log(np.maximum(p[n, asked.chosen], 1e-12))[where].mean())
    return dict(market=trial.name, fold=fold, taught=len(taught), decisions=len(asked), rule=str(student.rule), source=student.book.front.source.iloc[-1], nodes=int(student.book.front.nodes.iloc[-1]), complete=student.book.complete, expected=student.fidelity, raw_agreement=float(same.mean()), agreement=float(same[kept].mean()),
        handed_back=float(1 - kept.mean()), kept_loss_rule=loss(alone, kept), kept_loss_teacher=loss(told, kept), loss_rule=loss(alone, n >= 0), loss_teacher=loss(told, n >= 0), teacher_per_second=slow, rule_per_second=1 / each, rule_per_second_with_columns=1 / (each + computed / len(asked)))


def main(a):
    out = json.loads(a.results.read_text()) if a.results and a.results.exists() else {}   # parts that this run leaves out stay
    if a.noise: out |= planted_laws(a)
    if a.markets:
        rows = {(r["market"], r["fold"]): r for r in out.get("distilled", [])}
        for path in a.markets:
            for fold in a.folds:
                row = distilled(path, a.model, fold)
                rows[row["market"], fold] = row; print(row, flush=True)
        rows = [rows[k] for k in sorted(rows)]
        least = lambda key: min(r[key] / r["teacher_per_second"] for r in rows)
        out |= dict(distilled=rows, agreement=min(r["agreement"] for r in rows), most_handed_back=max(r["handed_back"] for r in rows), worst_kept_loss_ratio=max(r["kept_loss_rule"] / r["kept_loss_teacher"] for r in rows), rule_vs_model_speed=least("rule_per_second"), rule_vs_model_speed_with_columns=least("rule_per_second_with_columns"))
    if a.results: replace_file(a.results, lambda p: Path(p).write_text(json.dumps(out, indent=1) + "\n"))
    print(json.dumps({k: v for k, v in out.items() if k not in ("rows", "distilled")}))


def planted_laws(a):
    rows, by_noise = [], {}
    for noise in a.noise:
        for name in LAWS:
            for seed in a.seeds:
                rows.append(one(name, noise, seed, a.gplearn))
                print(rows[-1], flush=True)
        some = [r for r in rows if r["noise"] == noise]
        by_noise[str(noise)] = dict(recovered=sum(r["on_front"] for r in some), chosen=sum(r["chosen"] for r in some), of=len(some), slowest_seconds=max(r["seconds"] for r in some), slowest_cpu_seconds=max(r["cpu_seconds"] for r in some))
        if a.gplearn: by_noise[str(noise)] |= dict(gplearn=sum(r["gplearn"] for r in some), gplearn_slowest_seconds=max(r["gplearn_seconds"] for r in some))
    out = dict(rows=rows, by_noise=by_noise)
    if len(a.seeds) == 2 and .05 in a.noise: out["recovered_of_10"] = by_noise["0.05"]["recovered"]
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--noise", nargs="*", type=float, default=[.05]); p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    p.add_argument("--gplearn", help="an interpreter that has gplearn, to run beside"); p.add_argument("--markets", nargs="*", help="market folders, for a rule distilled from --model"); p.add_argument("--folds", nargs="+", type=int, default=[0], help="each with its model, judged on it"); p.add_argument("--model", help="folder of malles posttrain")
    p.add_argument("--results", type=Path)
    main(p.parse_args())
