"Transfer: what few customers show, regimes and their refusals, shelves that look alike, crossovers."
import json, os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("torch")

from malles.atlas import GENERAL, LEAST, Few, Regime, crossover, most_alike, regime_table, shelf_traits
from malles.covariates import ready
from malles.decisions import to_sft
from malles.elicitation import LMChoice
from malles.lessons import PostRecipe, inner_customers, lessons, parts
from malles.lm import LM
from malles.market import fold_of
from malles.occasions import Occasions, mean_field, with_popularity
from malles.posttraining import posttrain_fold
from malles.predictions import Dirichlet, Popularity, Uniform
from malles.shoppers import sample_world, simulate
from malles.words import WORDS

SHORT = PostRecipe(epochs=1, items=10**9)


def market(k, name="town", households=40):
    o, _ = simulate(replace(sample_world(np.random.default_rng(k), 4), priced=True, marked=True, display=.5, outside=-np.inf), households, 5, rng=k)
    return ready(Occasions(replace(o.log, market=name), o.rows))


@pytest.fixture(scope="module")
def general(tmp_path_factory): return posttrain_fold([market(13, "old one"), market(14, "old two")], None, tmp_path_factory.mktemp("taught")/"others", SHORT, progress=False)


def test_few_customers_are_nested_and_are_the_crowd():
    o = market(5)
    class Spy(Uniform):
        def fit(self, occasions): self.who, self.crowd = set(occasions.customer), occasions.alternative("popularity"); return self
    groups = [Few(Spy(), n).fit(o).model.who for n in (3, 8, 15)]
    assert [len(g) for g in groups] == [3, 8, 15] and groups[0] < groups[1] < groups[2]
    assert Few(Spy()).fit(o).model.who == set(o.customer)
    some = o[np.isin(o.customer, list(groups[1]))]
    mine = Few(Popularity(), 8).fit(o).predict(o).choice
    assert np.allclose(mine, Popularity().fit(some).predict(o, mean_field(some)).choice)
    assert not np.allclose(mine, Few(Popularity()).fit(o).predict(o).choice)


def test_nobody_known_means_no_crowd_and_no_facts():
    o = market(5)
    nobody = Few(Regime("zero-shot"), 0).fit(o).predict(o[:40]).choice
    assert np.allclose(nobody, LMChoice.nano().predict(o.without("popularity")[:40]).choice)
    assert np.allclose(Few(Dirichlet(), 0).fit(o).predict(o[:40]).choice[o[:40].column("n_past") == 0], (o[:40].mask / o[:40].mask.sum(1, keepdims=True))[o[:40].column("n_past") == 0])


def test_a_model_of_all_folds_speaks_of_other_markets_only(general):
    card = json.loads((general/"card.json").read_text())
    assert card["folds"] == {"old one": [], "old two": []} and not any(card["items"].values()) and "customers of fold" not in (general/"README.md").read_text()
    model = LMChoice(LM.from_pretrained(str(general)))
    new = market(9, "new")
    assert np.allclose(model.fit(new).predict(new[:20]).choice.sum(1), 1)
    with pytest.raises(ValueError, match="other markets only"): model.fit(market(3, "old one")).predict(market(3, "old one"))


def test_a_base_must_not_have_met_whom_a_fold_holds_back(general, tmp_path):
    old = market(3, "old one")
    with pytest.raises(ValueError, match="has met customers of old one that fold 2 holds back"): posttrain_fold([old], 2, tmp_path/"a", SHORT, str(general), progress=False)
    again = posttrain_fold([old], None, tmp_path/"b", SHORT, str(general), progress=False)      # all of them once more: nobody is betrayed
    assert json.loads((again/"card.json").read_text())["folds"] == {"old one": [], "old two": []}
    worded = posttrain_fold([market(9, "new")], 0, tmp_path/"c", PostRecipe(epochs=1, items=5, tags=10**9), str(general), progress=False)
    assert json.loads((worded/"card.json").read_text())["folds"]["new"] == 0
    with pytest.raises(ValueError, match="has words for the products of new already"): posttrain_fold([market(5, "newer")], 0, tmp_path/"d", SHORT, str(worded), progress=False)


