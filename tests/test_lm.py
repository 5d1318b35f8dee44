"Laws of the language model: exact, the same alone and together, resumed to the bit, loaded safely."
from dataclasses import replace
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from malles.elicitation import LMChoice, log_pool
from malles.reading import packs, read_packs
from malles.pieces import guess_pieces
from malles.tastes import guess, market_facts
from malles.lm import LM, WEIGHTS
from malles.occasions import Occasions, mean_field, with_popularity
from malles.network import Recipe, new_model
from malles.pretraining import export, pretrain
from malles.profiles import with_profiles
from malles.texts import sample_market, sample_texts
from malles.words import ID, WORDS
from malles.shoppers import sample_world, simulate

TINY = Recipe(width=32, layers=2, heads=2, inner=64, steps=8, tokens=1200, warmup=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return export(new_model(TINY), TINY, 0, tmp_path_factory.mktemp("tiny")/"tiny")


@pytest.fixture(scope="module")
def lm(folder): return LM.from_pretrained(folder)


def market(seed=0, n=6, J=4, **kw):
    world = replace(sample_world(np.random.default_rng(seed), J), priced=True, counted=True, **kw)
    occ, _ = simulate(world, 25, n, rng=seed)
    return with_profiles(with_popularity(occ, mean_field(occ)))


def test_options_are_scored_exactly(lm):
    import torch
    prompt = "<market> <visit> past:0 share:320 A share:620 B <pick>"
    p = lm.score(prompt, ["A q2", "B", "other"])
    def logp(text):
        ids, k = lm.tokenizer(prompt + " " + text, return_tensors="pt")["input_ids"], len(prompt.split())
        with torch.no_grad(): l = lm.model(ids).logits.log_softmax(-1)[0]
        return sum(float(l[i-1, ids[0, i]]) for i in range(k, ids.shape[1]))
    q = np.exp([logp(o) for o in ("A q2", "B", "other")])
    assert abs(p.sum() - 1) < 1e-6 and np.allclose(p, q / q.sum(), atol=1e-6)
    with pytest.raises(ValueError, match="at least one token"): lm.score(prompt, ["A", ""])


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_sum_to_one(lm, seed):
    occ = sample_market(np.random.default_rng([5, seed]))
    p = LMChoice(lm).predict(occ)
    assert np.allclose(p.choice.sum(1), 1, atol=1e-6) and (p.choice[~occ.mask] == 0).all() and (p.choice[occ.mask] > 0).all()
    assert p.quantity.shape == (*occ.mask.shape, 20) and np.allclose(p.quantity.sum(2), 1, atol=1e-6)


def test_alone_together_and_in_any_batch(lm):
    occ, model = market(), LMChoice(lm)
    together = model.predict(occ)
    some = np.random.default_rng(0).choice(len(occ), 25, replace=False)
    alone = [model.predict(occ[[i]]) for i in some]
    assert max(np.abs(a.choice[0] - together.choice[i]).max() for a, i in zip(alone, some)) < 1e-5
    assert max(np.abs(a.quantity[0] - together.quantity[i]).max() for a, i in zip(alone, some)) < 1e-5
    for budget in (1, 300, 10**6):
        letters = read_packs(lm, packs(occ), budget)[0][:, :4]
        if budget > 1: assert np.abs(letters - first).max() < 1e-4
        first = letters


def test_packed_reads_what_a_text_of_its_own_reads(lm):
    occ, model = market(), LMChoice(lm)
    same = occ.replace(price=occ.price)          # a what-if that changes nothing: a text of its own for each occasion
    assert np.abs(model.predict(same).choice - model.predict(occ).choice).max() < 1e-5


def test_packed_equals_the_plain_forward_pass(lm):
    import torch
    from malles.receipts import receipt_text
    occ = market(n=1)
    p, order = LMChoice(lm).predict(occ).choice, packs(occ).order
    for i in range(5):
        ids = lm.tokenizer(receipt_text(occ, i, answer=False), return_tensors="pt")["input_ids"]
        with torch.no_grad(): logits = lm.model(ids).logits[0]
        at = [ids[0].tolist().index(ID[s]) for s in "ABCD"]
        assert np.allclose(p[i][order[i][:4]], logits[at, ID["yes"]].softmax(0).numpy(), atol=1e-5)


def test_outcome_and_future_do_not_leak(lm):
    occ, model = market(), LMChoice(lm)
    p = model.predict(occ)
    at = 3
    rows = np.flatnonzero((occ.rows - occ.past_start) >= at)
    chosen, q = occ.log.occasion["chosen"].copy(), occ.log.occasion["quantity"].copy()
    chosen[rows], q[rows] = (chosen[rows] + 1) % occ.sizes[rows], q[rows] % 20 + 1
    log = replace(occ.log, occasion={**occ.log.occasion, "chosen": chosen.astype(np.int32), "quantity": q})
    r = model.predict(with_profiles(Occasions(log)))
    early = (occ.rows - occ.past_start) <= at
    assert np.abs(p.choice[early] - r.choice[early]).max() < 1e-5 and np.abs(p.quantity[early] - r.quantity[early]).max() < 1e-5
    assert np.abs(p.choice[~early] - r.choice[~early]).max() > 1e-4


def test_visits_at_one_time_do_not_see_each_other(lm):
    world = replace(sample_world(np.random.default_rng(0), 3), priced=True, counted=True)
    occ, _ = simulate(world, 10, 4, rng=1)
    log = occ.log
    def at(chosen):
        o = Occasions.from_arrays("ties", log.customers, log.categories, log.products, log.occasion["customer"], log.occasion["category"],
            np.tile([0, 1, 1, 2], 10), log.offsets, log.alternative["product"], chosen, log.occasion["quantity"], {"price": log.alternative["price"]})
        return with_profiles(o)
    chosen = log.occasion["chosen"].copy()
    a = at(chosen)
    chosen[1::4] = (chosen[1::4] + 1) % np.diff(log.offsets)[1::4]
    b = at(chosen)
    p, r = (LMChoice(lm).predict(o).choice for o in (a, b))
    assert np.abs(p[2::4] - r[2::4]).max() < 1e-6 and np.abs(p[3::4] - r[3::4]).max() > 1e-5


def test_visits_without_a_purchase_leave_no_receipt(lm):
    occ = market()
    log = occ.log
    chosen = log.occasion["chosen"].copy()
    chosen[2::6] = -1
    some = with_profiles(Occasions(replace(log, occasion={**log.occasion, "chosen": chosen})))
    kept = chosen >= 0
    flat = np.repeat(kept, np.diff(log.offsets))
    less = with_profiles(Occasions.from_arrays("less", log.customers, log.categories, log.products, log.occasion["customer"][kept], log.occasion["category"][kept],
        log.occasion["time"][kept], np.r_[0, np.cumsum(np.diff(log.offsets)[kept])], log.alternative["product"][flat], chosen[kept], log.occasion["quantity"][kept],
        {k: v[flat] for k, v in log.alternative.items() if k != "product"}))
    p, q = LMChoice(lm).predict(some).choice, LMChoice(lm).predict(less).choice
    assert np.abs(p[kept] - q).max() < 1e-5 and np.allclose(p[~kept].sum(1), 1)


def test_five_hundred_alternatives(lm):
    occ = market(J=500, n=3, absent=0.)
    p = LMChoice(lm).predict(occ[:20]).choice
    assert p.shape == (20, 500) and np.allclose(p.sum(1), 1, atol=1e-6) and (p > 0).all()


def test_empty_and_tiny_views(lm):
    occ = market()
    assert LMChoice(lm).predict(occ[:0]).choice.shape[0] == 0
    assert LMChoice(lm).predict(occ[:1]).choice.shape == (1, 4)


def test_averaging_over_orders_evens_out_the_slots(lm):
    occ = market()[::6]
    spread = lambda k: np.std([LMChoice(lm, orders=k, seed=100 * s).predict(occ).choice for s in range(4)], axis=0).mean()
    assert spread(8) < .6 * spread(1)


def test_shares_can_be_replaced(lm):
    occ = market()
    mu = mean_field(occ)
    other = replace(mu, share=mu.share[::-1].copy())
    a, b = LMChoice(lm).predict(occ, mu).choice, LMChoice(lm).predict(occ, other).choice
    assert np.abs(a - LMChoice(lm).predict(occ).choice).max() < 1e-6 and np.abs(a - b).max() > 1e-4
    whatif = occ.replace(popularity=np.arange(1, occ.mask.shape[1] + 1))
    assert np.abs(LMChoice(lm).predict(whatif).choice - a).max() > 1e-4 and np.abs(LMChoice(lm).predict(whatif, mu).choice - a).max() < 1e-6   # mu wins


def test_fitting_reads_facts_and_changes_no_weight(lm):
    occ, before = market(), {k: v.clone() for k, v in lm.model.state_dict().items()}
    model = LMChoice(lm).fit(occ)
    assert all((before[k] == v).all() for k, v in lm.model.state_dict().items())
    assert np.isclose(model.facts.repeat, market_facts(occ).repeat, equal_nan=True).all()
    assert LMChoice(lm, facts=False).fit(occ).facts is None


def test_an_answer_is_half_what_was_read_and_half_what_was_told(lm):
    occ = market()
    model, dearer = LMChoice(lm).fit(occ), dict(price=occ.price * np.where(np.arange(occ.mask.shape[1]) == 0, 1.3, 1.))
    seen = model.read(occ)
    for answer, view in zip(model.what_if(occ, [{}, dearer]), (seen, seen.replace(**dearer))):                # of each scenario its own guess
        both = np.sqrt(LMChoice(lm).predict(view).choice * guess(view))                                       # what carries the facts is read without being fitted
        assert np.abs(answer.choice - both / both.sum(1, keepdims=True)).max() < 1e-5
    taught = LMChoice(LM(lm.model, lm.tokenizer, "taught", lm.card | dict(folds={occ.market: 0}))).fit(occ)
    assert np.abs(taught.pooled(seen, guess(seen)**3) - log_pool(guess(seen)**3, guess(seen))).max() < 1e-12, "so is a model's that was taught on this market"
    assert np.array_equal(LMChoice(lm, facts=False).fit(occ).pooled(seen, guess(seen) / 2), guess(seen) / 2), "who was told nothing answers what he read"


def test_pieces_are_pooled_with_what_this_market_takes(lm):
    occ = market()
    log = occ.log
    twos = Occasions(replace(log, occasion={**log.occasion, "quantity": np.where(np.arange(len(log.occasion["quantity"])) % 10 == 0, 1., 2.)}))
    model = LMChoice(lm).fit(twos)
    told, read = guess_pieces(twos, model.facts), LMChoice(lm).predict(model.read(twos)).quantity
    assert np.abs(model.predict(twos).quantity - log_pool(read, told, model.facts.taken.reading)).max() < 1e-5 and .49 < model.facts.taken.reading < .5
    two = lambda q: q[np.arange(len(twos)), twos.chosen, 1].mean()
    assert two(read) < .3 < two(model.predict(twos).quantity) < two(told) and two(told) > .8                 # nine tenths took two, and the model had not known
    uncounted = Occasions(replace(log, occasion={**log.occasion, "quantity": np.full(len(log.occasion["quantity"]), np.nan)}))
    alone = LMChoice(lm).fit(uncounted)
    assert alone.facts.taken is None and np.abs(alone.predict(uncounted).quantity - LMChoice(lm).predict(alone.read(uncounted)).quantity).max() < 1e-6
    with pytest.raises(ValueError, match="no training occasions"): LMChoice(lm).fit(twos[np.zeros(len(twos), bool)])


def test_a_model_without_card_or_with_other_words_is_refused(folder, tmp_path):
    lm = LM.from_pretrained(folder)
    with pytest.raises(ValueError, match="card"): LMChoice(LM(lm.model, lm.tokenizer, "x"))
    with pytest.raises(ValueError, match="other words"): LMChoice(LM(lm.model, lm.tokenizer, "x", {**lm.card, "words": "0"}))


def test_only_safetensors_are_loaded(folder, tmp_path):
    import shutil, torch
    shutil.copytree(folder, tmp_path/"pickled")
    (tmp_path/"pickled"/"model.safetensors").unlink()
    torch.save({}, tmp_path/"pickled"/"pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"): LM.from_pretrained(tmp_path/"pickled")


def test_data_depend_on_seed_and_step_alone():
    a, b, c = sample_texts(1, 7, 1500), sample_texts(1, 7, 1500), sample_texts(1, 8, 1500)
    assert all((x == y).all() for x, y in zip(a.ids, b.ids)) and (a.slot == b.slot).all()
    assert len(a.ids) != len(c.ids) or any(len(x) != len(y) or (x != y).any() for x, y in zip(a.ids, c.ids))
    for k in range(len(a.slot)):
        ids, place = a.ids[a.pack[k]], a.pick[k]
        assert WORDS[ids[0]] == "<market>" and WORDS[ids[place]] == "<pick>"
        if a.slot[k] >= 0: assert ids[place + 1] == ID["A"] + a.slot[k] == ids[a.spots[k][a.slot[k]]] and a.chance[k][a.slot[k]] > 0
        told = WORDS[ids[place + 2]][0] == "q" if place + 2 < len(ids) else False
        assert abs(a.pieces[k].sum() - told) < 1e-6


def weights(path): return (pathlib.Path(path)/"weights"/"model.safetensors").read_bytes()


KILLED = """
import os, signal, sys
import malles.pretraining as p
place, call = sys.argv[1], int(sys.argv[2])
real, calls = getattr(p, place), []
def dies(*args, **kw):
    calls.append(1)
    if len(calls) == call: os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kw)
setattr(p, place, dies)
p.main(sys.argv[3:])
"""


def test_killed_and_resumed_ends_with_the_same_weights(tmp_path):
    "Killed thrice, another time in each run of this test: before a step, before a checkpoint, between a checkpoint and its weights."
    seed = time.time_ns() % 2**32
    rng = np.random.default_rng(seed)
    pretrain(tmp_path/"whole", TINY, every=3, progress=False)
    settings = [f"--{k}={getattr(TINY, k)}" for k in ("width", "layers", "heads", "inner", "steps", "tokens", "warmup")]
    root, kills = str(pathlib.Path(__file__).parents[1]), []
    for place, last in (("train_step", 5), ("_save", 2), ("export", 1)):
        kills.append((place, str(rng.integers(1, last + 1))))
        command = [sys.executable, "-c", KILLED, *kills[-1], "--out", str(tmp_path/"killed"), "--every", str(rng.integers(1, 3)), *settings]
        run = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
        assert run.returncode == -signal.SIGKILL, (seed, kills, run.stderr)
    pretrain(tmp_path/"killed", TINY, every=2, progress=False)
    assert weights(tmp_path/"whole") == weights(tmp_path/"killed"), (seed, kills)
    with pytest.raises(ValueError, match="another recipe"): pretrain(tmp_path/"killed", replace(TINY, seed=1), progress=False)


def test_another_length_is_refused_where_the_rates_have_differed(tmp_path):
    "On the plain of both schedules a run may be shortened, and its card is true; later not."
    short = replace(TINY, steps=6)
    pretrain(tmp_path/"whole", short, progress=False)
    pretrain(tmp_path/"cut", TINY, until=2, progress=False)
    pretrain(tmp_path/"cut", short, progress=False)
    assert weights(tmp_path/"whole") == weights(tmp_path/"cut") and json.loads((tmp_path/"cut"/"weights"/"card.json").read_text())["recipe"]["steps"] == 6
    pretrain(tmp_path/"late", TINY, until=3, progress=False)
    for steps in (6, 20, 2):
        with pytest.raises(ValueError, match=r"3 steps of 8, at other rates than a run of \d+ has.*steps=8"): pretrain(tmp_path/"late", replace(TINY, steps=steps), progress=False)
    pretrain(tmp_path/"late", TINY, progress=False)


@pytest.mark.skipif(not (WEIGHTS/"nano"/"model.safetensors").exists(), reason="weights not shipped yet")
def test_shipped_weights_are_what_their_card_says():
    import hashlib
    folder = WEIGHTS/"nano"
    card = json.loads((folder/"card.json").read_text())
    assert hashlib.sha256((folder/"model.safetensors").read_bytes()).hexdigest() == card["sha256"]
    assert card["data"] == "simulated shoppers only" and sum(p.stat().st_size for p in folder.iterdir()) < 4e6
    nano = LMChoice.nano()
    losses = []
    for k in range(6):
        occ = sample_market(np.random.default_rng([10**6, k]))
        p = nano.predict(occ).choice[np.arange(len(occ)), occ.chosen]
        losses.append((-np.log(p).mean(), np.log(occ.sizes).mean()))
    mine, uniform = np.mean(losses, 0)
    assert mine < .9 * uniform, (mine, uniform)


def test_the_card_is_honoured(tmp_path):
    "Other weights than the card speaks of, and customers that a model was trained on, are refused."
    import json, shutil
    from malles.elicitation import LMChoice
    from malles.lm import LM, WEIGHTS
    from malles.populations import simulate_population
    from malles.choicesets import build_occasions
    from malles.market import fold_of
    from malles.profiles import with_profiles
    folder = tmp_path/"mine"
    shutil.copytree(WEIGHTS/"nano", folder)
    card = json.loads((folder/"card.json").read_text())
    (folder/"card.json").write_text(json.dumps(card | dict(folds={"shop": 2})))
    occasions = with_profiles(build_occasions(simulate_population(30, categories=1, trade=0, weeks=10, seed=3, name="shop")[0]))
    model = LMChoice(LM.from_pretrained(str(folder)))
    mine = fold_of("shop", occasions.customers)[occasions.customer] == 2
    with pytest.raises(ValueError, match="fold 2 only"): model.predict(occasions)
    assert len(model.predict(occasions[mine])) == mine.sum() > 0
    (folder/"card.json").write_text(json.dumps(card | dict(sha256="0" * 64)))
    with pytest.raises(ValueError, match="sha256"): LM.from_pretrained(str(folder))
    (folder/"card.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a record"): LM.from_pretrained(str(folder))
