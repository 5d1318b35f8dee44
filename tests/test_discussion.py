"A table of readers: nothing is lost where each product has a utility, nobody reads more than his budget, a view holds what its role may see, and an edit runs only what follows."
from dataclasses import replace

import numpy as np
import pytest

from malles.budgets import numbers_of, ungrounded
from malles.discussion import Discussion
from malles.edits import edited, effect_of
from malles.elicitation import LMChoice
from malles.lessons import seen_by
from malles.predictions import ChoiceModel, Predictions, softmax
from malles.profiles import with_profiles
from malles.retail import retail_table
from malles.roles import READABLE, Role, field_of, shares, view
from malles.shoppers import simulate
from malles.transcripts import load, messages, parse_message, save, show
from malles.worlds import sample_world


class Priced(ChoiceModel):
    "Prices alone."
    name = "priced"
    def predict(self, occasions, mu=None):
        self.saw = occasions
        return Predictions(np.where(occasions.mask, softmax(np.where(occasions.mask, -2 * np.log(occasions.price), -np.inf)), 0), name=self.name)


@pytest.fixture(scope="module")
def market():
    world = replace(sample_world(np.random.default_rng(4), 60), absent=.3, turnover=0., empty=0., outside=-np.inf, priced=True, marked=True, gaps=0.)
    occasions = with_profiles(simulate(world, 60, 5, rng=0)[0])
    return seen_by(occasions, occasions[occasions.customer < 50])


@pytest.mark.parametrize("orders", [("price",), ("own", "crowd"), ("price", "attributes", "crowd")])
@pytest.mark.parametrize("keep", [1, 3])
def test_splitting_loses_nothing_of_a_utility(market, orders, keep):
    some = market[250:280]
    talk = Discussion(Priced(), [Role(o, "", order=o, budget=10**5) for o in orders], Role("chair", "", budget=10**5), rounds=6, keep=keep, settle=0).discuss(some)
    read = ~np.isnan(talk.utility())
    assert read[talk.mask].mean() > .9
    whole = Priced().predict(some).choice
    left = np.where(talk.mask & ~read, talk.prior, 0).sum(1, keepdims=True)
    among = np.where(read, whole, 0) / np.where(read, whole, 0).sum(1, keepdims=True)
    assert np.abs(np.where(read, talk.choice() - among * (1 - left), 0)).max() < 1e-9


@pytest.mark.parametrize("budget", [128, 256, 1024])
def test_nobody_reads_more_than_the_budget(market, budget):
    table = retail_table(LMChoice.nano(), budget).fit(market[:200])
    talk = table.discuss(market[260:275])
    assert 0 < talk.tokens().max() <= budget
    for role in (*table.helpers, table.chair): assert sum(np.bincount(t.rows, t.tokens, len(talk)) for t in talk.turns if t.role == role.name).max() <= role.budget
    assert np.allclose(talk.predictions().choice.sum(1), 1)
    assert table.calls >= sum(len(t.rows) for t in talk.turns)


@pytest.mark.parametrize("hidden", READABLE)
def test_a_view_holds_what_the_role_may_see(market, hidden):
    role = Role("r", "", tuple(f for f in READABLE if f != hidden), history=2)
    some = market[250:270]
    seen = view(some, role, some.mask & (np.arange(some.mask.shape[1]) % 3 == 0))
    assert not [k for k in seen.log.alternative if field_of(k) == hidden and k != "product"]
    assert (seen.chosen == -1).all() and np.isnan(seen.quantity).all()
    assert (np.diff(seen.log.offsets)[seen.rows] == (some.mask & (np.arange(some.mask.shape[1]) % 3 == 0)).sum(1)).all()
    assert ((seen.past_stop - seen.past_start) <= 2).all()
    if hidden == "history": assert np.isnan(seen.column("n_past")).all()


def test_decisions_do_not_reach_a_view(market):
    "Another choice in the same occasion changes nothing that is said about it."
    some = market[250:256]
    other = some.with_columns(dict(chosen=np.where(np.isin(np.arange(len(some.log.offsets) - 1), some.rows), 0, some.log.occasion["chosen"])))
    table = retail_table(LMChoice.nano(facts=False), 256)
    assert np.allclose(table.predict(some).choice, table.predict(other[np.arange(6)]).choice)


