"""Pictures of products: any dimension, none at all, save and reload, products to come, models of the hub, what is refused."""
import json, os

import numpy as np
import pandas as pd
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")

from malles.decisions import to_sft
from malles.elicitation import LMChoice
from malles.lessons import PostRecipe, lessons, parts, with_more_words
from malles.lm import LM, compact_tokenizer
from malles.market import Market, fold_of
from malles.multimodal import Projector, bake, image_vectors, picture_world, save_with_images, with_images
from malles.profiles import with_profiles
from malles.receipts import product_names, receipt_text, with_items
from malles.reading import packs, read_packs
from malles.rewards import judge
from malles.shoppers import simulate_market
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer
from malles.validation import unseen_market
from malles.words import ITEMS, WORDS
from test_posttraining import chat_checkpoint

QUICK = dict(save_strategy="no", disable_tqdm=True, logging_steps=10**9, learning_rate=1e-3, max_steps=4)
DIMENSIONS = [3, 512]


def vectors(d, n=12, seed=0): return np.random.default_rng([d, seed]).standard_normal((n, d)) / np.sqrt(d)

def season(name, looks, households=40, visits=4, seed=1, want=0.):
    rng = np.random.default_rng(seed)
    return with_profiles(simulate_market([picture_world(looks, np.full(looks.shape[1], want), .5)], rng.standard_normal((households, 4)), rng, visits, name=name)[0])

def pictured(lm, d=3, keep=slice(None), name="shop", **kw):
    "The model with words, and occasions."
    occ = season(name, vectors(d))
    of = image_vectors(occ.products, vectors(d))
    return with_images(lm, {name: {k: of[k] for k in list(of)[keep]}}, **kw), occ

def train(lm, data, folder, **kw):
    trainer = ChoiceSFTTrainer(lm.model, ChoiceSFTConfig(str(folder), **(QUICK | kw)), data, processing_class=lm.tokenizer)
    trainer.train()
    return trainer

def weights(model): return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("d", DIMENSIONS)
def test_train_save_reload_add_products(tmp_path, d):
    lm, occ = pictured(LM.from_pretrained("nano"), d, folds={"shop": 0})
    start = weights(lm.model.image_words.projector)
    seen, inner, out = parts(occ, 0)
    data, _ = lessons([seen], [inner], lm.card["items"], PostRecipe(epochs=2, nameless=0.))
    train(lm, data, tmp_path)
    assert all(not torch.equal(start[k], v) for k, v in lm.model.image_words.projector.state_dict().items() if "layers" in k), "the projector did not learn"
    hooked = LMChoice(lm).predict(out).choice
    folder = save_with_images(lm, tmp_path/"saved", data)
    card = json.loads((folder/"card.json").read_text())
    assert (card["name"], card["base"], card["folds"]) == ("nano+images", "nano", {"shop": 0}) and card["base_sha256"] == LM.from_pretrained("nano").card["sha256"] and len(card["data"]) == 16
    assert not hasattr(lm.model, "image_words") and {p.name for p in folder.glob("*.safetensors")} == {"model.safetensors", "projector.safetensors"}
    from safetensors import safe_open
    with safe_open(folder/"model.safetensors", "pt") as f: assert not [k for k in f.keys() if "image" in k], "the checkpoint is not a plain one"
    again = LM.from_pretrained(str(folder))
    assert np.array_equal(LMChoice(again).predict(out).choice, LMChoice(lm).predict(out).choice), "reloaded, it answers otherwise"
    assert np.abs(LMChoice(again).predict(out).choice - hooked).max() < 1e-5, "baked, it answers otherwise"
    with pytest.raises(ValueError, match="outside fold 0"): LMChoice(again).predict(seen)

    autumn = season("autumn", vectors(d, 8, seed=1), seed=2)
    new = image_vectors(autumn.products, vectors(d, 8, seed=1))
    bare = LMChoice(again).predict(autumn).choice
    projector = Projector.load(folder)
    grown = with_images(again, {"autumn": new}, projector=projector)
    there = LMChoice(grown).predict(autumn).choice
    assert np.abs(there - bare).max() > 1e-3, "the new pictures are not read"
    assert np.array_equal(LMChoice(grown).predict(out).choice, LMChoice(lm).predict(out).choice), "new words moved what is said of the old products"
    rows = bake(grown)(torch.from_numpy(np.stack(list(new.values())))).detach()
    assert torch.equal(grown.model.get_input_embeddings().weight[-8:], rows) and np.abs(LMChoice(grown).predict(autumn).choice - there).max() < 1e-5
    kept = json.loads((save_with_images(with_images(grown, {"summer": new}, projector=projector), tmp_path/"twice")/"card.json").read_text())
    assert all(kept[k] == card[k] for k in ("name", "base", "base_sha256", "data", "folds", "words")) and set(kept["items"]) == {"shop", "autumn", "summer"}
    with pytest.raises(ValueError, match="word already"): with_images(grown, {"autumn": new}, projector=projector)
    with pytest.raises(ValueError, match=f"of {d + 1} numbers, but the projector was trained on {d}"): with_images(grown, {"winter": {k: np.ones(d + 1) for k in new}}, projector=projector)
    assert np.abs(LMChoice(grown).predict(autumn).choice - there).max() < 1e-5, "what was refused left a trace"


