"What is kept is whole, belongs to its question, and survives any kill; a run in a folder is one run."
import json, os, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from malles.cached import Cached, Cost, estimate, total
from malles.covariates import ready
from malles.digests import digest
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.occasions import MeanField, mean_field
from malles.opponents import opponents
from malles.predictions import ChoiceModel, Dirichlet, Predictions, Uniform
from malles.runs import Run, Store
from malles.shoppers import sample_world, simulate, simulate_market

ROOT = Path(__file__).parent.parent
same = lambda a, b: all((getattr(a, k) is None and getattr(b, k) is None) or np.array_equal(getattr(a, k), getattr(b, k)) for k in ("choice", "quantity", "support"))


def shop(alternatives=4, households=40, occasions=6):
    world = replace(sample_world(np.random.default_rng(3), alternatives), priced=True, marked=True)
    return ready(simulate(world, households, occasions, 4)[0])


@pytest.fixture(scope="module")
def tea(): return shop()


# --- what is hashed

def test_every_part_of_a_question_changes_its_hash(tea):
    habit, mu = Dirichlet().fit(tea), mean_field(tea)
    price = tea.log.alternative["price"].copy()
    price[7] = np.nextafter(price[7], 9)
    columns = [tea.with_columns(alternative=dict(price=price)), tea.with_columns(dict(occasion_id=tea.log.occasion["occasion_id"] + 1)), tea.replace(price=tea.price), tea[::-1], tea[:-1], tea.without("price")]
    products = tea.products.assign(product_id=tea.products.product_id + "x")
    columns.append(type(tea)(replace(tea.log, products=products), tea.rows))
    values = [tea, *columns, habit, Dirichlet(), Uniform(), mu, MeanField(np.nextafter(mu.share, 1), mu.quantity, mu.price, mu.count),
              0, 0., False, None, "0", b"0", [0], (0,), {0: 1}, {"0": 1}, [[0], 1], [0, [1]], ["ab", "c"], ["a", "bc"], {0}, np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.array(["a", None], object), np.array(["a", "None"], object),
              pd.DataFrame(dict(a=[1])), pd.DataFrame(dict(b=[1])), pd.DataFrame(dict(a=[1]), index=[5]), pd.Series(["a", "b"], dtype="category"), pd.Series(["a", "b"]), pd.Series([1, None], dtype="Int64"), pd.Timestamp("2024-01-01"), Dirichlet, open, sorted]
    assert len(set(map(digest, values))) == len(values)
    assert digest(tea) == digest(shop()) and digest({"a", "b", "c"}) == digest({"c", "b", "a"})


def test_attributes_are_told_apart_by_name():
    a, b = Dirichlet(), Dirichlet()
    a.strength, b.power = 3., 3.
    assert digest(a) != digest(b)


class Mine(ChoiceModel):
    name = "mine"


@pytest.mark.parametrize("value, told", [(lambda: 0, "lambda"), (Mine(), "Mine"), (Mine, "Mine"), (threading.Lock(), "lock"), ((i for i in range(3)), "generator")], ids=["lambda", "object", "class", "lock", "generator"])
def test_what_content_does_not_tell_apart_is_refused(value, told):
    with pytest.raises(TypeError, match=told): digest(dict(here=[value]))


def test_a_name_does_not_depend_on_the_process(tea):
    code = "from tests.test_runs import *; print(digest([shop(), {'a', 'b', 'c'}, Dirichlet().fit(shop())]))"
    out = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ, PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout.strip() for seed in ("1", "2")]
    assert out[0] == out[1] == digest([tea, {"a", "b", "c"}, Dirichlet().fit(tea)])


# --- records

