"Laws of the attention maps: those of eager attention, with gradient, in any batch; and of the audit's interventions."
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from malles.attention import CODE, ECONOMIC, attention_loss, attention_mass, attention_prior, looking
from malles.attention_audit import KIND, audit, nudge, strike, swap
from malles.elicitation import LMChoice
from malles.lm import LM
from malles.network import Recipe, new_model
from malles.pretraining import export
from malles.profiles import with_profiles
from malles.reading import joined, packs, read_packs
from malles.receipts import render
from malles.shoppers import sample_world, simulate
from malles.texts import sample_market
from malles.validation import rewritten
from malles.words import FIELDS, ID, SLOTS, WORDS

TINY = Recipe(width=32, layers=2, heads=2, inner=64)


@pytest.fixture(scope="module")
def nano(tmp_path_factory): return LMChoice(LM.from_pretrained(export(new_model(TINY), TINY, 0, tmp_path_factory.mktemp("tiny")/"tiny")))


def shaped(kind):
    "A random checkpoint whose query heads share key heads."
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    size = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, initializer_range=.3)
    return (LlamaForCausalLM(LlamaConfig(**size)) if kind == "llama" else Qwen3ForCausalLM(Qwen3Config(**size, head_dim=16))).eval()


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request): return shaped(request.param)


def eager(model, **kw):
    model.set_attn_implementation("eager")
    try: return model(**kw, output_attentions=True)
    finally: model.set_attn_implementation("sdpa")


def padding(side, B=3, T=24):
    there = torch.ones(B, T, dtype=torch.long)
    if side == "right": there[1, 15:] = 0
    if side == "left": there[1, :9] = 0
    return there


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_rows_are_those_of_eager_attention(model, side):
    ids, there, spots = torch.randint(1, 60, (3, 24), generator=torch.Generator().manual_seed(1)), padding(side), torch.tensor([[9, 14, -1], [10, 13, 11], [23, -1, -1]])
    kw = dict(input_ids=ids, attention_mask=None if side == "none" else there)
    with torch.no_grad():
        plain, slow = model(**kw).logits, eager(model, **kw).attentions
        with looking(model, layers=[0, -1]) as look:
            look.ask(torch.arange(3), spots, ids)
            fast = model(**kw).logits
    assert torch.equal(plain, fast) and sorted(look.maps) == [0, 2]
    for layer, rows in look.maps.items():
        for i in range(3):
            for k in range(3):
                if spots[i, k] >= 0: assert torch.allclose(rows[i, :, look.at[i, k]], slow[layer][i, :, spots[i, k]], atol=1e-5)


