"""Post-training: exact likelihoods, batches, kill and resume, several processes, chat models, what a model may see."""
import hashlib, json, os, random, signal, subprocess, sys, time, types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")

from malles.choicesets import build_occasions
from malles.decisions import rejected, to_preference, to_prompts, to_sft
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.market import fold_of
from malles.populations import simulate_population
from malles.lessons import PostRecipe, inner_customers, lessons, own_words, parts, with_more_words
from malles.posttraining import PostTrained, held_out, keep_last, last_whole, posttrain_fold
from malles.profiles import with_profiles
from malles.receipts import with_items
from malles.rewards import REWARDS, dpo_trainer, grpo_trainer, judge
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer, TextBatches, collate, decision_losses, read_places
from malles.tastes import as_stranger
from malles.validation import unseen_market
from malles.words import ID, SLOTS, WORDS

ROOT = Path(__file__).parents[1]
QUICK = dict(save_strategy="no", disable_tqdm=True, logging_steps=10**9, learning_rate=1e-3, max_steps=4)


@pytest.fixture(scope="module")
def town():
    market, _ = simulate_population(80, categories=2, trade=0, seed=5, weeks=12)
    return with_profiles(build_occasions(market))


def digest(model): return hashlib.sha256(b"".join(v.detach().contiguous().numpy().tobytes() for _, v in sorted(model.state_dict().items()))).hexdigest()


@pytest.mark.parametrize("k, facts", [(3, False), (7, False), (11, False), (3, True), (7, True)])
def test_the_loss_is_minus_the_log_of_what_the_model_answers(k, facts):
    occ, lm = unseen_market(k), LM.from_pretrained("nano")
    model = LMChoice(lm, facts=facts).fit(occ)
    occ = occ[(occ.chosen >= 0) & (occ.category == occ.category[0])]
    if not facts: occ = as_stranger(occ)
    batch = collate(list(to_sft(model.read(occ))))
    places = read_places(batch)
    with torch.no_grad(): choice, pieces, *_ = decision_losses(lm.model(input_ids=batch["input_ids"], logits_to_keep=places).logits, places, batch)
    p = model.predict(occ)
    n = np.arange(len(occ))
    assert np.allclose(np.sort(choice.numpy()), np.sort(-np.log(p.choice[n, occ.chosen])), atol=1e-5)
    told = np.nan_to_num(occ.quantity.astype(float)) > .5
    q = p.quantity[n, occ.chosen, occ.quantity.clip(1, 20).round().astype(int) - 1]
    assert np.allclose(np.sort(pieces.numpy()[pieces.numpy() > 0]), np.sort(-np.log(q[told])), atol=1e-4)


def test_every_purchase_is_a_label_once(town):
    data = to_sft(town)
    assert sum(len(t) for t in data["taken"]) == (town.chosen >= 0).sum()
    for r in data:
        ids, at, labels = np.array(r["input_ids"]), np.array(r["at"]).reshape(-1, len(SLOTS)), np.array(r["labels"])
        assert (labels[labels >= 0] == ids[labels >= 0]).all() and len(labels) == len(ids)
        for row, slot in zip(at, r["taken"]):
            assert (ids[row[row >= 0]] == ID["A"] + np.flatnonzero(row >= 0)).all()
            if slot >= 0: assert labels[row.max() + 2] == ID["A"] + slot, "the answer does not follow its own question"


def test_nobody_reads_his_own_answer(town):
    "Changing a household's last choice changes nothing that stands before its question."
    data, who = to_sft(town), town.customer == town.customer[0]
    rows = np.flatnonzero(who & (town.chosen >= 0))
    last = town.rows[rows[-1]]
    chosen = town.log.occasion["chosen"].copy(); chosen[last] = (chosen[last] + 1) % town.sizes[rows[-1]]
    other = to_sft(type(town)(replace(town.log, occasion={**town.log.occasion, "chosen": chosen}), town.rows))
    changed = [(a, b) for a, b in zip(data, other) if a["input_ids"] != b["input_ids"] or a["taken"] != b["taken"]]
    assert len(changed) == 1
    (a, b), = changed
    first = next(i for i, (x, y) in enumerate(zip(a["input_ids"], b["input_ids"])) if x != y)
    assert first > max(a["at"]), "something before the question knows the answer"