def test_any_damage_is_found_and_done_again(tea, tmp_path):
    store, habit = Store(tmp_path), Dirichlet().fit(tea)
    whole = Cached(habit, store, chunk=60).predict(tea)
    records, rng = sorted(tmp_path.iterdir()), np.random.default_rng(0)
    assert len(records) == 4
    good = records[0].read_bytes()
    for at in [*rng.integers(len(good), size=200), 0, len(good) - 1]:
        bad = bytearray(good); bad[at] ^= 1 << rng.integers(8)
        records[0].write_bytes(bad)
        assert store.get(records[0].stem) is None
    for cut in (0, 1, 31, 32, 33, len(good) // 2, len(good) - 1):
        records[0].write_bytes(good[:cut])
        assert store.get(records[0].stem) is None
    records[1].write_bytes(records[2].read_bytes())                   # a record under another's name
    again = Cached(habit, store, chunk=60)
    assert same(again.predict(tea), whole) and again.spent.decisions == 120 and same(Cached(habit, store, chunk=60).predict(tea), whole)


def test_nothing_but_plain_arrays_is_kept(tmp_path):
    with pytest.raises(ValueError, match="[Oo]bject"): Store(tmp_path).keep("k", dict(x=np.array([{}], object)))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_loses_nothing(tea, tmp_path, monkeypatch):
    habit = Dirichlet().fit(tea)
    Cached(habit, Store(tmp_path), chunk=60).predict(tea[:60])
    written = Path.write_bytes
    def full(path, raw):
        written(path, raw[:40])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device.*same call continues") as e: Cached(habit, Store(tmp_path), chunk=60).predict(tea)
    assert e.value.errno == 28 and e.value.filename == str(tmp_path) and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    model = Cached(habit, Store(tmp_path), chunk=60)
    assert same(model.predict(tea), habit.predict(tea)) and model.spent.decisions == len(tea) - 60


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody, root included, can write")
def test_a_folder_that_cannot_be_written(tea):
    with pytest.raises(OSError, match="cannot keep what was computed"): Cached(Uniform(), Store("/proc/malles")).predict(tea)
    with pytest.raises(OSError):
        with Run("/proc/malles", {}): pass


# --- a model with a memory

def test_cached_answers_are_the_models(tea):
    "Every opponent, all at once and in chunks; the second time from disk."
    import tempfile
    for model in opponents(True):
        if model.name in ("mixed-logit", "latent-class", "lightgbm-monotone", "sim-logit"): continue  # slow to fit, and of the kinds that are here
        model.fit(tea)
        with tempfile.TemporaryDirectory() as folder:
            first, second, parts = Cached(model, Store(folder)), Cached(model, Store(folder)), Cached(model, Store(folder), chunk=50)
            assert same(first.predict(tea), model.predict(tea)) and same(second.predict(tea), model.predict(tea)), model.name
            assert first.spent.decisions == len(tea) and second.spent.decisions == 0 and second.cost == first.cost
            assert np.abs(parts.predict(tea).choice - model.predict(tea).choice).max() < 1e-12, model.name


def test_a_language_model_and_its_what_ifs(tmp_path):
    rng = np.random.default_rng(1)
    two = ready(simulate_market([replace(sample_world(rng, J), priced=True) for J in (3, 5)], rng.standard_normal((12, 5)), rng, 4)[0])  # sets of 3 and of 5
    model = LMChoice.nano().fit(two)
    cached = Cached(model, Store(tmp_path), chunk=len(two) // 3)
    scenarios = [{}, dict(price=two.price * 1.2), dict(price=np.full(two.mask.shape[1], 2.)), dict(price=3., discount=.1)]
    for a, b in zip([*cached.what_if(two, scenarios), cached.predict(two, mean_field(two))], [*model.what_if(two, scenarios), model.predict(two, mean_field(two))]):
        assert np.abs(a.choice - b.choice).max() < 1e-5 and np.abs(a.quantity - b.quantity)[two.mask].max() < 1e-5 and np.array_equal(a.support, b.support)
    spent = cached.spent.decisions
    assert spent == 5 * len(two) and same(cached.predict(two, mean_field(two)), cached.predict(two, mean_field(two))) and cached.spent.decisions == spent
    assert digest(cached) == digest(Cached(model, Store(tmp_path/"elsewhere")))
    assert not hasattr(Cached(Dirichlet(), Store(tmp_path)), "what_if") and cached.what_if(two, []) == []
    loud = LMChoice.nano(progress=True).fit(two)
    assert digest(loud) == digest(model) != digest(LMChoice.nano(seed=1).fit(two)) and digest(model) != digest(LMChoice.nano(orders=2).fit(two))


def test_weights_and_adapters_enter_the_key():
    import torch
    from peft import LoraConfig, get_peft_model
    seen = [digest(LM.from_pretrained("nano"))]
    lm = LM.from_pretrained("nano")
    assert digest(lm) == seen[0]
    with torch.no_grad(): next(lm.model.parameters()).view(-1)[5] += 1e-6
    seen.append(digest(lm))
    seen.append(digest(LM.from_pretrained("nano", dtype="bfloat16")))
    for alpha in (8, 16):
        lm = LM.from_pretrained("nano")
        torch.manual_seed(0)
        seen.append(digest(LM(get_peft_model(lm.model, LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])), lm.tokenizer, lm.name, lm.card)))
    assert len(set(seen)) == 5