def test_without_pictures_nothing_changes(tmp_path):
    "A market without images gets the plain model's answers to the bit: with words added, with the projector trained, baked and reloaded."
    other = unseen_market(5)
    plain = LMChoice.nano().predict(other)
    lm, occ = pictured(LM.from_pretrained("nano"))
    same = lambda lm: np.array_equal(LMChoice(lm).predict(other).choice, plain.choice) and np.array_equal(LMChoice(lm).predict(other).quantity, plain.quantity)
    assert same(lm)
    lm.model.requires_grad_(False); lm.model.image_words.requires_grad_(True)
    before, start = weights(lm.model), LMChoice(lm).predict(occ).choice
    train(lm, to_sft(other), tmp_path)                                         # batches without a picture run, and teach nothing
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())
    train(lm, to_sft(with_items(occ, lm.card["items"]["shop"])), tmp_path)
    moved = {k for k, v in lm.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith("image_words.projector.layers") for k in moved), moved
    assert np.abs(LMChoice(lm).predict(occ).choice - start).max() > 1e-4 and same(lm)
    assert same(LM.from_pretrained(str(save_with_images(lm, tmp_path/"saved"))))


def test_products_with_and_without_a_picture_stand_side_by_side():
    lm, occ = pictured(LM.from_pretrained("nano"), keep=slice(0, 3))
    named = with_items(occ, lm.card["items"]["shop"])
    have = [any(f"item:{k}" in receipt_text(named, i).split() for k in range(3)) for i in range(20)]
    assert any(have) and receipt_text(named, have.index(True)) != receipt_text(occ, have.index(True))
    assert " ".join(w for w in receipt_text(named, have.index(True)).split() if not w.startswith("item:")) == receipt_text(occ, have.index(True))
    p, bare = LMChoice(lm).predict(occ).choice, LMChoice.nano().predict(occ).choice
    assert np.allclose(p.sum(1), 1)
    seen = np.isin(occ.product, range(3)) & occ.mask
    first = occ.column("n_past") == 0
    none, some = first & ~seen.any(1), first & seen.any(1)
    assert none.any() and np.abs(p - bare)[none].max() < 1e-6 < np.abs(p - bare)[some].max()


def test_after_words_of_ones_own():
    "A model that has learned words for products of another market keeps them."
    lm = with_more_words(LM.from_pretrained("nano"), 5)
    rows = lm.model.get_input_embeddings().weight[:len(WORDS) + 5].clone()
    lm, occ = pictured(lm)
    assert lm.card["items"]["shop"] == {name: 5 + k for k, name in enumerate(product_names(occ.products))}
    assert torch.equal(lm.model.get_input_embeddings().weight[:len(WORDS) + 5], rows)
    assert lm.tokenizer.convert_tokens_to_ids("item:5") == len(WORDS) + 5 == lm.model.image_words.first
    n = len(occ.products)
    projector = lm.model.image_words.projector
    lm = with_images(lm, {"more": {f"c/{k}": v for k, v in enumerate(vectors(3, 4, 7))}})      # by its own projector, without being asked to
    assert lm.model.image_words.projector is projector and lm.card["items"]["more"]["c/0"] == 5 + n and lm.model.image_words.first == len(WORDS) + 5 + n


def test_scale_and_shift_of_embeddings_do_not_matter():
    looks = vectors(3)
    def rows(x):
        occ = season("shop", looks)
        return bake(with_images(LM.from_pretrained("nano"), {"shop": image_vectors(occ.products, x)}))(torch.from_numpy(x.astype(np.float32)))
    assert torch.allclose(rows(looks), rows(1000 * looks + 50), atol=1e-4) and not torch.allclose(rows(looks), rows(looks[::-1].copy()), atol=1e-2)