def test_batches_hold_every_text_once_within_the_budget():
    rng = np.random.default_rng(0)
    lengths = np.repeat(rng.integers(20, 900, 200), 2)
    drawn = TextBatches(lengths, 4096, views=2, seed=3)
    first = list(drawn)
    assert sorted(i for b in first for i in b) == list(range(400)) and all(b[k] + 1 == b[k + 1] for b in first for k in range(0, len(b), 2))
    assert all(len(b) * lengths[b].max() <= 4096 or len(b) == 2 for b in first)
    drawn.set_epoch(1)
    second = list(drawn)
    assert first != second and sorted(map(tuple, first)) == sorted(map(tuple, second))


def test_hard_negatives(town):
    bought = town[town.chosen >= 0]
    n = np.arange(len(bought))
    for hard in ("likely", "price"):
        r = rejected(bought, hard)
        ok = r >= 0
        assert ok.any() and (r[ok] != bought.chosen[ok]).all() and bought.mask[n[ok], r[ok]].all()
    with pytest.raises(ValueError, match="hard must be"): rejected(bought, "soft")
    p = bought.price
    r, ok = rejected(bought, "price"), ~np.isnan(p).any(1)
    gap = np.abs(np.log(p) - np.log(p[n, bought.chosen])[:, None]); gap[n, bought.chosen] = np.inf
    assert np.allclose(gap[n, r][ok], gap.min(1)[ok])


def test_words_for_products_and_prices(town):
    seen, inner, out = parts(town, 0)
    words = own_words([seen], PostRecipe())
    mine = words[town.market]
    assert sorted(mine.values()) == list(range(len(mine)))
    sold = {f"{c}/{i}" for c, i in zip(seen.products.category, seen.products.product_id)}
    assert {k.split("@")[0] for k in mine} <= sold
    lm = with_more_words(LM.from_pretrained("nano"), len(mine))
    rows = to_sft(with_items(seen, words[town.market]))
    assert max(max(r["input_ids"]) for r in rows) < len(WORDS) + len(mine) == lm.model.get_input_embeddings().num_embeddings
    assert lm.tokenizer.decode([len(WORDS)]) == "item:0"
    assert torch.equal(lm.model.get_input_embeddings().weight[:len(WORDS)], LM.from_pretrained("nano").model.get_input_embeddings().weight)


def test_a_model_sees_nothing_of_its_fold(town):
    "Records of the held-out customers are turned upside down; what model 0 learns from stays the same to the bit."
    out = fold_of(town.market, town.customers)[town.log.occasion["customer"]] == 0
    sizes, chosen = np.diff(town.log.offsets), town.log.occasion["chosen"]
    log = replace(town.log, occasion={**town.log.occasion, "chosen": np.where(out & (chosen >= 0), (chosen + 1) % sizes, chosen)})
    def learned(occ):
        seen, inner, _ = parts(occ, 0)
        words = own_words([seen], PostRecipe(epochs=2))
        train, told = lessons([seen], [inner], words, PostRecipe(epochs=2))
        return words, list(train["input_ids"]), list(train["taken"]), list(told["input_ids"])
    assert learned(town) == learned(with_profiles(type(town)(log, town.rows)))


@pytest.fixture(scope="module")
def folder(town, tmp_path_factory):
    out = tmp_path_factory.mktemp("post")
    posttrain_fold([town], 0, out/"fold0", PostRecipe(epochs=1), progress=False)
    return out