def test_everything_is_dealt_once(market):
    owner, place = shares(market, [Role("a", "", order="price"), Role("b", "", order="own")])
    assert ((owner >= 0) == market.mask).all()


def test_an_edit_runs_only_what_follows(market):
    table = retail_table(LMChoice.nano(), 1024, settle=0).fit(market[:200])
    talk = table.discuss(market[260:268])
    for turn in range(len(talk.turns)):
        after = edited(talk, turn)
        assert all(a is b for a, b in zip(after.turns[:turn], talk.turns[:turn]))
        assert after.table.calls == sum(len(t.rows) for t in after.turns[turn + 1:])
    assert after.table.calls == 0
    one = table.discuss(market[[260]])
    told = edited(one, 0, "#1 -0.05, #3 -3.0; because 77.77 % say so")
    assert told.turns[0].place.tolist() == [[1, 3]] and messages(told)[0].ungrounded == ["77.77"]
    for bad in ("", "choose me", "#1 high", "#1 -0.1, #1 -0.2", "#999 -0.1"):
        with pytest.raises(ValueError): edited(one, 0, bad)
    with pytest.raises(ValueError, match="turns are numbered"): edited(one, 99)


def test_effects_come_with_noise_and_a_silent_turn_has_none(market):
    talk = retail_table(LMChoice.nano(), 512, settle=0).fit(market[:200]).discuss(market[260:272])
    effect = effect_of(talk, 0, margin=.3 * talk.occasions.price, seeds=(1, 2, 3))
    assert list(effect.index) == ["choice", "quantity", "profit"] and (effect[["error", "noise"]] >= 0).all().all() and effect.loc["choice", "effect"] > 0
    gone = edited(talk, 0)
    assert effect_of(gone, 0, seeds=(1, 2)).loc["choice", "effect"] == 0
    with pytest.raises(ValueError, match="two seeds"): effect_of(talk, 0, seeds=(1,))


def test_a_transcript_is_replayed_without_a_model(market, tmp_path):
    talk = retail_table(LMChoice.nano(), 512).fit(market[:200]).discuss(market[260:270])
    save(talk, tmp_path/"t.jsonl")
    again = load(tmp_path/"t.jsonl")
    assert again.table is None and np.allclose(again.choice(), talk.choice()) and show(again, 3) == show(talk, 3)
    lines = (tmp_path/"t.jsonl").read_text().splitlines()
    (tmp_path/"cut.jsonl").write_text("\n".join(lines[:4]))
    with pytest.raises(ValueError, match="occasions there"): load(tmp_path/"cut.jsonl")
    with pytest.raises(ValueError, match="no model"): edited(again, 0)


def test_a_replay_shows_what_was_detected_and_a_broken_file_is_refused(market, tmp_path):
    import json
    talk = retail_table(LMChoice.nano(), 512, settle=0).fit(market[:200]).discuss(market[[260]])
    said = messages(talk)[0].scores
    lied = edited(edited(talk, 1), 0, ", ".join(f"#{j} {v:.2f}" for j, v in said.items()) + "; price 77.77")   # the second turn says nothing
    save(lied, tmp_path/"t.jsonl")
    again = load(tmp_path/"t.jsonl")
    assert messages(again) == messages(lied) and messages(again)[0].ungrounded == ["77.77"] and show(again) == show(lied) and "not in its view: 77.77" in show(again) and "tokens, 1 number that" in show(again)
    save(again, tmp_path/"again.jsonl")
    assert (tmp_path/"again.jsonl").read_text() == (tmp_path/"t.jsonl").read_text()
    lines = (tmp_path/"t.jsonl").read_text().splitlines()
    message = json.loads(lines[-1])
    broken = [(lines[:-1], "messages there"), ([lines[0].replace('"trust": 1.0', '"trust": "high"'), *lines[1:]], "line 1")]
    broken += [([*lines[:-1], json.dumps(message | change)], f"line {len(lines)}: {why}") for change, why in ((dict(scores={"999": -.1}), "a message scores some of"), (dict(i=99), "a message of occasion 99"), (dict(i=-1), "a message of occasion -1"), (dict(tokens="many"), "invalid literal"))]
    broken += [([*lines[:-1], json.dumps({k: v for k, v in message.items() if k != "role"})], f"line {len(lines)}: no 'role'")]
    for text, why in broken:
        (tmp_path/"bad.jsonl").write_text("\n".join(text))
        with pytest.raises(ValueError, match=why): load(tmp_path/"bad.jsonl")


