"Laws of the perturbations, the divergence and the disagreement."
from copy import deepcopy

import numpy as np
import pytest
import torch

from malles.consistency import JND, NUMBERS, SeveralAnswers, consistency_loss, disagreement, jittered, over_set, perturbed, read_view, reworded, shuffled
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.network import Recipe, new_model
from malles.occasions import chosen_product
from malles.predictions import Dirichlet, LastPurchase, Uniform
from malles.pretraining import export
from malles.reading import over_alternatives, packs
from malles.receipts import render, slot_order
from malles.texts import sample_market
from malles.words import WORDS

TINY = Recipe(width=32, layers=2, heads=2, inner=64)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request, tmp_path_factory):
    tiny = new_model(TINY)
    with torch.no_grad(): tiny.get_input_embeddings().weight.mul_(8)      # an untrained model that says something
    if request.param == "qwen3":
        from transformers import Qwen3Config, Qwen3ForCausalLM
        torch.manual_seed(0)
        tiny = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            pad_token_id=0, initializer_range=.3, tie_word_embeddings=True))
    return LMChoice(LM.from_pretrained(export(tiny, TINY, 0, tmp_path_factory.mktemp("tiny")/request.param)))


def market(seed, n=30): return sample_market(np.random.default_rng([11, seed]))[:n]


def test_the_divergence():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 20, 6, generator=g, dtype=torch.float64)
    mask = torch.rand(20, 6, generator=g) < .7; mask[:, 0] = True
    logp = logits.masked_fill(~mask, -torch.inf).log_softmax(-1)
    loss = consistency_loss(logp)
    p = logp.exp().numpy()
    h = lambda p: -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    assert np.isclose(loss, (h(p.mean(0)) - h(p).mean(0)).mean())
    assert np.isclose(loss, consistency_loss(logp[[2, 0, 3, 1]])) and 0 < loss < np.log(4)
    assert consistency_loss(logp[:1].expand(3, -1, -1)).abs() < 1e-12
    near = logp[:1].repeat(2, 1, 1); near[1, 0, 0] += .1
    assert consistency_loss(near) > 1e-8                                        # zero only where all agree
    for V in (2, 5):
        sure = torch.full((V, 1, V), -1e9, dtype=torch.float64); sure[range(V), 0, range(V)] = 0
        assert np.isclose(consistency_loss(sure), np.log(V))
    with pytest.raises(ValueError, match="two views"): consistency_loss(logp[:1])