def test_new_products_are_understood_by_their_pictures(tmp_path):
    "Trained on twelve products, asked about eight others: what all like in a picture is known of them, to the share of those who would choose them."
    want = np.array([2., 0, 0])
    def shop(name, looks, households, seed):
        rng = np.random.default_rng(seed)
        occ = with_profiles(simulate_market([picture_world(looks, want, .1, 4.)], rng.standard_normal((households, 4)), rng, 4, name=name)[0])
        return occ[occ.sizes <= 12]
    old, new = (np.random.default_rng(s).standard_normal((n, 3)) for s, n in ((0, 20), (1, 12)))
    spring, autumn = shop("spring", old, 200, 1), shop("autumn", new, 80, 2)
    lm = with_images(LM.from_pretrained("nano"), {"spring": image_vectors(spring.products, old)})
    train(lm, to_sft(with_items(spring, lm.card["items"]["spring"])), tmp_path, max_steps=-1, num_train_epochs=3, warmup_steps=5, adam_beta2=.98)
    loss = lambda p: -np.log(p[np.arange(len(autumn)), autumn.chosen]).mean()
    without = loss(LMChoice(lm).predict(autumn).choice)
    lm = with_images(lm, {"autumn": image_vectors(autumn.products, new)})
    with_pictures, truth = loss(LMChoice(lm).predict(autumn).choice), loss(autumn.alternative("true_probability", 0.))
    wrong = with_images(LM.from_pretrained("nano"), {"autumn": image_vectors(autumn.products, new)})            # a projector that has learned nothing
    assert truth < with_pictures < without - .4 * (without - truth) and loss(LMChoice(wrong).predict(autumn).choice) > with_pictures + .1, (truth, with_pictures, without)


def test_a_training_with_pictures_resumes(tmp_path):
    def run(steps, **kw):
        lm, occ = pictured(LM.from_pretrained("nano"))
        args = ChoiceSFTConfig(str(tmp_path), **(QUICK | dict(save_strategy="steps", save_steps=2)), batch_tokens=1000)
        trainer = ChoiceSFTTrainer(lm.model, args, to_sft(with_items(occ, lm.card["items"]["shop"])), processing_class=lm.tokenizer)
        trainer.train(**kw)
        return weights(lm.model)
    whole, half = run(4), run(4, resume_from_checkpoint=str(tmp_path/"checkpoint-2"))
    assert all(torch.equal(whole[k], half[k]) for k in whole)


def test_adapters_train_beside_the_projector(tmp_path):
    from peft import LoraConfig
    lm, occ = pictured(LM.from_pretrained("nano"))
    data, before, base = to_sft(with_items(occ, lm.card["items"]["shop"])), weights(lm.model.image_words.projector), lm.model.get_input_embeddings().weight.clone()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", modules_to_save=["projector"])
    trainer = ChoiceSFTTrainer(lm.model, ChoiceSFTConfig(str(tmp_path), **QUICK), data, processing_class=lm.tokenizer, peft_config=lora)
    trainer.train()
    lm.model = trainer.model.merge_and_unload()
    assert torch.equal(lm.model.get_input_embeddings().weight, base)
    assert any(not torch.equal(before[k], v) for k, v in lm.model.image_words.projector.state_dict().items())
    p = LMChoice(lm).predict(occ).choice
    assert np.abs(LMChoice(LM.from_pretrained(str(save_with_images(lm, tmp_path/"saved")))).predict(occ).choice - p).max() < 1e-5


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("d", DIMENSIONS)
def test_chat_models_see_pictures(tmp_path, kind, d):
    lm = LM.from_pretrained(chat_checkpoint(tmp_path/"base", kind))
    lm, occ = pictured(lm, d)
    occ = occ[occ.sizes <= 6][:24]
    named = with_items(occ, lm.card["items"]["shop"])
    data = to_sft(named, lm.tokenizer)
    word = lm.model.image_words.first
    assert any(word <= t < word + 12 for t in data[0]["input_ids"]), "a word of a picture is cut into pieces"
    said = [w for i in range(len(named)) for w in receipt_text(named, i).split() if w.startswith("item:")]
    assert {int(w[5:]) for w in said} <= {t - word for r in data for t in r["input_ids"] if t >= word}, "item:1 is not item:10"
    first, start = judge(lm, data).log_loss, weights(lm.model.image_words.projector)
    train(lm, data, tmp_path, max_steps=30, learning_rate=3e-3)
    trained = judge(lm, data).log_loss
    assert trained < first - .02 and any(not torch.equal(start[k], v) for k, v in lm.model.image_words.projector.state_dict().items())
    again = LM.from_pretrained(str(save_with_images(lm, tmp_path/"saved")))
    assert abs(judge(again, data).log_loss - judge(lm, data).log_loss) < 1e-6
    more = with_images(again, {"autumn": {f"c/{k}": v for k, v in enumerate(vectors(d, 3, 5))}}, projector=Projector.load(tmp_path/"saved"))
    assert more.tokenizer("item:14", add_special_tokens=False)["input_ids"] == [more.model.image_words.first + 2]
    assert abs(judge(more, data).log_loss - judge(again, data).log_loss) < 1e-6