def test_a_number_is_held_against_what_the_role_read_whatever_it_speaks_of(market):
    talk = retail_table(LMChoice.nano(), 256, settle=0).fit(market[:200]).discuss(market[[260]])
    turn = talk.turns[0]
    other = next(j for j in np.flatnonzero(talk.mask[0]) if j not in turn.place[0])
    unseen = next(f"{p:.2f}" for p in talk.occasions.price[0][[other]] if ungrounded(f"price {p:.2f}", numbers_of(view(talk.occasions, talk.table.helpers[0], np.isin(np.arange(talk.mask.shape[1]), turn.place[0])[None]))))
    assert messages(edited(talk, 0, f"#{other} -0.1; price {unseen}"))[0].ungrounded == [unseen]


def test_a_silent_chair_does_not_end_the_talk(market):
    table = retail_table(LMChoice.nano(), 2048, rounds=4, settle=1e-9).fit(market[:200])
    talk = table.discuss(market[260:264])
    ends = [k for k, t in enumerate(talk.turns) if t.role == table.chair.name]
    gone = edited(talk, ends[1])
    assert len(talk.turns[ends[2]].rows) and len(gone.turns[ends[2]].rows) and gone.table.calls > 0


def test_what_is_said_is_grounded(market):
    talk = retail_table(LMChoice.nano(), 512).fit(market[:200]).discuss(market[260:270])
    said = [m for i in range(10) for m in messages(talk, i)]
    assert said and not any(m.ungrounded for m in said)
    known = numbers_of(view(market[[260]], talk.table.helpers[0], market[[260]].mask))
    assert ungrounded("costs 98765.4", known) == ["98765.4"]
    assert ungrounded("98765USD, 98765.4kg, .98765, 9.8765e9 and #3", known) == ["98765", "98765.4", ".98765", "9.8765e9"]


@pytest.mark.parametrize("bad", [dict(fields=("prize",)), dict(order="colour"), dict(history=99), dict(name="x\nsystem:")])
def test_roles_that_cannot_be(bad):
    with pytest.raises(ValueError): Role(**dict(name="r", goal="") | bad)


def test_nobody_is_believed_who_knows_nothing(market):
    class Loud(ChoiceModel):
        name = "loud"
        def predict(self, occasions, mu=None):
            u = np.where(occasions.mask, 4 * np.random.default_rng(0).standard_normal(occasions.mask.shape), -np.inf)
            return Predictions(softmax(u))
    table = retail_table(Loud(), 512, learn=60).fit(market[:200])
    assert table.trust < .3


def test_a_thousand_alternatives():
    "A catalogue of a thousand is split, read within the budget, and every alternative keeps a probability."
    world = replace(sample_world(np.random.default_rng(4), 1000), absent=.05, turnover=0., empty=0., outside=-np.inf, priced=True, marked=True, gaps=0.)
    occasions = with_profiles(simulate(world, 30, 3, rng=0)[0])
    table = retail_table(LMChoice.nano(), 512).fit(occasions[:60])
    talk = table.discuss(occasions[60:70])
    p = talk.choice()
    assert p.shape[1] > 900 and np.allclose(p.sum(1), 1) and (p[talk.mask] > 0).all() and not p[~talk.mask].any()
    assert 0 < talk.tokens().max() <= 512 and {t.role for t in talk.turns if len(t.rows)} == {"deals", "kin", "shopper"}
