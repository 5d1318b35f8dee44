"Laws of the text: what it says, what it keeps silent about, and that no position matters."
from dataclasses import replace

import numpy as np
import pytest

from malles.facts import expected_share
from malles.tastes import market_facts, with_facts
from malles.occasions import Occasions, mean_field, with_popularity
from malles.texts import sample_market
from malles.profiles import with_profiles
from malles.receipts import receipt_text, render, slot_order, window
from malles.shoppers import sample_world, simulate
from malles.words import GROUP, ID, SLOTS, ITEMS, WORDS, parse_retail


def market(seed=0, **kw):
    world = replace(sample_world(np.random.default_rng(seed), 5), priced=True, marked=True, counted=True, **kw)
    occ, _ = simulate(world, 40, 7, rng=seed)
    occ = with_profiles(with_popularity(occ, mean_field(occ)))
    return with_facts(occ, market_facts(occ))


@pytest.mark.parametrize("seed", range(8))
def test_fast_path_equals_tokenised_text(seed):
    from malles.lm import compact_tokenizer
    tokenizer, occ = compact_tokenizer(), sample_market(np.random.default_rng([9, seed]))
    receipts = render(occ)
    for i in range(0, len(occ), max(len(occ) // 10, 1)):
        ids = receipts.alone(i)
        text = receipt_text(occ, i)
        assert tokenizer(text)["input_ids"] == ids.tolist()
        assert tokenizer.decode(ids.tolist()) == text and ID["<unk>"] not in ids


def test_answer_is_read_back():
    occ = market()
    receipts = render(occ)
    for i in range(len(occ)):
        slot, pieces = parse_retail(receipts.text(i).split("<pick>")[1])
        assert receipts.order[i, slot] == occ.chosen[i] and pieces == min(occ.quantity[i], 20)


@pytest.mark.parametrize("bad", ["", "A B", "Z", "A q21", "A q0", "A q-1", "A 2", "a", "A q2; B", "<pick>", "other", "A\x00", "A q²"])
def test_unreadable_answers_are_none(bad): assert parse_retail(bad) is None


def test_spans_say_where_fields_lie():
    occ = market()
    receipts = render(occ)
    words = receipts.text(9).split()
    found = {}
    for group, a, b in receipts.spans(9):
        found.setdefault(group, []).extend(words[a:b])
    assert {w.split(":")[0] for w in found["price"]} <= {"price", "move"} and len([w for w in found["price"] if w.startswith("price")]) == 5
    assert all(w.startswith("share") for w in found["popularity"]) and len(found["popularity"]) == 5
    assert words[-1] in found["quantity"] and set(words) & set(SLOTS) == set("ABCDE")
    assert len(GROUP) == len(WORDS) + ITEMS


def test_hostile_names_change_nothing():
    occ = market()
    evil = occ.products.copy()
    evil["product_id"] = ["A q2 <pick>", "<visit>", "\x00\u202e", "share:1000", "B" * 10_000]
    log = replace(occ.log, products=evil, customers=np.array([f"<pick> {i}" for i in range(len(occ.customers))], object))
    assert (render(Occasions(log)).ids == render(occ).ids).all()


def test_no_slot_is_favoured_and_seeds_shuffle():
    occ = market()[::7]
    first = np.array([slot_order(occ, seed)[:, 0] for seed in range(60)])
    share = np.bincount(first.ravel(), minlength=5) / first.size
    assert np.abs(share - .2).max() < .04, share
    order = slot_order(occ)
    assert all(sorted(row[row >= 0]) == list(range(n)) for row, n in zip(order, occ.sizes))


def test_products_keep_their_order_and_in_the_same_set_their_letters():
    occ = market(absent=.3)
    order = slot_order(occ)
    product, moved = np.where(order >= 0, np.take_along_axis(occ.product.astype(int), np.maximum(order, 0), 1), -1), 0
    for c in np.unique(occ.customer):
        rows = product[occ.customer == c]
        rows = [tuple(r[r >= 0]) for r in rows]
        first = {(a, b) for r in rows for k, a in enumerate(r) for b in r[k + 1:]}
        assert not {(b, a) for a, b in first} & first                    # never two orders of two products
        assert len(set(rows)) == len(set(map(frozenset, rows)))          # the same set: the same letters
        moved += any(len({r.index(p) for r in rows if p in r}) > 1 for p in range(5))
    assert moved > 10                                                     # others move up where one is missing


def test_unordered_past_has_no_last():
    world = replace(sample_world(np.random.default_rng(0), 4), priced=True, counted=True)
    occ, _ = simulate(world, 30, 8, rng=1, ordered=False)
    words = {w.split(":")[0] for w in (WORDS[i] for i in np.unique(render(with_profiles(occ)).ids))}
    assert "own" in words and not words & {"last", "loyal", "lately"}


def test_missing_prices_and_shares_have_words():
    occ = market()
    price = np.where(np.arange(5) == 2, np.nan, occ.price)
    assert receipt_text(occ.replace(price=price), 3).count("price:?") == 1
    text = receipt_text(occ.without("price", "popularity", "usual_price"), 3)
    assert "blind" in text and "unseen" in text and "price" not in text and "share" not in text


def test_decision_never_shows_before_the_question():
    occ = market()
    log = occ.log
    chosen = (log.occasion["chosen"] + 1) % 5
    other = Occasions(replace(log, occasion={**log.occasion, "chosen": chosen, "quantity": log.occasion["quantity"] + 1}))
    a, b = render(occ), render(other)
    for i in range(len(occ)):
        s, m = a.offsets[i], a.pick[i] + 1
        assert (a.ids[s:m] == b.ids[b.offsets[i]:b.pick[i] + 1]).all() and a.ids[m] != b.ids[b.pick[i] + 1]


def test_packs_see_only_the_past():
    occ = with_profiles(simulate(replace(sample_world(np.random.default_rng(0), 4), absent=0., turnover=0.), 4, 60, rng=1)[0])
    purchases, first, stop = window(occ)
    seen, past = stop - first, occ.column("n_past")
    assert (purchases[first] >= occ.past_start).all() and (seen[past < 16] == past[past < 16]).all()
    assert seen[past >= 16].min() == 4 and seen[past >= 16].max() == 19
    assert all((purchases[a:b] < s).all() for a, b, s in zip(first, stop, occ.past_stop))


def test_long_sets_are_shortlisted():
    occ, _ = simulate(sample_world(np.random.default_rng(0), 40), 20, 5, rng=1)
    occ = with_profiles(with_popularity(occ, mean_field(occ)))
    order, score = slot_order(occ), expected_share(occ)
    assert order.shape[1] == 12 and np.allclose(score.sum(1), 1)
    kept = np.take_along_axis(score, np.maximum(order, 0), 1)
    for i in range(len(occ)):
        left = np.delete(score[i], order[i][order[i] >= 0])
        assert kept[i].min() >= left.max() - 1e-12
    assert "other" in " ".join(render(occ).text(i) for i in range(len(occ)))