class Fickle(Uniform):
    asked = 0
    def fingerprint(self): return self.asked
    def predict(self, occasions, mu=None):
        self.asked += 1
        return super().predict(occasions, mu)


class Chatty(Uniform):
    def fingerprint(self): return ()
    def predict(self, occasions, mu=None): return replace(super().predict(occasions, mu), trace=["..."] * len(occasions))


def test_what_cannot_be_cached_is_refused(tea, tmp_path):
    for model, told in ((Mine(), "fingerprint"), (Fickle(), "changes while it answers"), (Chatty(), "trace")):
        with pytest.raises(TypeError, match=told): Cached(model, Store(tmp_path)).predict(tea)
    assert not list(tmp_path.iterdir())


def test_nobody_asked(tea, tmp_path): assert len(Cached(Dirichlet().fit(tea), Store(tmp_path)).predict(tea[:0])) == 0


# --- cost

def test_the_estimate_is_near_the_cost(tmp_path):
    tea = shop(5, 150, 8)
    model = LMChoice.nano().fit(tea)
    before, cached = estimate(model, tea), Cached(model, Store(tmp_path), chunk=400)
    cached.predict(tea)
    after = cached.cost
    assert before.decisions == after.decisions == len(tea) and 1/3 < before.seconds / after.seconds < 3 and .8 < before.tokens / after.tokens < 1.25
    assert np.isclose(after.money(2e-6), 2e-6 * after.tokens) and cached.spent == after
    assert model.tokens(tea, [{}, dict(price=9.)]) > after.tokens == model.tokens(tea[:400]) + model.tokens(tea[400:800]) + model.tokens(tea[800:])
    replay = Cached(model, Store(tmp_path), chunk=400)
    replay.predict(tea); replay.predict(tea)
    assert replay.cost == after and replay.spent.decisions == 0       # asked twice, paid once
    with pytest.raises(ValueError, match="not counted"): estimate(Dirichlet().fit(tea), tea).money(1.)
    with pytest.raises(ValueError, match="no occasions"): estimate(model, tea[:0])
    assert total([Cost(1, 1., 5), Cost(2, 2.)]) == Cost(3, 3.)


# --- runs

def test_other_settings_are_refused_by_name(tea, tmp_path):
    def go(settings=dict(step=.5, grid=[1, 2]), seed=0, market=tea):
        with Run(tmp_path, settings, seed, market=market) as run: return run
    go(); again = go()
    told = again.manifest()
    assert told["state"] == "finished" and told["sessions"] == 2 and told["started"] <= told["ended"] and told["versions"]["numpy"] == np.__version__ and told["peak_memory_mb"] > 10
    for other, word in ((dict(settings=dict(step=1., grid=[1, 2])), "settings step: 0.5 there, 1.0 here"), (dict(settings=dict(step=.5, grid=[1, 3])), "settings grid"), (dict(settings=dict(step=.5)), "settings grid: .* there, nothing here"),
                        (dict(seed=1), "seed: 0 there, 1 here"), (dict(market=tea[:-1]), "inputs market")):
        with pytest.raises(ValueError, match=word): go(**other)
    assert go().manifest()["sessions"] == 3 and json.loads((tmp_path/"manifest.json").read_text())["settings"] == dict(step=.5, grid=[1, 2])
    with pytest.raises(TypeError, match="plain values"): go(dict(step=np.zeros(2)))
    (tmp_path/"manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not a manifest"): go()


def test_how_it_ended_is_noted(tmp_path):
    for error, state in ((KeyboardInterrupt(), "stopped"), (ZeroDivisionError("x / 0"), "failed"), (None, "finished")):
        try:
            with Run(tmp_path, {}) as run:
                assert run.manifest()["state"] == "running" and run.manifest()["ended"] is None
                run.note(estimate=3)
                if error: raise error
        except type(error): pass
        assert run.manifest()["state"] == state and run.manifest()["estimate"] == 3
        assert run.manifest()["why"] == (f"{type(error).__name__}: {error}" if error else None)