def test_rows_that_continue_a_cache(model):
    ids = torch.randint(1, 60, (2, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slow = eager(model, input_ids=ids).attentions
        for first in (12, 19):                                     # eight places or a single one after the cached ones
            with looking(model) as look:
                past = model(input_ids=ids[:, :first], use_cache=True).past_key_values
                look.ask(torch.arange(2), torch.full((2, 1), 19 - first), ids[:, first:])
                model(input_ids=ids[:, first:], past_key_values=past)
                assert all(torch.allclose(rows[:, :, 0], slow[layer][:, :, 19], atol=1e-5) for layer, rows in look.maps.items())


def test_heads_are_chosen_and_mass_is_a_sum_over_words(model):
    g = torch.Generator().manual_seed(3)
    ids, codes, spots = torch.randint(1, 60, (2, 16), generator=g), torch.randint(-1, len(ECONOMIC), (2, 16), generator=g), torch.tensor([[5, 9], [15, -1], [7, -1]])
    row = torch.tensor([0, 0, 1])
    with torch.no_grad():
        with looking(model, heads=[1, 3]) as look:
            look.ask(row, spots, ids); model(input_ids=ids)
            mass = look.mass(codes)
        maps = torch.stack(eager(model, input_ids=ids).attentions)[:, :, [1, 3]].mean((0, 2))      # (B, T, T)
    for d in range(3):
        at = spots[d][spots[d] >= 0]
        by_hand = [sum(float(maps[row[d], t, codes[row[d]] == f].sum()) for t in at) / len(at) for f in range(len(ECONOMIC))]
        assert np.allclose(mass[d], by_hand, atol=1e-5)


def gradients(model, loss):
    model.zero_grad(); loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_eager_attention(model):
    g = torch.Generator().manual_seed(4)
    ids, codes, there = torch.randint(1, 60, (3, 24), generator=g), torch.randint(-1, len(ECONOMIC), (3, 24), generator=g), padding("right")
    spots, prior = torch.tensor([[12], [14], [20]]), attention_prior("price .5, profile .3, market .2")
    def mine():
        look.ask(torch.arange(3), spots, ids); model(input_ids=ids, attention_mask=there)
        return attention_loss(look.mass(codes), prior)
    maps = torch.stack(eager(model, input_ids=ids, attention_mask=there).attentions).mean((0, 2))[torch.arange(3), spots[:, 0]]
    slow = gradients(model, attention_loss(torch.stack([(maps * (codes == f)).sum(1) for f in range(len(ECONOMIC))], 1), prior))
    with looking(model) as look:
        fast = gradients(model, mine())
        model.train(); model.gradient_checkpointing_enable(dict(use_reentrant=False))
        again = gradients(model, mine())
        model.gradient_checkpointing_enable(dict(use_reentrant=True)); model.enable_input_require_grads()
        with pytest.raises(ValueError, match="use_reentrant"): mine()
    model.disable_input_require_grads(); model.gradient_checkpointing_disable(); model.eval()
    assert max(float(v.abs().max()) for v in slow.values()) > 1e-3
    for other in (fast, again): assert all(torch.allclose(slow[k], other[k], atol=1e-5) for k in slow) and other.keys() == slow.keys()


def test_nothing_is_left_behind(model):
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"):
        with looking(model): raise RuntimeError("stop")
    assert model.config._attn_implementation == before and not any(hasattr(m, "look") for m in model.modules())
    with pytest.raises(ValueError, match="layers must lie"):
        with looking(model, layers=[3]): pass
    with looking(model) as look:
        with pytest.raises(ValueError, match="ask"): look.mass(torch.zeros(1, 4, dtype=torch.long))
        with pytest.raises(ValueError, match="already"):
            with looking(model): pass
    with pytest.raises(ValueError, match="q_proj"):
        with looking(torch.nn.Linear(2, 2)): pass


def test_a_prior_is_read_from_one_line():
    assert attention_prior("price 3, quantity history 1") == {"price": .75, "quantity": .25}
    assert abs(sum(attention_prior().values()) - 1) < 1e-12 and set(attention_prior()) <= set(ECONOMIC)
    for line, said in (("prize .4", "fields are"), ("price", "expected a field"), ("", "expected a field"), ("price .4,", "expected a field"), ("price much", "no number"),
                       ("price -.1", "zero or more"), ("price nan", "zero or more"), ("price inf", "zero or more"), ("price .4, price .2", "twice"), ("price 0", "above zero")):
        with pytest.raises(ValueError, match=said): attention_prior(line)


def test_the_loss_is_a_divergence_with_the_right_slope():
    prior = attention_prior("price .4, discount .2, quantity .2, market 0")
    g = torch.Generator().manual_seed(5)
    mass = torch.rand(6, len(ECONOMIC), generator=g, dtype=torch.float64) / 10
    mass[0, ECONOMIC.index("discount")] = 0; mass[1] = 0; mass[2, :] = 0; mass[2, 0] = .1
    assert torch.autograd.gradcheck(lambda m: attention_loss(torch.where(mass > 0, m, 0.), prior), mass.clone().requires_grad_())
    m = mass.clone().requires_grad_()
    attention_loss(m, prior).backward()
    assert torch.isfinite(m.grad).all() and attention_loss(mass, prior) > 0
    at = [ECONOMIC.index(f) for f in ("price", "discount", "quantity")]
    same = torch.zeros(1, len(ECONOMIC)); same[0, at] = torch.tensor([.2, .1, .1]); same[0, ECONOMIC.index("profile")] = .3    # profile is free
    assert attention_loss(same, prior).abs() < 1e-6 and attention_loss(mass[1:3], prior) == 0                                    # nothing to compare
    other = same.clone(); other[0, ECONOMIC.index("market")] = .2
    assert attention_loss(other, prior) > 1


def test_a_step_on_the_loss_moves_the_mass_towards_the_prior(model):
    g = torch.Generator().manual_seed(6)
    ids, codes, prior = torch.randint(1, 60, (4, 24), generator=g), torch.randint(-1, len(ECONOMIC), (4, 24), generator=g), attention_prior("price .9, market .1")
    model = deepcopy(model)
    best, shares, losses = torch.optim.SGD(model.parameters(), lr=.01), [], []
    with looking(model, layers=[-1], heads=[0, 2]) as look:
        for _ in range(5):
            look.ask(torch.arange(4), torch.full((4, 1), 23), ids); model(input_ids=ids)
            mass = look.mass(codes)
            loss = attention_loss(mass, prior)
            shares.append(float((mass[:, 0] / (mass[:, 0] + mass[:, ECONOMIC.index("market")])).mean().detach())); losses.append(float(loss.detach()))
            loss.backward(); best.step(); best.zero_grad()
    assert ECONOMIC[0] == "price" and all(b < a for a, b in zip(losses, losses[1:])) and abs(shares[-1] - .9) < abs(shares[0] - .9)


def test_mass_by_words_is_mass_by_spans(nano):
    occ = sample_market(np.random.default_rng([6, 0]))[:20]
    receipts, tiny = render(occ, answer=False), nano.lm.model
    for i in range(0, len(occ), 5):
        ids, spots = torch.from_numpy(receipts.alone(i).astype(int))[None], receipts.spots[i] - receipts.offsets[i] + len(receipts.before(i))
        there = spots[receipts.spots[i] >= 0]
        with torch.no_grad(): maps = torch.stack(eager(tiny, input_ids=ids).attentions).mean((0, 1, 2))[there].mean(0)
        by_hand = [sum(float(maps[a:b].sum()) for field, a, b in receipts.spans(i) if field == f) for f in ECONOMIC]
        one = packs(occ[[i]])
        alone = replace(one, texts=[ids[0].numpy()], text=np.array([0]), visits=[], visit=np.array([-1]), spots=np.where(receipts.spots[[i]] >= 0, spots, -1))
        assert np.allclose(attention_mass(tiny, alone)[0], by_hand, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_joined_texts_answer_as_packs_do(nano, seed):
    occ = sample_market(np.random.default_rng([7, seed]))[:30]
    texts = packs(occ, occ.replace(price=occ.price * 1.1))
    assert (texts.visit >= 0).any() and np.allclose(*(read_packs(nano.lm, t)[0][texts.order >= 0] for t in (texts, joined(texts))), atol=1e-4)
    own = joined(texts)
    for t, s, o in zip(own.text, own.spots, own.order): assert [WORDS[own.texts[t][k]] for k in s[o >= 0]] == list(SLOTS[:(o >= 0).sum()])
    mass = attention_mass(nano.lm.model, texts)
    assert ((0 < mass.sum(1)) & (mass.sum(1) < 1)).all() and nano.lm.model.config._attn_implementation == "sdpa"


def test_interventions_touch_their_field_alone():
    texts = [ids for s in range(4) for ids in packs(sample_market(np.random.default_rng([8, s]))[:20]).texts[:4]]
    pool, rng = np.concatenate(texts), np.random.default_rng(0)
    for f in range(len(ECONOMIC)):
        some = CODE == f
        for ids in texts:
            inside = some[ids]
            gone, new, near = strike(ids, some), swap(ids, some, pool, rng), nudge(ids, some, rng)
            assert (gone[~inside] == ids[~inside]).all() and (gone[inside] == -1).all()
            assert (new[~inside] == ids[~inside]).all() and (KIND[new] == KIND[ids]).all() and (new[KIND[ids] < 0] == ids[KIND[ids] < 0]).all() and np.isin(new, pool).all()
            assert (np.abs(near.astype(int) - ids) == (inside & (KIND[ids] >= 0))).all() and (KIND[near] == KIND[ids]).all()
    price = next(FIELDS[k].words for k in FIELDS if FIELDS[k].group == "price")
    ends = np.array([ID[price[0]], ID[price[-1]]])
    assert (nudge(ends, CODE == 0, rng) == ends + [1, -1]).all()                      # at either end the scale goes on one way only


def test_letters_are_found_again_in_changed_texts():
    for s in range(4):
        occ = sample_market(np.random.default_rng([8, s]))[:20]
        texts = packs(occ, occ.replace(price=occ.price))
        new = rewritten(texts, lambda ids: strike(ids, CODE >= 0))
        for t in (new, joined(new)):
            for k, v, spots in zip(t.text, t.visit, t.spots):
                ids = t.texts[k] if v < 0 else t.visits[v]
                assert [WORDS[w] for w in ids[spots[spots >= 0]]] == list(SLOTS[:(spots >= 0).sum()])


def blind_to(words):
    "An untrained model that says something, and tells none of some fields' words apart."
    model = new_model(TINY)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.mul_(8)
        for word in words:
            ids = [ID[w] for w in FIELDS[word].words]
            table[ids] = table[ids[0]].clone()
    return model.eval()


def test_the_audit_finds_what_a_model_cannot_use(nano):
    markets, choice = [sample_market(np.random.default_rng([9, s]))[:6] for s in range(4)], lambda m: LMChoice(LM(m, None, "blind", nano.lm.card))
    table = audit(choice(blind_to(["price", "move"])), markets, ["price", "profile", "price+guess"])
    assert table.nudge["price"] < 1e-6 < 1e-4 < table.nudge["profile"] and table.swap["price"] < 1e-6 < table.swap["profile"] and table.strike["price"] > 1e-4
    assert np.isclose(table.mass["price+guess"], audit(choice(blind_to(["price", "move"])), markets, ["guess"]).mass["guess"] + table.mass["price"])
    deaf = blind_to([])                                                               # looks, and makes nothing of it
    with torch.no_grad():
        for layer in deaf.model.layers: layer.self_attn.o_proj.weight.zero_()
    table = audit(choice(deaf), markets)
    assert (table.mass[["price", "guess"]] > .05).all() and table[["strike", "swap", "nudge"]].fillna(0).to_numpy().max() < 1e-6


def test_audit_of_edges(nano):
    world = replace(sample_world(np.random.default_rng(0), 15), priced=False, absent=0.)
    occ = with_profiles(simulate(world, 6, 3, rng=1)[0]).without("true_probability")    # fifteen alternatives, no prices, no truth
    table = audit(nano, occ, ["discount", "profile"])
    assert table.told["discount"] == 0 and np.isnan(table.swap["discount"]) and np.isnan(table.mass["discount"]) and table.swap["profile"] > 0
    with pytest.raises(ValueError, match="joined by"): audit(nano, occ, ["prize"])
    with pytest.raises(ValueError, match="no decision"): audit(nano, occ[:0])