def test_a_post_trained_model_is_a_choice_model_that_refuses_whom_it_knows(town, folder):
    card = json.loads((folder/"fold0"/"card.json").read_text())
    assert card["folds"] == {town.market: 0} and card["inner"] and not (folder/"fold0"/"work").exists()
    seen, _, out = parts(town, 0)
    model = PostTrained(folder).fit(seen)
    p = model.predict(out)
    assert np.allclose(p.choice.sum(1), 1) and np.allclose(p.quantity.sum(2), 1) and p.name == "nano+post"
    with pytest.raises(ValueError, match="has not seen fold"): model.predict(seen)
    with pytest.raises(ValueError, match="trained on customers"): LMChoice(LM.from_pretrained(str(folder/"fold0"))).predict(seen)
    # a what-if on some of the rows is asked of the same rows
    cheap = np.where(np.arange(out.mask.shape[1]) == 0, .5, 1.) * out.price
    a = model.what_if(out, [{}, dict(price=cheap)])[1].choice
    assert np.allclose(a, LMChoice(LM.from_pretrained(str(folder/"fold0"))).fit(seen).predict(out.replace(price=cheap)).choice, atol=1e-5)
    told = held_out(folder/"fold0", "nano", [town], 0)
    assert set(told.customer) == set(out.customers[out.customer]) and len(told) == len(out)


def test_a_finished_model_is_left_alone_and_another_recipe_refused(town, folder):
    before = (folder/"fold0"/"model.safetensors").stat().st_mtime_ns
    posttrain_fold([town], 0, folder/"fold0", PostRecipe(epochs=1), progress=False)
    assert (folder/"fold0"/"model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another recipe"): posttrain_fold([town], 0, folder/"fold0", PostRecipe(epochs=1, rate=1e-5), progress=False)


TRAIN = """
import os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
import torch; torch.set_num_threads(1)
from malles.populations import simulate_population
from malles.choicesets import build_occasions
from malles.profiles import with_profiles
from malles.lessons import PostRecipe
from malles.posttraining import posttrain_fold
from malles.trainer import StayClose
{inject}
if __name__ == "__main__":
    market, _ = simulate_population(40, categories=1, trade=0, seed=5, weeks=6)
    posttrain_fold([with_profiles(build_occasions(market))], 0, sys.argv[1], PostRecipe(epochs=3, stay_close=1., {recipe}), progress=False)
"""


def script(tmp_path, inject="", recipe=""):
    path = tmp_path/"train.py"
    path.write_text(TRAIN.format(inject=inject, recipe=recipe))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("worse, spread, kept", [(0., 0., "checkpoint-2"), (.1, 1., "checkpoint-2"), (.1, .1, "checkpoint-1"), (-.1, .1, "checkpoint-2")])
def test_the_last_epoch_is_kept_unless_it_is_clearly_worse(tmp_path, worse, spread, kept):
    for k in (1, 2):
        (tmp_path/f"checkpoint-{k}").mkdir()
        (tmp_path/f"checkpoint-{k}"/"trainer_state.json").write_text("{}")
    noise = np.random.default_rng(0).standard_normal(60)
    gap = worse + spread * (noise - noise.mean())
    class Trainer:
        args = types.SimpleNamespace(output_dir=str(tmp_path))
        state = types.SimpleNamespace(best_model_checkpoint=str(tmp_path/"checkpoint-1"))
        def _load_best_model(self): self.loaded = Path(self.state.best_model_checkpoint).name
        def get_eval_dataloader(self): pass
        def evaluation_loop(self, *a, **kw): self.sums = {(c, 0, t): np.array([2 * (1 + (self.loaded == "checkpoint-2") * gap[30 * c + t]), 2]) for c in (0, 1) for t in range(30)}
    trainer = Trainer()
    trainer._load_best_model()
    keep_last(trainer)
    assert trainer.loaded == kept == Path(trainer.state.best_model_checkpoint).name


