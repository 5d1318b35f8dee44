"A talk over several goods, read by one side: who asks for what, and nothing of what he cannot know."
import copy, time
import numpy as np
import pytest

from malles.dialogues import TREES, crossfits
import malles.dialogues
from malles.asks import asks_in
from malles.divisions import as_occasions, endings, features, first_guess, view, wanted_guess

STOCK = dict(Food=3, Water=3, Firewood=3)


@pytest.mark.parametrize("text, asked", [
    ("3 waters and 1 firewood", [("I", "Water", 3), ("I", "Firewood", 1)]), ("all the food", [("I", "Food", 3)]), ("two packages of water", [("I", "Water", 2)]), ("none of the water", [("I", "Water", 0)]),
    ("I'll give you 3 food for two of your water", [("you", "Food", 3), ("I", "Water", 2)]), ("could you give me one fire wood?", [("I", "Firewood", 1)]), ("2 food for me, 1 food and 3 water for you", [("I", "Food", 2), ("you", "Food", 1), ("you", "Water", 3)]),
    ("If I take 2 food and 1 wood, would that work for you?", [("I", "Food", 2), ("I", "Firewood", 1)]), ("I take all the food and water, you get the rest", [("I", "Food", 3), ("I", "Water", 3), ("you", "Food", 0), ("you", "Water", 0), ("you", "Firewood", 3)]),
    ("you can take the water", [("you", "Water", 3)]), ("I can't give you 3 waters", []), ("I don\u2019t need any of the food", [("I", "Food", 0)]), ("12 food, 4 water", []), ("we are 3, and water is scarce", []), ("3", []), ("", [])])
def test_asks(text, asked): assert asks_in(text, STOCK) == asked


def test_any_goods():
    stock = {"book": 1, "Phone cases": 6, "hat": 2, "AA 4": 5, "\u00e9p\u00e9e": 2}
    assert asks_in("5 phone cases, both hats and the book; you keep one case", stock) == [("I", "Phone cases", 5), ("I", "hat", 2), ("you", "Phone cases", 1)]
    assert asks_in("I get 2 AA 4 and one \u00c9P\u00c9E, three bottles of gin", stock) == [("I", "AA 4", 2), ("I", "\u00e9p\u00e9e", 1)]
    assert asks_in("2 wood", dict(firewood=3, driftwood=3)) == [] and asks_in("2 driftwood", dict(firewood=3, driftwood=3)) == [("I", "driftwood", 2)]
    assert asks_in("3 boxes of (a+)+$ and 2 .*", {"(a+)+$": 3, "b.*": 2}) == [("I", "(a+)+$", 3)]
    with pytest.raises(ValueError, match="a letter or a digit"): asks_in("1", {"!": 2})


