"""New products by their pictures: nano taught with and without image embeddings against logits that are given the true embeddings, and the truth. One thread.

Spring has forty products, autumn twenty others; customers choose by (w + z_h) . e_j and price (picture_world). All models learn from spring's customers outside fold 0 and are
asked about autumn, whose products nobody has bought before and whose customers nobody has met; a household's own earlier purchases of the autumn are in sight of those models that read a past.
    python benchmarks/multimodal.py [--households 350] [--visits 8] [--epochs 3] [--dimension 4] [--out benchmarks/results/multimodal.json]
With --dimension 512 the four numbers that matter lie in 512, with noise.
"""
import argparse, json, os, tempfile, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np, pandas as pd
import torch
from datasets.utils.logging import disable_progress_bar
from malles.elicitation import LMChoice
from malles.facts import log_price
from malles.lessons import PostRecipe, lessons, parts
from malles.lm import LM
from malles.logit import fit_logit
from malles.metrics import clustered_mean
from malles.mixed import fit_mixed
from malles.multimodal import image_vectors, picture_world, with_images
from malles.posterior import given_past
from malles.profiles import with_profiles
from malles.shoppers import simulate_market
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer


def season(name, vectors, want, spread, households, visits, seed):
    rng = np.random.default_rng(seed)
    occ = with_profiles(simulate_market([picture_world(vectors, want, spread)], rng.standard_normal((households, 4)), rng, visits, name=name)[0])
    return occ[occ.sizes <= 12]                                            # as many as there are letters


def taught(spring, pictures, autumn, new_pictures, epochs, images=True, frozen=False):
    "Probabilities for the autumn by a model that was taught the spring: (without pictures, with them or None), and the training's seconds."
    lm, words = LM.from_pretrained("nano"), {spring.market: {}}
    if images:
        lm = with_images(lm, {spring.market: pictures}, {spring.market: 0})
        words = lm.card["items"]
        if frozen: lm.model.requires_grad_(False); lm.model.image_words.requires_grad_(True)
    seen, inner, _ = parts(spring, 0)
    train, _ = lessons([seen.without("taste"), seen.without("popularity", "taste")], [inner], words, PostRecipe(epochs=epochs, nameless=0. if frozen else 1 / epochs))
    with tempfile.TemporaryDirectory() as work:
        args = ChoiceSFTConfig(work, learning_rate=5e-3 if frozen else 1e-3, num_train_epochs=1, lr_scheduler_type="linear", warmup_steps=10, adam_beta2=.98, save_strategy="no", disable_tqdm=True, logging_steps=10**9)
        start = time.time()
        ChoiceSFTTrainer(lm.model, args, train, processing_class=lm.tokenizer).train()
        start = time.time() - start
    without = LMChoice(lm).predict(autumn).choice
    return without, LMChoice(with_images(lm, {autumn.market: new_pictures})).predict(autumn).choice if images else None, start


def main(a):
    torch.set_num_threads(1); disable_progress_bar()
    rng = np.random.default_rng(0)
    want, looks, new_looks = rng.standard_normal(4), rng.standard_normal((40, 4)), rng.standard_normal((20, 4))
    want *= 1.5 / np.linalg.norm(want)
    lift = np.eye(4)
    if a.dimension > 4:
        lift = np.linalg.qr(rng.standard_normal((a.dimension, 4)))[0].T
        looks, new_looks, want = (looks @ lift + .02 * rng.standard_normal((40, a.dimension)), new_looks @ lift + .02 * rng.standard_normal((20, a.dimension)), want @ lift)
    spring, autumn = season("spring", looks, want, .75, a.households, a.visits, 1), season("autumn", new_looks, want, .75, 300, a.visits, 2)
    pictures, new_pictures = image_vectors(spring.products, looks), image_vectors(autumn.products, new_looks)
    p = {"uniform": autumn.mask / autumn.sizes[:, None], "truth": autumn.alternative("true_probability", 0.)}

    def design(vectors):
        return lambda o: np.where(o.mask[..., None], np.concatenate([vectors[np.maximum(o.product, 0).astype(int)], log_price(o)[..., None]], 2), 0)
    X, Z, seen = design(looks), design(new_looks), parts(spring, 0)[0]
    fits = {r: fit_logit(X(seen), seen.mask, seen.chosen, ridge=r) for r in (.3, 3., 30.)}
    inner = parts(spring, 0)[1]
    score = lambda f: f.log_probability(X(inner), inner.mask)[np.arange(len(inner)), inner.chosen].mean()
    p["logit, given the embedding"] = np.exp(max(fits.values(), key=score).log_probability(Z(autumn), autumn.mask))
    if a.dimension == 4:
        mixed = fit_mixed(X(seen), seen.mask, seen.chosen, seen.customer, R=128)
        p["mixed logit, given the embedding and the past"] = given_past(autumn, Z, mixed.tastes(1024), np.zeros(1024))[0]
    p["nano"] = LMChoice.nano().predict(autumn).choice
    run = lambda **kw: taught(spring, pictures, autumn, new_pictures, a.epochs, **kw)
    seconds = {}
    p["taught without pictures"], _, seconds["without"] = run(images=False)
    p["taught with pictures, asked without"], p["taught with pictures"], seconds["with"] = run()
    _, p["nano unchanged, projector taught"], seconds["projector"] = run(frozen=True)

    each = {k: -np.log(np.maximum(v[np.arange(len(autumn)), autumn.chosen], 1e-9)) for k, v in p.items()}
    past = autumn.column("n_past")
    rows = []
    for k, x in each.items():
        gain, low, high, _ = clustered_mean(each["taught with pictures"] - x, autumn.customer)
        rows.append(dict(model=k, log_loss=x.mean(), first_visit=x[past == 0].mean(), later=x[past >= 4].mean(), with_pictures_minus_this=gain, low=low, high=high))
    table = pd.DataFrame(rows).sort_values("log_loss", ascending=False).round(4)
    print(f"{len(seen)} purchases learned from, {len(autumn)} asked; embeddings of {a.dimension} numbers; seconds of training {({k: round(v) for k, v in seconds.items()})}")
    print(table.to_string(index=False))
    if a.out:
        there = json.loads(open(a.out).read()) if os.path.exists(a.out) else {}
        there[str(a.dimension)] = table.to_dict("records")
        open(a.out, "w").write(json.dumps(there, indent=1) + "\n")


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--households", type=int, default=350); p.add_argument("--visits", type=int, default=8); p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--dimension", type=int, default=4); p.add_argument("--out", default="")
    main(p.parse_args())