@pytest.mark.parametrize("recipe", ["", "lora=4"])
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, recipe):
    seed = time.time_ns() % 10**6
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    subprocess.run([*script(tmp_path, recipe=recipe), str(tmp_path/"whole")], env=env, check=True, capture_output=True)
    slow = script(tmp_path, "_step = StayClose.on_optimizer_step\ndef slowly(*a, **k): time.sleep(.2); return _step(*a, **k)\nStayClose.on_optimizer_step = slowly", recipe)
    run = subprocess.Popen([*slow, str(tmp_path/"cut")], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.time() + 120
    while not list((tmp_path/"cut"/"work").glob("checkpoint-*")) and time.time() < deadline and run.poll() is None: time.sleep(.05)
    time.sleep(random.Random(seed).uniform(0, 2))
    run.send_signal(signal.SIGKILL); run.wait()
    assert not (tmp_path/"cut"/"card.json").exists(), f"it was not killed in time (seed {seed})"
    subprocess.run([*script(tmp_path, recipe=recipe), str(tmp_path/"cut")], env=env, check=True, capture_output=True)
    a, b = ((tmp_path/k/"model.safetensors").read_bytes() for k in ("whole", "cut"))
    assert a == b, f"killed with seed {seed}, the weights differ"


def test_a_full_disk_says_so_and_the_last_checkpoint_stays(tmp_path):
    "Files may not grow beyond a megabyte after the first checkpoint: what a full disk does."
    full = """
import resource, signal
from malles.trainer import ChoiceSFTTrainer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_save, count = ChoiceSFTTrainer._save_checkpoint, [0]
def save(self, *a, **k):
    count[0] += 1
    if count[0] == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    return _save(self, *a, **k)
ChoiceSFTTrainer._save_checkpoint = save
"""
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run([*script(tmp_path, full), str(tmp_path/"out")], env=env, capture_output=True, text=True)
    assert done.returncode and "cannot be written" in done.stderr.splitlines()[-1], done.stderr[-2000:]
    kept = last_whole(tmp_path/"out"/"work")
    assert kept is not None and (kept/"model.safetensors").stat().st_size > 10**6
    again = subprocess.run([*script(tmp_path), str(tmp_path/"out")], env=env, capture_output=True, text=True)
    assert not again.returncode, again.stderr[-2000:]
    assert (tmp_path/"out"/"card.json").exists()


def test_a_folder_that_cannot_be_made(town, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError, match="file"): posttrain_fold([town], 0, tmp_path/"file"/"fold0", PostRecipe(epochs=1), progress=False)


def test_adapters_leave_the_base_and_merge_into_the_same_answers(town, tmp_path):
    posttrain_fold([town], 0, tmp_path/"fold0", PostRecipe(epochs=1, lora=4, rate=3e-3), progress=False)
    base, post = LM.from_pretrained("nano"), LM.from_pretrained(str(tmp_path/"fold0"))
    a, b = (lm.model.get_input_embeddings().weight[:len(WORDS)] for lm in (base, post))
    assert torch.equal(a, b), "the base's words moved"
    new = post.model.get_input_embeddings().weight[len(WORDS):]
    start = with_more_words(LM.from_pretrained("nano"), len(new)).model.get_input_embeddings().weight[len(WORDS):]
    assert not torch.allclose(new, start, atol=1e-4), "the new words did not learn"
    assert not torch.equal(base.model.model.layers[0].self_attn.q_proj.weight, post.model.model.layers[0].self_attn.q_proj.weight)


DDP = """
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
import torch; torch.set_num_threads(1)
from malles.lm import LM
from malles.decisions import to_sft
from malles.validation import unseen_market
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer
if __name__ == "__main__":
    lm, data = LM.from_pretrained("nano"), to_sft(unseen_market(3))
    args = ChoiceSFTConfig(sys.argv[1], max_steps=3, batch_tokens=600, save_strategy="no", disable_tqdm=True, learning_rate=1e-3, ddp_backend="gloo")
    trainer = ChoiceSFTTrainer(lm.model, args, data, data, processing_class=lm.tokenizer)
    trainer.train()
    loss = trainer.evaluate()["eval_log_loss"]
    total = sum(float(p.double().sum()) for p in lm.model.parameters())
    open(f"{sys.argv[1]}/rank{trainer.accelerator.process_index}", "w").write(f"{trainer.accelerator.num_processes} {total!r} {loss!r}")
"""


def test_two_processes_train_one_model(tmp_path):
    (tmp_path/"ddp.py").write_text(DDP)
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), ACCELERATE_USE_CPU="true")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(random.randint(20000, 40000)), str(tmp_path/"ddp.py"), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    first, second = ((tmp_path/f"rank{k}").read_text() for k in (0, 1))
    assert first.startswith("2 ") and first == second, "the two processes end with other weights"