@pytest.mark.parametrize("piece", ["3 ", "a", "9", "for 3 ", "2 food ", "2 food for me ", "rest food ", "all,", "food ", "give ", "\u0130\ufb03 ", "\0", "fire ", "none of "])
def test_hostile_text(piece):
    began = time.perf_counter()
    asked = asks_in(piece * (150_000 // len(piece)), STOCK)
    assert time.perf_counter() - began < 5 and all(0 <= k <= 3 for _, _, k in asked)
    assert asks_in("x " * 50_000 + "3 food", STOCK) == []      # bounded


def dialogue(i="d", texts=("3 food please", "you can have 2 food", "I need water most", "ok", "1 food then", "bye"), ann=("Food", "Water", "Firewood"), ben=("Water", "Food", "Firewood"), got=(2, 1, 3), agreed=True):
    allocation = dict(ann=dict(zip(STOCK, got)), ben={g: 3 - k for g, k in zip(STOCK, got)})
    return dict(dialogue_id=i, roles=["ann", "ben"], turns=[dict(role=("ann", "ben")[k % 2], act="message", text=t) for k, t in enumerate(texts)], outcome=dict(agreed=agreed, allocation=allocation if agreed else None),
        context=dict(stock=dict(STOCK), points_per_item=dict(High=5, Medium=4, Low=3), participants={r: dict(value2issue=dict(zip(("High", "Medium", "Low"), w)), personality=dict(svo="proself"), demographics=dict(age=30)) for r, w in dict(ann=ann, ben=ben).items()}))


def test_pieces_are_told_from_where_he_stands():
    t = features([dialogue()])
    assert t.loc[("d", "ann", "Food"), ["my_last", "his_last", "my_asks"]].tolist() == [3, 2, 1] and t.loc[("d", "ben", "Food"), ["my_last", "his_last"]].tolist() == [1, 0]
    assert t.loc[("d", "ann", "Water"), ["my_last", "my_most", "worth", "better"]].isna().tolist() == [True, False, False, False] and t.loc[("d", "ben", "Water"), "his_most"] == 1
    form = dialogue()
    form["turns"][1] = dict(role="ben", act="submit_deal", text="Submit-Deal", deal=dict(you_get=dict(Food=1), they_get=dict(Food=2)))
    assert features([form]).loc[("d", "ann", "Food"), ["his_first", "his_last", "his_asks"]].tolist() == [2, 2, 2]


def test_only_the_first_half_is_read():
    a, b = dialogue(), dialogue()
    for t in b["turns"][3:]: t |= dict(text="I want all the firewood, 0 water", deal=dict(you_get=dict(Food=3)), act="submit_deal")
    assert features([a]).equals(features([b])) and len(view(b, "ann").turns) == 3


@pytest.mark.parametrize("me, he", [("ann", "ben"), ("ben", "ann")])
def test_nothing_of_the_other_leaks(me, he):
    a, b = dialogue(), dialogue(got=(0, 3, 0))
    other = b["context"]["participants"][he]
    other |= dict(value2issue=dict(High="Firewood", Medium="Food", Low="Water"), personality=dict(svo="prosocial"), demographics=dict(age=80))
    b["context"]["participants"][me] |= dict(personality=dict(svo="x"), value2reason=dict(High="secret"))
    assert view(a, me) == view(b, me) and view(a, he) != view(b, he)
    mine = lambda d: features([d]).xs(me, level="camper")
    assert mine(a).equals(mine(b))
    b = copy.deepcopy(a); b["outcome"] = dict(agreed=False, allocation=None)
    assert features([a]).equals(features([b])) and endings([b]).pieces.isna().all()
    assert endings([a]).loc[("d", me)].wanted.idxmax() == a["context"]["participants"][he]["value2issue"]["High"]


def many(n, rng):
    "Each asks for three of what he wants most; he gets it unless the other wants it too."
    out = []
    for i in range(n):
        ann, ben = (tuple(rng.permutation(list(STOCK))) for _ in range(2))
        texts = (f"I need 3 {ann[0]}", f"all the {ben[0]} for me", "hm", "ok", "fine", "bye")
        got = [1 + (g == ann[0]) * 2 if g != ben[0] else (g == ann[0]) * 2 for g in STOCK]
        out.append(dialogue(f"d{i}", texts, ann, ben, [int(min(k, 3)) for k in got], bool(rng.random() < .9)))
    return out


@pytest.fixture
def few_trees(monkeypatch): monkeypatch.setattr(malles.dialogues, "TREES", TREES | dict(num_iterations=40, learning_rate=.1))

@pytest.mark.filterwarnings("ignore:Found `num_iterations`")
def test_a_first_guess_learns_without_looking(few_trees):
    ds = many(100, np.random.default_rng(0))
    table, ended = features(ds), endings(ds)
    ids, pieces, wanted = table.index.get_level_values(0), ended.pieces.to_numpy(), ended.wanted.to_numpy()
    learn, known = ids.isin([f"d{i}" for i in range(70)]), ~np.isnan(pieces)
    guess, wish = first_guess(table, pieces, learn), wanted_guess(table, wanted, learn)
    y = np.where(known, pieces, 0).astype(int)
    hit = (guess.argmax(1) == y)[known & ~learn].mean()
    assert np.allclose(guess.sum(1), 1) and hit > .85 > .6 > np.bincount(y[known]).max() / known.sum()
    best = wish.reshape(-1, 3).argmax(1) == wanted.reshape(-1, 3).argmax(1)
    assert np.allclose(wish.reshape(-1, 3).sum(1), 1) and best[~learn.reshape(-1, 3)[:, 0]].mean() > .9
    for asked in (~learn, ids == ids[learn & known][0]):             # neither those asked nor those learnt from know their own end, nor that of the other side of their table
        again = first_guess(table, np.where(asked, 3 - pieces, pieces), learn)
        assert np.allclose(again[asked], guess[asked]) and np.allclose(wanted_guess(table, wanted ^ asked, learn)[asked], wish[asked])
    assert not np.array_equal(again, guess)
    look = as_occasions(table, pieces, guess)
    assert len(look) == known.sum() and (look.customer == np.arange(len(look))).all() and (look.chosen == pieces[known]).all() and list(look.log.notes.values()) == [(~known).sum() // 6]
    assert np.allclose(np.exp(look.alternative("taste")), guess[known])


@pytest.mark.filterwarnings("ignore:Found `num_iterations`")
def test_stocks_may_differ(few_trees):
    ds = many(40, np.random.default_rng(1))
    for d in ds:
        d["context"]["stock"] = dict(STOCK, Water=1)
        for r in d["roles"]:
            if d["outcome"]["agreed"]: d["outcome"]["allocation"][r]["Water"] = min(d["outcome"]["allocation"][r]["Water"], 1)
    table, ended = features(ds), endings(ds)
    guess = first_guess(table, ended.pieces, np.ones(len(table), bool))
    water = table.good == "Water"
    assert (guess[water, 2:] == 0).all() and (guess[~water] > 0).all() and set(as_occasions(table, ended.pieces, guess).sizes) == {2, 4}
    with pytest.raises(ValueError, match="different numbers"): first_guess(table, np.ones(len(table)), np.ones(len(table), bool))


def test_both_sides_stay_together():
    group, learn = np.repeat(np.arange(20), 6), np.repeat(np.arange(20) < 15, 6)
    judged = np.zeros(len(group), int)
    for who, known in crossfits(learn, group):
        judged += who
        assert not set(group[who]) & set(group[known]) and not (known & ~learn).any()
    assert (judged == 1).all()


def spoilt(*path, value=None):
    d = dialogue("camp-7")
    at = d
    for k in path[:-1]: at = at[k]
    if value is None: del at[path[-1]]
    else: at[path[-1]] = value
    return d


@pytest.mark.parametrize("bad, what, read", [
    (spoilt("roles"), "roles is missing", features), (spoilt("turns"), "turns is missing", features), (spoilt("context", "stock"), "stock is missing", features), (spoilt("context", "participants", "ben"), "ben is missing", features),
    (spoilt("context", "participants", "ann", "value2issue", "High"), "what Food is worth to ann is missing", features), (spoilt("context", "points_per_item", "Low"), "what Firewood is worth", features), (spoilt("turns", 1, "role"), "role is missing", features),
    (spoilt("turns", 0, "role", value="eve"), "'eve', who is missing", features), (spoilt("turns", 0, "deal", value=dict(you_get=dict(Food=7))), "how many Food the form asks for", features), (spoilt("context", "stock", "Food", value="3"), "the stock of Food", features),
    (spoilt("turns", value="hello"), "turns: a list is missing", features), (spoilt("context", "participants", "ben", "value2issue", value=["Food"]), "value2issue: a dict is missing", features), (spoilt("turns", 0, "deal", value=dict(you_get=3)), "you_get: a dict is missing", features), (spoilt("roles", value=["ann"]), "one of two roles is missing", features),
    (spoilt("outcome"), "outcome is missing", endings), (spoilt("outcome", "agreed"), "agreed is missing", endings), (spoilt("outcome", "allocation", "ann"), "ann is missing", endings), (spoilt("outcome", "allocation", "ben", "Water"), "how many Water ben got is missing", endings)])
def test_bad_records(bad, what, read):
    with pytest.raises(ValueError, match=f"dialogue camp-7.*{what}"): read([dialogue("x"), bad])


def test_an_id_is_needed_once():
    with pytest.raises(ValueError, match="dialogue_id is missing"): features([spoilt("dialogue_id")])
    with pytest.raises(ValueError, match="dialogue d comes twice"): features([dialogue(), dialogue()])