def test_a_qwen3_of_compact_words_sees_pictures():
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    lm = LM(Qwen3ForCausalLM(Qwen3Config(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=.2)), compact_tokenizer())
    lm, occ = pictured(lm)
    texts = packs(with_items(occ, lm.card["items"]["shop"]))
    hooked, _ = read_packs(lm, texts)
    bake(lm)
    assert np.abs(read_packs(lm, texts)[0] - hooked).max() < 1e-5 < 1e-3 < np.abs(read_packs(lm, packs(occ))[0][:len(occ)] - hooked).max()


def test_tables_of_pictures():
    products = pd.DataFrame(dict(product_id=["1", "2", "1"], category=["tea", "tea", "mugs"]))
    x = np.arange(6.).reshape(3, 2)
    rows = image_vectors(products, x)
    assert list(rows) == ["tea/1", "tea/2", "mugs/1"] and np.array_equal(rows["mugs/1"], [4, 5])
    table = products.assign(embedding=[None, [2., 3.], (4., 5.)])
    assert list(image_vectors(products, table)) == ["tea/2", "mugs/1"] and np.array_equal(image_vectors(products, table)["mugs/1"], [4, 5])
    assert list(image_vectors(products, pd.DataFrame(dict(product_id=[2], embedding=[[1., 2.]])))) == ["tea/2"]


BAD = dict(
    rows=(lambda p: np.ones((len(p) - 1, 3)), "11 rows of images for 12"),
    nan=(lambda p: np.where(np.arange(36).reshape(12, 3) == 4, np.nan, 1.), "1 of 3 numbers .* not finite"),
    infinite=(lambda p: np.where(np.arange(36).reshape(12, 3) == 4, np.inf, 1.), "not finite"),
    flat=(lambda p: np.ones(12), "all must be vectors"),
    unknown=(lambda p: pd.DataFrame(dict(product_id=["nobody"], embedding=[[1., 2.]])), "of no product of this market"),
    twice=(lambda p: pd.DataFrame(dict(product_id=[p.product_id[0]] * 2, embedding=[[1., 2.]] * 2)), "has 2 images"),
    ragged=(lambda p: pd.DataFrame(dict(product_id=p.product_id[:2], embedding=[[1., 2.], [1.]])), "all must be vectors of one length"),
    none=(lambda p: pd.DataFrame(dict(product_id=p.product_id[:2], embedding=[None, None])), "no product has an image"),
    column=(lambda p: pd.DataFrame(dict(product_id=p.product_id, vector=0)), "lacks embedding"))

@pytest.mark.parametrize("case", BAD)
def test_pictures_that_cannot_be_used(case):
    make, said = BAD[case]
    products = season("shop", vectors(3), households=2).products
    with pytest.raises(ValueError, match=said): image_vectors(products, make(products))


def test_what_else_is_refused(tmp_path):
    lm = LM.from_pretrained("nano")
    with pytest.raises(ValueError, match="no product has an image"): with_images(lm, {})
    with pytest.raises(ValueError, match="of one length"): with_images(lm, {"a": {"c/1": np.ones(2)}, "b": {"c/1": np.ones(3)}})
    with pytest.raises(ValueError, match="not finite"): with_images(lm, {"a": {"c/1": np.array([1., np.nan])}})
    with pytest.raises(ValueError, match=f"at most {ITEMS}"): with_images(lm, {"a": {f"c/{k}": np.ones(1) for k in range(ITEMS + 1)}})
    assert len(lm.tokenizer) == len(WORDS) == lm.model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match="call with_images first"): save_with_images(lm, tmp_path)
    with pytest.raises(FileNotFoundError, match="save_with_images writes it"): Projector.load(tmp_path)


def test_a_market_carries_its_embeddings(tmp_path):
    "The column `embedding` of the products goes through a folder of parquet files."
    from malles.choicesets import build_occasions
    from malles.populations import simulate_population
    market, _ = simulate_population(20, categories=1, trade=0, seed=5, weeks=6)
    x = vectors(5, len(market.products))
    products = market.products.assign(embedding=list(x))
    Market.from_frames("shop", choices=market.choices, transactions=market.transactions, products=products).save(tmp_path)
    occ = build_occasions(Market.read(tmp_path))
    there = image_vectors(occ.products, occ.products)
    assert len(there) == len(occ.products) and all(np.allclose(there[n], x[list(products.product_id).index(n.split("/")[1])]) for n in there)