# --- kills. One process loads nano once and forks: each child is a run of its own, killed or not.

KILLS = """
import os, signal, sys, threading, time, traceback
from pathlib import Path
import numpy as np, torch
from tqdm.auto import tqdm
torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())         # its own lock is one for all forks: whoever is killed with it in hand would stop the others for good
from malles.cached import Cached
from malles.crowd import Field
from malles.digests import code_hash
from malles.elicitation import LMChoice
from malles.runs import Run
from tests.test_runs import shop
tea = shop(4, 10, 5)
nano = LMChoice.nano().fit(tea)
code_hash()                              # noted here, so that somebody who edits the library meanwhile does no harm
def command(folder):
    with Run(folder, dict(rounds=3), market=tea, model=nano) as run:
        crowd = Field(Cached(nano, run.store, chunk=10), tea)
        path = [crowd.even()]
        for _ in range(3): path.append(crowd(path[-1]))
        np.save(Path(folder)/"end.npy", path)
def fork(folder):
    pid = os.fork()
    if pid: return pid
    try: command(folder)
    except BaseException: traceback.print_exc(); os._exit(1)
    os._exit(0)
home = Path(sys.argv[1])
start = time.time(); assert os.waitpid(fork(home/"undisturbed"), 0)[1] == 0; whole = time.time() - start
records = len(list((home/"undisturbed"/"records").iterdir()))
rng, midway = np.random.default_rng(0), 0
for k in range(20):
    folder = home/str(k)
    pid = fork(folder)
    time.sleep(rng.uniform(0, whole))
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    kept = len(list((folder/"records").glob("[!.]*.npz"))) if folder.exists() else 0
    midway += 0 < kept < records
    assert os.waitpid(fork(folder), 0)[1] == 0
    assert (folder/"end.npy").read_bytes() == (home/"undisturbed"/"end.npy").read_bytes(), f"kill {k}, with {kept} of {records} records"
    assert {p.name: p.stem for p in (folder/"records").glob("[!.]*.npz")} == {p.name: p.stem for p in (home/"undisturbed"/"records").iterdir()}
print(midway, records, round(whole, 2))
"""


def test_killed_at_twenty_moments_the_same_command_ends_in_the_same_state(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS, tmp_path], cwd=ROOT, env=dict(os.environ, TQDM_DISABLE="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    midway, records, whole = done.stdout.split()
    print(done.stdout)
    assert int(midway) >= 10 and int(records) >= 8, done.stdout


class Slow(Dirichlet):
    "Habit that takes its time and notes each answer that it computes."
    def __init__(self, log): self.log = log
    def fingerprint(self): return self.strength
    def predict(self, occasions, mu=None):
        time.sleep(.02)
        with open(self.log, "a") as f: f.write(f"{occasions.rows[0]}\n")
        return super().predict(occasions, mu)


TWO = """
import sys
import numpy as np
from tests.test_runs import Slow, shop
from malles.cached import Cached
from malles.runs import Run
tea = shop()
with Run(sys.argv[1], {}, market=tea) as run: np.save(sys.argv[2], Cached(Slow(sys.argv[2] + ".log").fit(tea), run.store, chunk=4).predict(tea).choice)
"""


def test_two_processes_on_one_cache(tea, tmp_path):
    env = dict(os.environ, TQDM_DISABLE="1")
    begin = lambda name: subprocess.Popen([sys.executable, "-c", TWO, tmp_path/"run", tmp_path/name], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    both = [begin("a"), begin("b")]
    for p in both: assert p.wait() == 0, p.stderr.read()[-2000:]
    a, b = np.load(tmp_path/"a.npy"), np.load(tmp_path/"b.npy")
    assert np.array_equal(a, b) and np.array_equal(a, Dirichlet().fit(tea).predict(tea).choice)
    assert len(list((tmp_path/"run"/"records").iterdir())) == 60 and Store(tmp_path/"run"/"records").get(sorted((tmp_path/"run"/"records").iterdir())[0].stem)
    last = begin("c")
    assert last.wait() == 0 and np.array_equal(np.load(tmp_path/"c.npy"), a) and not (tmp_path/"c.log").exists()   # all of it from disk
