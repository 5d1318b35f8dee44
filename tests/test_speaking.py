"Messages in words: always readable, never of what the role has not seen, paid for, and heard where they belong."
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from malles.discussion import Discussion
from malles.edits import edited
from malles.elicitation import LMChoice
from malles.lessons import PostRecipe, seen_by, with_more_words
from malles.lm import LM
from malles.profiles import with_profiles
from malles.receipts import render
from malles.roles import Role
from malles.shoppers import simulate
from malles.speaking import SpeakingLM, speech, speech_lessons, teach_to_speak
from malles.transcripts import load, messages, save
from malles.turns import FACTORS
from malles.words import ID, SLOTS, WORDS, word
from malles.worlds import sample_world

HELPERS = [Role("habits", "", fields=("history", "crowd"), order="own", history=2), Role("crowd", "", fields=("crowd",))]
SHOPPER = Role("shopper", "", fields=("price",))
NAMES = ["habits", "crowd"]


@pytest.fixture(scope="module")
def occasions():
    world = replace(sample_world(np.random.default_rng(11), 15), absent=.2, turnover=0., empty=0., outside=-np.inf, priced=True, marked=True, gaps=0.)
    occ = with_profiles(simulate(world, 40, 6, rng=0)[0])
    occ = occ[occ.chosen >= 0]
    return seen_by(occ, occ[occ.customer < 30])


@pytest.fixture(scope="module")
def untaught():
    "Nano with words for messages that mean nothing yet."
    lm = LM.from_pretrained("nano")
    lm.card |= dict(speech=dict(helpers=["habits", "crowd"], keep=3, first=len(WORDS)))
    return SpeakingLM(with_more_words(lm, len(speech(["habits", "crowd"], 3))))


def test_what_is_written_can_be_read_and_stands_on_the_desk(occasions, untaught):
    table = Discussion(untaught, HELPERS, SHOPPER, rounds=2, settle=0)
    talk = table.discuss(occasions[100:140])
    assert {t.role for t in talk.turns if t.handed is not None} == {"habits", "crowd"}
    for t in talk.turns:
        if t.handed is None: continue
        for row, (handed, place) in enumerate(zip(t.handed, t.place)):
            there = handed[handed >= 0]
            assert len(set(there)) == len(there) == min(3, (place >= 0).sum()) and set(there) <= set(place)
            assert np.all(handed[len(there):] == -1)
        seen = dict(habits={"own_share", "popularity"}, crowd={"popularity"})[t.role]
        assert {FACTORS[f] for f in t.because if f >= 0} <= seen                # it gives no reason that it cannot see
    assert not any(m.ungrounded for m in messages(talk, 0))
    again = table.discuss(occasions[100:140])
    assert all(np.array_equal(a.handed, b.handed) for a, b in zip(talk.turns, again.turns) if a.handed is not None)


