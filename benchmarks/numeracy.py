"""Numeracy: does a model order, compare and scale prices, and is its elasticity the true one; before and after post-training.

    python benchmarks/numeracy.py [--model DIR] [--markets 16] [--results benchmarks/results/numeracy.json]

Simulated markets that no model has read ("elsewhere"), and the held-out customers of three simulated towns that nano is post-trained on here ("at home").
--model DIR is a folder of `malles posttrain` (fold0, fold1, ...), made on real markets, say: its first model sits the same examination elsewhere. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("HF_HUB_OFFLINE", "1")
import argparse, json, tempfile, time
from pathlib import Path
import pandas as pd
import torch
from malles.elicitation import LMChoice
from malles.folders import replace_file
from malles.lessons import PostRecipe
from malles.lm import LM
from malles.logits import Logit
from malles.numeracy import Simulator, examination, numeracy, progress, town
from malles.posttraining import PostTrained, posttrain_fold
from malles.predictions import Uniform
from malles.tastes import RunningTastes

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", type=Path, help="a folder of malles posttrain"); a.add_argument("--markets", type=int, default=16); a.add_argument("--results", type=Path, default=Path("benchmarks/results/numeracy.json"))
    a = a.parse_args()
    torch.set_num_threads(1); start = time.process_time()
    towns = [town(1000 + k, name=f"town{k}") for k in range(3)]
    with tempfile.TemporaryDirectory() as folder: taught = LMChoice(LM.from_pretrained(str(posttrain_fold(towns, 0, f"{folder}/fold0", PostRecipe(epochs=3), progress=False))))
    taught.name = "nano+post"
    models = [Simulator(), Uniform(), Logit(), RunningTastes(), LMChoice.nano(), taught]
    if a.model:
        folder = PostTrained(a.model)
        models.append(folder.model(min(folder.cards)))                                # these markets are strangers to all its models
        models[-1].name = f"{folder.name} on {a.model.name}"
    places = {"elsewhere": [examination(town(k)) for k in range(a.markets)], "at home": [examination(t) for t in towns]}
    found = {where: {m.name: numeracy(m, markets) for m in (models if where == "elsewhere" else models[:6])} for where, markets in places.items()}
    figures = pd.concat({where: pd.DataFrame({k: m.figures for k, m in marks.items()}).T for where, marks in found.items()})
    changes = pd.concat({f"{k}, {where}": progress(marks["nano"], marks[k], "market" if where == "elsewhere" else "customer") for where, marks in found.items() for k in marks if k.startswith("nano+post")})
    curves = pd.concat({where: pd.concat(m.curve for m in marks.values()) for where, marks in found.items()}, names=["where"]).reset_index("where")
    print(figures.round(3).T.to_string(), curves.pivot_table(index=["where", "model"], columns="gap", values="cheaper", sort=False).round(3).to_string(), changes.round(3).to_string(), sep="\n\n")
    known = lambda row: {k: round(float(v), 4) for k, v in row.items() if v == v}
    rows = [dict(where=where, model=name, **known(row)) for (where, name), row in figures.iterrows()]
    summary = dict(cpu_seconds=round(time.process_time() - start), asked={where: len(marks["nano"].answers) for where, marks in found.items()}, worse={k: t.droplevel(0).index[t.worse].tolist() for k, t in changes.groupby(level=0, sort=False)},
        **{f"{name}, {where}": {k: round(float(figures.loc[(where, name), k]), 3) for k in ("order 1%", "level", "units", "correlation", "slope", "ratio")} for where, name in figures.index if name.startswith("nano")})
    replace_file(a.results, lambda p: Path(p).write_text(json.dumps(dict(rows=rows, curves=curves.round(4).to_dict("records"), changes=[dict(what=what, score=score, **known(t)) for (what, score), t in changes.iterrows()], **summary), indent=1) + "\n"))
    print(json.dumps(summary))

if __name__ == "__main__": main()