def chat_checkpoint(folder, kind):
    "A tiny random chat model with its own tokenizer and template."
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    chars = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(special + chars)}, [], unk_token=None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])
    tok.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    size = dict(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, pad_token_id=0, eos_token_id=2, bos_token_id=None)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(head_dim=16, tie_word_embeddings=True, **size)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **size))
    model.save_pretrained(folder); tok.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def chat(request, tmp_path_factory): return chat_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def few(n=24):
    occ = unseen_market(7)
    return occ[np.flatnonzero((occ.chosen >= 0) & (occ.sizes <= 6))[:n]]


@pytest.mark.parametrize("way", ["supervised", "dpo", "grpo"])
def test_chat_models_learn_save_and_reload(chat, tmp_path, way):
    lm, occ = LM.from_pretrained(chat), few()
    before = digest(lm.model)
    if way == "supervised":
        data = to_sft(occ, lm.tokenizer)
        first = judge(lm, data).log_loss
        ChoiceSFTTrainer(lm.model, ChoiceSFTConfig(str(tmp_path), **(QUICK | dict(max_steps=30, learning_rate=3e-3))), data, processing_class=lm.tokenizer).train()
        assert judge(lm, data).log_loss < first - .02
    elif way == "dpo": dpo_trainer(lm, to_preference(occ, lm.tokenizer), tmp_path, max_steps=2, per_device_train_batch_size=8).train()
    else:
        vowels = [lambda completions, **kw: [float(sum(c in "AEIOUaeiou" for c in m[0]["content"])) for m in completions]]       # a random model says nothing that can be read
        grpo_trainer(lm, to_prompts(occ, lm.tokenizer).select(range(8)), tmp_path, rewards=vowels, max_steps=2, per_device_train_batch_size=16, max_completion_length=6, learning_rate=1e-2).train()
    assert digest(lm.model) != before
    lm.model.save_pretrained(tmp_path/"saved"); lm.tokenizer.save_pretrained(tmp_path/"saved")
    assert digest(LM.from_pretrained(str(tmp_path/"saved")).model) == digest(lm.model)


def test_a_chat_training_resumes(chat, tmp_path):
    occ = few()
    def run(folder, **kw):
        lm = LM.from_pretrained(chat)
        data = to_sft(occ, lm.tokenizer)
        args = ChoiceSFTConfig(str(folder), **(QUICK | dict(save_strategy="steps", save_steps=2, max_steps=4) | kw))
        trainer = ChoiceSFTTrainer(lm.model, args, data, processing_class=lm.tokenizer)
        return trainer
    whole = run(tmp_path/"a"); whole.train()
    half = run(tmp_path/"a")
    half.train(resume_from_checkpoint=str(tmp_path/"a"/"checkpoint-2"))
    assert digest(half.model) == digest(whole.model)


def test_consistency_needs_two_views_and_attention_a_line(tmp_path):
    with pytest.raises(ValueError, match="views=2"): ChoiceSFTConfig(str(tmp_path), consistency_weight=1.)
    with pytest.raises(ValueError, match="fields are"): ChoiceSFTConfig(str(tmp_path), attention_prior="taste .4")


def test_both_regularisers_lower_what_they_measure(tmp_path):
    occ = unseen_market(3)
    data = to_sft(occ, views=2)
    def run(**kw):
        lm = LM.from_pretrained("nano")
        trainer = ChoiceSFTTrainer(lm.model, ChoiceSFTConfig(str(tmp_path), views=2, **(QUICK | dict(max_steps=12, logging_steps=1, learning_rate=3e-4)), **kw), data, processing_class=lm.tokenizer)
        trainer.train()
        return trainer.state.log_history
    log = run(attention_prior="price .6, profile .4", attention_weight=1., consistency_weight=5.)
    kl = [x["attention_kl"] for x in log if "attention_kl" in x]
    assert np.mean(kl[-3:]) < .7 * kl[0], kl
    assert all(np.isfinite(x["divergence"]) and x["divergence"] >= 0 for x in log if "divergence" in x)