class Decided(SpeakingLM):
    "Writes what it thinks, as a taught one would."
    def write(self, desk, keep):
        p = np.where(desk.mask, LMChoice(self.lm).predict(desk).choice, -1)
        best = np.argsort(-p, 1)[:, :keep]
        best = np.pad(np.where(np.take_along_axis(p, best, 1) >= 0, best, -1), ((0, 0), (0, keep - best.shape[1])), constant_values=-1)
        return best, np.zeros(len(desk), int), (best >= 0).sum(1) + 1


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize("budget", [90, 93, 150, 400])
def test_words_are_paid_for(occasions, untaught, budget, rounds):
    roles = [replace(r, budget=budget) for r in HELPERS]
    for model in (untaught, Decided(untaught.lm)):
        talk = Discussion(model, roles, replace(SHOPPER, budget=budget), rounds=rounds, settle=0).discuss(occasions[100:130])
        assert all(t.tokens.max(initial=0) <= budget // rounds for t in talk.turns)
    talk, quiet = (Discussion(m, roles, replace(SHOPPER, budget=budget), rounds=rounds, settle=0).discuss(occasions[100:130]) for m in (untaught, LMChoice(untaught.lm)))
    same = next(k for k, t in enumerate(talk.turns) if t.role == "habits")
    alike = [i for i, (a, b) in enumerate(zip(talk.turns[same].place, quiet.turns[same].place)) if np.array_equal(a, b)]
    if alike: assert np.all(talk.turns[same].tokens[alike] > quiet.turns[same].tokens[alike])


def test_a_message_is_heard_on_the_line_it_speaks_of_and_nowhere_else(occasions, untaught):
    o = occasions[60:75]
    J = o.mask.shape[1]
    rank, because = np.zeros((2, len(o), J), int), np.full((2, len(o), J), -1)
    rank[0, :, 2], rank[0, :, 4], rank[1, :, 4], because[0, :, 2] = 1, 2, 3, FACTORS.index("popularity")
    rank *= o.mask
    desk, words = untaught.hear(o, NAMES, rank, because)
    receipts = render(desk, False)
    assert np.array_equal(words, (rank > 0).sum((0, 2)))
    for i in range(len(o)):
        text, heard = receipts.text(i).split(), {}
        line = []
        for w in text[text.index("<visit>"):]:
            if w in SLOTS: heard[receipts.order[i, SLOTS.index(w)]] = [x for x in line if x.startswith("item:")]; line = []
            else: line.append(w)
        say = lambda w: word(untaught.code[w])
        expected = {2: [say("habits:1:popularity")], 4: [say("habits:2"), say("crowd:3")]}
        for j, said in heard.items(): assert said == (expected.get(j, []) if o.mask[i, j] else []), (i, j)
    plain = LMChoice(untaught.lm)
    assert np.abs(plain.predict(desk).choice - plain.predict(o).choice).max() > 1e-4      # it reaches the model
    none, words = untaught.hear(o, NAMES, 0 * rank, because)
    assert not words.any() and np.array_equal(plain.predict(none).choice, plain.predict(o).choice)


def test_a_changed_message_changes_what_follows_only(occasions, untaught):
    one = Discussion(untaught, HELPERS, SHOPPER, rounds=1).discuss(occasions[[120]])
    said = messages(one)[0].scores
    turned = ", ".join(f"#{j} {v:.3f}" for j, v in zip(said, reversed(said.values())))
    other = edited(one, 0, turned)
    assert other.table.calls == sum(len(t.rows) for t in other.turns[1:])
    rank, _ = other.table.messages_on(other.turns[:1], np.array([0]), np.array([list(said)]))
    assert rank[0, 0, -1] == 1 and rank[0, 0, 0] == (0 if len(said) > 3 else len(said))   # the listener hears the new ranking


def test_who_was_not_taught_is_refused(untaught):
    with pytest.raises(ValueError, match="has not been taught to speak"): SpeakingLM(LM.from_pretrained("nano"))
    o = with_profiles(simulate(sample_world(np.random.default_rng(0), 5), 10, 3, rng=0)[0])
    for others in (HELPERS[::-1], HELPERS[:1], [replace(HELPERS[0], name="x"), HELPERS[1]]):
        with pytest.raises(ValueError, match="was taught to hear habits, crowd, in this order"): Discussion(untaught, others, SHOPPER, rounds=1).discuss(o)
    with pytest.raises(ValueError, match="hand on 3 alternatives, this table asks for 2"): untaught.write(o, 2)


def test_lessons_say_what_was_thought_and_what_was_bought(occasions, untaught):
    table = Discussion(LMChoice.nano(), HELPERS, SHOPPER, rounds=1, settle=0)
    some = occasions[80:110]
    talk, rows = table.discuss(some), speech_lessons(table, some, untaught)
    assert len(rows) == sum(len(t.rows) for t in talk.turns)
    k = 0
    for t in talk.turns:
        for row in range(len(t.rows)):
            r, said = rows[k], [w for w in rows[k]["labels"] if w >= 0]
            k += 1
            assert r["input_ids"][-len(said) - 1] == ID["<pick>"] and r["category"] == t.role
            there = t.place[row][t.place[row] >= 0]
            chosen = some.chosen[t.rows[row]]
            assert (r["taken"][0] >= 0) == (chosen in there)
            if r["taken"][0] >= 0: assert there[r["order"][r["taken"][0]]] == chosen
            if t.role != "shopper":
                best = there[np.argsort(-t.score[row][:len(there)], kind="stable")][:3]
                assert [there[r["order"][w - ID["A"]]] for w in said[:len(best)]] == list(best)
    Dataset.from_list(rows)


def test_a_taught_table_decides_and_is_read_again(occasions, tmp_path):
    plain = replace(occasions.log, facts=None, alternative={k: v for k, v in occasions.log.alternative.items() if k not in ("taste", "usual_price", "bulk")})
    market = type(occasions)(plain, occasions.rows)
    table = Discussion(LMChoice.nano(), HELPERS, SHOPPER, rounds=1)
    recipe = PostRecipe(epochs=1, said=1.)
    spoken = teach_to_speak(table, market, tmp_path/"m", fold=0, recipe=recipe, most=30, progress=False)
    again = teach_to_speak(table, market, tmp_path/"m", fold=0, recipe=recipe, most=30, progress=False)      # finished: left alone
    from malles.lessons import parts
    with pytest.raises(ValueError, match="has met customers of simulated that fold 1 holds back"): teach_to_speak(spoken, market, tmp_path/"n", fold=1, recipe=recipe, most=30, progress=False)
    out = parts(market, 0)[2]
    p = spoken.discuss(out).choice()
    assert np.allclose(p.sum(1), 1) and np.array_equal(p, again.discuss(out).choice())
    with pytest.raises(ValueError, match="fold 0"): spoken.predict(parts(market, 1)[2])
    save(spoken.discuss(out), tmp_path/"t.jsonl")
    assert np.allclose(load(tmp_path/"t.jsonl").choice(), p)


def test_a_model_with_words_of_its_own_keeps_them(occasions, tmp_path):
    lm = with_more_words(LM.from_pretrained("nano"), 30)
    old, plain = lm.model.get_input_embeddings().weight.detach().clone(), LMChoice(lm).predict(occasions[:9]).choice
    lm.card |= dict(speech=dict(helpers=NAMES, keep=3, first=len(old)))
    speaker = SpeakingLM(with_more_words(lm, len(speech(NAMES, 3)), seed=1))
    now = speaker.lm.model.get_input_embeddings().weight.detach()
    assert len(now) == len(old) + 18 == len(speaker.lm.tokenizer) and np.array_equal(now[:len(old)], old)
    assert np.allclose(LMChoice(speaker.lm).predict(occasions[:9]).choice, plain, atol=1e-6)
    assert sorted(speaker.code.values()) == list(range(len(old), len(now)))
    Discussion(speaker, HELPERS, SHOPPER, rounds=1).discuss(occasions[:9])