def test_the_slope_of_the_divergence():
    g = torch.Generator().manual_seed(1)
    order = torch.tensor([[2, 0, 1], [1, 0, -1]])
    letters = torch.randn(3, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    f = lambda x: consistency_loss(torch.stack([over_set(x[v], order, 4) for v in range(3)]))
    assert torch.autograd.gradcheck(f, letters)
    f(letters).backward()
    assert torch.isfinite(letters.grad).all() and (letters.grad[:, 1, 2] == 0).all() and letters.grad.abs().max() > 1e-3
    even = torch.zeros(3, 2, 3, requires_grad=True)
    consistency_loss(even.log_softmax(-1)).backward()
    assert (even.grad.abs() < 1e-7).all()                                       # where all agree there is nothing to gain
    pieces = torch.tensor([[1.], [2], [4]], requires_grad=True)
    loss = consistency_loss(torch.zeros(3, 1, 2).log_softmax(-1), pieces, weight=.5)
    loss.backward()
    assert np.isclose(loss.item(), .5 * np.var([1, 2, 4])) and pieces.grad[0] < 0 < pieces.grad[2]


@pytest.mark.parametrize("seed", range(3))
def test_letters_go_back_to_their_alternatives(seed):
    occ = market(seed)
    order = slot_order(occ, seed)
    letters = np.random.default_rng(seed).normal(size=order.shape).astype(np.float32)
    p, _ = over_alternatives(occ, letters, np.zeros((*order.shape, 20), np.float32), order)
    assert np.allclose(over_set(torch.from_numpy(letters), torch.from_numpy(order), occ.mask.shape[1]).exp(), p, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_another_order_is_the_same_market(seed):
    occ = market(seed)
    some = occ.replace(price=np.arange(occ.mask.shape[1]) + 1.)                 # a what-if goes along
    other, went = shuffled(some, seed)
    assert (np.sort(went, 1) == np.arange(went.shape[1])).all() and (other.mask == some.mask).all()
    for name in ("product", "price", "popularity", "own_share"):
        assert np.array_equal(np.take_along_axis(other.alternative(name), went, 1)[occ.mask], some.alternative(name)[occ.mask], equal_nan=True)
    assert (chosen_product(other) == chosen_product(some)).all() and (chosen_product(other.whole()) == chosen_product(some.whole())).all()
    assert any((shuffled(some, s)[1] != went).any() for s in range(9))
    for rival in (Dirichlet(), Uniform()): assert np.allclose(perturbed(rival, occ, "order", seed).choice, rival.predict(occ).choice, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_prices_move_less_than_is_noticed(seed):
    occ, before = market(seed), market(seed).price.copy()
    moved = jittered(occ, seed)
    assert np.array_equal(np.isnan(moved.price), np.isnan(before)) and np.array_equal(occ.price, before, equal_nan=True)
    if np.isfinite(before).any():
        change = np.abs(moved.price / before - 1)
        assert np.nanmax(change) <= JND and np.nanmean(change) > JND / 3
    asked = occ.replace(price=before * 2)
    assert np.array_equal(jittered(occ, seed, 0.).price, before, equal_nan=True) and not (np.nan_to_num(np.abs(jittered(asked, seed).price / (before * 2) - 1)) > JND).any()
    with pytest.raises(ValueError, match="share of the price"): jittered(occ, 0, 1.5)


def test_a_number_becomes_its_neighbour_at_most():
    moved = 0
    for seed in range(8):
        occ = market(seed, 60)
        a, b = render(occ), render(reworded(occ, seed))
        assert (a.offsets == b.offsets).all()
        some = np.array([WORDS[t].split(":")[0] in NUMBERS.values() and ":" in WORDS[t] and "?" not in WORDS[t] for t in a.ids])
        step = np.abs(b.ids.astype(int) - a.ids)
        assert step[some].max(initial=0) <= 1
        assert all(WORDS[t].startswith("worth") for t in a.ids[~some & (step > 0)])     # the guess is made from the same numbers
        moved += step[some].sum()
    assert moved > 20


def test_disagreement_of_a_language_model(model):
    occ = market(5)
    table, seed = disagreement(model, occ, views=3), model.seed
    assert list(table.index) == ["order", "price", "numbers", "all"] and (table >= 0).all().all() and (table.jsd <= np.log(3)).all() and (table.spread <= 1).all() and (table.changed <= 1).all()
    assert table.jsd["order"] > 1e-6 and table.quantity["order"] > 0 and model.seed == seed
    assert table.equals(disagreement(model, occ, views=3)) and not table.equals(disagreement(model, occ, views=3, seed=5))
    one = model.predict(occ).choice
    views = np.stack([one, *(perturbed(model, occ, "order", v).choice for v in (1, 2))])
    logp = torch.from_numpy(np.where(occ.mask, np.log(np.maximum(views, 1e-30)), -np.inf))
    assert np.isclose(table.jsd["order"], consistency_loss(logp), atol=1e-6)
    assert np.isclose(table.spread["order"], (views.max(0) - views.min(0))[occ.mask].mean())


def test_views_are_read_with_gradient_as_the_model_answers(model):
    occ = market(5)
    for seen, seed in ((occ, 0), (occ.replace(price=occ.price * .9), 3)):              # a what-if is read apart
        logp, pieces = read_view(model.lm.model, packs(seen, seed=seed), occ.mask.shape[1])
        p = LMChoice(model.lm, seed=seed).predict(seen)
        assert np.allclose(logp.exp().detach(), p.choice, atol=1e-4) and np.allclose(pieces.detach(), (p.choice * p.expected_quantity()).sum(1), atol=1e-3) and logp.requires_grad


def test_some_steps_lower_the_disagreement(model):
    shown, fresh, net = [market(k, 15) for k in (1, 2, 3, 4)], market(5), deepcopy(model.lm.model)
    lm, best = LM(net, None, "taught", model.lm.card), torch.optim.Adam(net.parameters(), lr=.005)
    wobble = lambda: disagreement(LMChoice(lm), fresh, 3, ["order"]).jsd["order"]
    before = wobble()
    for step in range(24):
        occ = shown[step % 4]
        views = [read_view(net, packs(occ, seed=2 * step + v), occ.mask.shape[1]) for v in range(2)]
        consistency_loss(*map(torch.stack, zip(*views))).backward()
        best.step(); best.zero_grad()
    assert wobble() < .5 * before


def test_several_answers_agree_better(model):
    occ = market(0, 15)
    jsd = lambda m: disagreement(m, occ, 3, ["order"]).jsd["order"]
    one = jsd(model)
    assert 1e-9 < jsd(LMChoice(model.lm, orders=4)) < .6 * one and 1e-9 < jsd(SeveralAnswers(model, 4, "order")) < .6 * one
    mean = np.mean([perturbed(model, occ, "all", k).choice for k in range(3)], axis=0)
    assert np.allclose(SeveralAnswers(model, 3).predict(occ).choice, mean)
    with pytest.raises(ValueError, match="one answer"): SeveralAnswers(model, 0)


def test_disagreement_of_others():
    occ = market(5)
    table = disagreement(Dirichlet(), occ)
    assert table.jsd["order"] < 1e-12 and table.changed["order"] == 0 and table.jsd["price"] < 1e-12 and table.jsd["numbers"] > 0 and table.quantity.isna().all()
    assert disagreement(LastPurchase(), occ, perturbations=["price"]).jsd["price"] < 1e-12
    with pytest.raises(ValueError, match="two views"): disagreement(Uniform(), occ, views=1)
    with pytest.raises(ValueError, match="unknown perturbation"): perturbed(Uniform(), occ, "wording", 1)
