"What leaves for the hub, and what comes in from there: cards, adapters, data sets, a push into a local folder."
import json, os, shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
import huggingface_hub
from huggingface_hub import ModelCard

from malles.chat import questions
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.market import Market
from malles.populations import simulate_population
from malles.sharing import push_dataset, push_model, save_dataset, save_model
from malles.validation import unseen_market
from tiny_models import chat_tokenizer, tiny

ROWS = pd.DataFrame([dict(market=m, category=c, split=s, model=who, metric=k, value=v, low=0, high=0, n=n, seed=0)
    for m, c, s, who, k, v, n in (("a", "all", "customer", "nano", "log_loss", 1.25, 100), ("a", "tea", "customer", "nano", "log_loss", 9., 10), ("b", "tea", "time", "nano", "hit_rate", .5, 30),
                                  ("b", "tea", "time", "logit", "hit_rate", .1, 30), ("b", "tea", "time", "nano", "calibration_slope", 1., 30))])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub that is a folder."
    class Folder:
        calls = []
        def __init__(self, token=None): self.token = token
        def create_repo(self, repo, repo_type, private, exist_ok): self.calls.append((repo, repo_type, private, self.token))
        def upload_folder(self, folder_path, repo_id, repo_type):
            return shutil.copytree(folder_path, tmp_path/repo_type/repo_id)
    monkeypatch.setattr(huggingface_hub, "HfApi", Folder)
    return Folder


def test_push_of_a_model(hub):
    lm = LM.from_pretrained("nano")
    where = push_model(lm, "me/nano", token="t", rows=ROWS, datasets=["me/market"])
    assert hub.calls[-1] == ("me/nano", "model", True, "t")
    card = ModelCard.load(Path(where)/"README.md").data
    assert card.license == "apache-2.0" and card.datasets == ["me/market"] and card.library_name == "transformers"
    assert {(r.dataset_name, r.metric_type, r.metric_value) for r in card.eval_results} == {("a", "log_loss", 1.25), ("b", "hit_rate", .5)}
    occasions = unseen_market(0)[:5]
    assert np.array_equal(LMChoice(LM.from_pretrained(str(where))).predict(occasions).choice, LMChoice(lm).predict(occasions).choice)
    assert not [p for p in Path(where).iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_push_of_an_adapter(hub, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    occasions = unseen_market(0)[:5]
    base = tiny("llama", chat_tokenizer([q.text for q in questions(occasions)[0]]), tmp_path/"base")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)).save_pretrained(tmp_path/"lora")
    lm = LM.from_pretrained(str(tmp_path/"lora"))
    where = Path(push_model(lm, "me/lora", license="mit"))
    assert (where/"adapter_model.safetensors").exists() and not (where/"model.safetensors").exists()
    card = ModelCard.load(where/"README.md").data
    assert card.base_model == str(base) and card.library_name == "peft" and card.license == "mit"
    asked = questions(occasions)[0]
    assert np.abs(LM.from_pretrained(str(where)).read(asked) - lm.read(asked)).max() < 1e-6


def test_no_licence_no_push(hub, tmp_path):
    lm = LM.from_pretrained("nano")
    for card in (None, dict(folds=dict(panel=0)), dict(data="simulated shoppers only", folds=dict(panel=[]))):
        with pytest.raises(ValueError, match="name the licence"): push_model(LM(lm.model, lm.tokenizer, "x", card), "me/x")
    assert not hub.calls or all(c[0] != "me/x" for c in hub.calls)
    with pytest.raises(ValueError, match="rows.csv has no .* of 'x'"): save_model(LM(lm.model, lm.tokenizer, "x", lm.card), tmp_path/"x", rows=ROWS)
    assert not (tmp_path/"x").exists()
    real = Market.from_frames("real", choices=pd.DataFrame(dict(customer_id="a", occasion_id=[0, 0], category="c", time=0, product_id=["x", "y"], price=1., chosen=[True, False])))
    with pytest.raises(ValueError, match="records of people"): push_dataset(real, "me/real")


def test_push_of_a_market(hub, tmp_path, monkeypatch):
    import datasets
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path/"cache"))
    market, _ = simulate_population(30, categories=1, trade=0, seed=2, weeks=8, name="village")
    where = push_dataset(market, "me/village")
    for table, frame in market.tables().items():
        loaded = datasets.load_dataset(str(where), table, split="train", cache_dir=str(tmp_path/"cache"))
        assert len(loaded) == len(frame) and set(loaded.column_names) == set(frame)
    again = Market.from_dataset({t: datasets.load_dataset(str(where), t, split="train", cache_dir=str(tmp_path/"cache")) for t in market.tables()}, name="village")
    assert len(again.transactions) == len(market.transactions) and Market.read(where).name == "village"


def test_what_is_asked_of_the_hub(monkeypatch):
    "revision, token and the ban on foreign code reach every download."
    import transformers
    asked = []
    def stop(name, file, **kw): asked.append((name, file, kw))
    monkeypatch.setattr("transformers.utils.cached_file", stop)
    def model(name, **kw): asked.append((name, "model", kw)); raise OSError("stop here")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    with pytest.raises(OSError, match="stop here"): LM.from_pretrained("org/some", revision="abc", token="t", device_map="cpu", dtype="bfloat16")
    (_, _, first), (name, _, kw) = asked
    assert first["revision"] == "abc" and first["token"] == "t" and name == "org/some"
    assert kw["revision"] == "abc" and kw["token"] == "t" and kw["trust_remote_code"] is False and kw["use_safetensors"] is True and kw["device_map"] == "cpu" and kw["dtype"] == "bfloat16"