def test_regimes_and_what_they_refuse(general):
    with pytest.raises(ValueError, match="no checkpoint of others"): Regime("others")
    with pytest.raises(ValueError, match="got 'most'"): Regime("most", general)
    new = market(9, "new")
    first, second = (LMChoice(LM.from_pretrained(f)).fit(new).predict(new[:20]).choice for f in ("nano", str(general)))
    assert np.allclose(Regime("zero-shot", general).fit(new).predict(new[:20]).choice, first) and np.allclose(Regime("others", general).fit(new).predict(new[:20]).choice, second) and not np.allclose(first, second)
    p = {r: Regime(r, general, recipe=SHORT).fit(new).predict(new[:20]).choice for r in ("itself", "all")}
    assert not np.allclose(p["itself"], first) and not np.allclose(p["all"], second) and not np.allclose(p["itself"], p["all"]), "learning from its own customers changed nothing"
    assert np.array_equal(p["all"], Regime("all", general, recipe=SHORT).fit(new).predict(new[:20]).choice), "not the same twice"


def test_auto_takes_what_its_own_trials_say(general):
    new = market(9, "new")
    auto = Regime("auto", general, recipe=SHORT).fit(new)
    assert set(auto.grid.regime) == {"zero-shot", "others", "itself", "all"} and auto.regime == auto.grid.regime[auto.grid.log_loss.idxmin()]
    assert np.allclose(auto.predict(new[:10]).choice, Regime(auto.regime, general, recipe=SHORT).fit(new).predict(new[:10]).choice)
    few = new[np.isin(new.customer, np.unique(new.customer)[:LEAST - 1])]
    assert Regime("auto", general).fit(few).regime == "others" and Regime("auto").fit(few).regime == "zero-shot"


def test_strange_texts_are_seen_by_somebody_who_knows_few_or_none(monkeypatch):
    o = market(5)
    seen, inner, _ = parts(o)
    words = lambda rows: {WORDS[i] for r in rows for i in r["input_ids"] if WORDS[i].split(":")[0] in ("crowd", "repeat", "share")}
    def strange(k):
        monkeypatch.setattr("malles.lessons.FEW", (k,))
        train, _ = lessons([seen], [inner], {seen.market: {}}, replace(GENERAL, epochs=2, strange=.5))
        plain, _ = lessons([seen], [inner], {seen.market: {}}, replace(GENERAL, epochs=2, strange=0.))
        assert sum(len(r["taken"]) for r in train) == 2 * len(seen)
        same = {tuple(r["input_ids"]) for r in plain}
        return [r for r in train if tuple(r["input_ids"]) not in same]
    nobody, three = strange(0), strange(3)
    assert words(to_sft(seen)) and not words(nobody) and sum(len(r["taken"]) for r in nobody) == len(seen)
    crowd = {w for w in words(three) if w.startswith("crowd")}
    assert crowd and max(int(w.split(":")[1]) for w in crowd) < max(int(w.split(":")[1]) for w in words(to_sft(seen)) if w.startswith("crowd")), "three customers are as large a crowd as all"


def test_two_customers_are_set_aside_where_there_are_few():
    o = market(5)
    for n in (3, 5, 12):
        some = o[np.isin(o.customer, np.unique(o.customer)[:n])]
        inner = inner_customers(some)[np.unique(some.customer)]
        assert 2 <= inner.sum() < n
    with pytest.raises(ValueError, match="too few customers"): parts(o[o.customer == o.customer[0]])


def test_shelves_are_alike_by_what_stands_on_them():
    a, far = market(5, "a"), market(5, "far")
    far = Occasions(replace(far.log, alternative={**far.log.alternative, "price": far.log.alternative["price"]**3}), far.rows)
    twin, other = market(5, "twin"), market(7, "other")
    assert [o.market for o in most_alike(a, [far, twin, other], 1)] == ["twin"] == [o.market for o in most_alike(a, [twin, other, far], 1)]
    assert sum(len(np.unique(o.category)) for o in most_alike(a, [far, twin, other], 2)) == 2
    blind = shelf_traits(a.without("price", "discount", "display", "feature"))
    assert blind.alternatives.notna().all() and blind[["apart", "restless", "deals", "shown"]].isna().all(axis=None)
    assert most_alike(a.without("price"), [twin], 1)[0].market == "twin"


def test_crossovers():
    rows = pd.DataFrame([dict(model=f"{m}, {n}", category="c", metric="log_loss", value=v) for m, vs in dict(others=(1., .9, .8), itself=(np.nan, .95, .75), never=(2., 2., 2.), lucky=(.9, 1., .7)).items() for n, v in zip(("0", "10", "all"), vs) if v == v])
    table = regime_table(rows)
    assert list(table) == ["0", "10", "all"] and crossover(table) == dict(itself="all", never=None, lucky="all")
