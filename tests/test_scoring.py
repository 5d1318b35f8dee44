"One text of many visits, one pass per decision, one pass per option and a what-if on a shared past give the same probabilities."
from dataclasses import replace
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent/"benchmarks"))
import scoring

from malles.elicitation import LMChoice
from malles.lm import LM, compact_tokenizer
from malles.network import Recipe, new_model
from malles.occasions import Occasions
from malles.reading import packs, read_packs

SHAPES = dict(llama=lambda: LM(new_model(Recipe()), compact_tokenizer(), "nano's shape", scoring.CARD), qwen3=lambda: scoring.qwen(32, 64, 2, 2))


@pytest.fixture(scope="module", params=SHAPES)
def lm(request): return SHAPES[request.param]()


@pytest.mark.parametrize("J", [4, 12])
def test_packed_equals_a_pass_per_decision_and_per_option(lm, J):
    spent, apart = scoring.side_by_side(lm, J, households=2, repeats=1, few=True, decisions=5)
    assert apart["max_probability_difference"] < 1e-5 and all(t > 0 for t in spent.values())


def test_the_decision_pipeline_reads_the_letter_after_pick(lm):
    _, apart = scoring.side_by_side(lm, 3, households=1, repeats=1, decisions=3)
    assert apart["pipeline_against_letter"] < 1e-5 and apart["max_probability_difference"] < 1e-5
    assert 0 <= apart["generate_unparsable"] <= 1


def largest(a, b): return max(np.abs(a.choice - b.choice).max(), np.abs(a.quantity - b.quantity).max())


def test_what_ifs_on_a_shared_past_equal_predict(lm):
    occ = scoring.market(2, 7, 5)
    first = np.arange(5) == 0
    some = [{}, dict(price=occ.price * 1.2), dict(price=occ.price * np.where(first, .8, 1), display=first), dict(popularity=np.where(first, .6, .1))]
    model = LMChoice(lm, orders=2)
    found = model.what_if(occ, some)
    assert len(found) == len(some) and largest(found[0], model.predict(occ)) < 1e-6
    for s, p in zip(some, found): assert largest(p, model.predict(occ.replace(**s))) < 1e-5
    assert np.abs(found[1].choice - found[0].choice).max() > 1e-4
    assert max(largest(a, b) for a, b in zip(found, model.what_if(occ, some, chunk=7))) < 1e-5


@pytest.mark.parametrize("column", ["prise", "available", "review_score"])
def test_a_what_if_on_what_is_not_read_is_refused(lm, column):
    occ, model = scoring.market(2, 3, 5), LMChoice(lm)
    for asked in (lambda: model.what_if(occ, [{}, {"price": occ.price, column: 1.}]), lambda: model.predict(occ.replace(**{column: 1.}))):
        with pytest.raises(ValueError, match=f"does not read {column}.*it reads price, discount"): asked()


def test_a_what_if_equals_a_pass_over_its_own_text(lm):
    import torch
    occ = scoring.market(3, 8, 4)
    dearer = occ.replace(price=occ.price * 1.3)
    shared = LMChoice(lm).what_if(occ, [dict(price=occ.price * 1.3)])[0].choice
    with torch.inference_mode(): own = np.stack([scoring.per_decision(lm, scoring.own_text(dearer, i)) for i in range(len(occ))])
    assert np.abs(shared - own).max() < 1e-5


def test_a_past_is_read_once_whatever_the_number_of_scenarios(lm):
    occ = scoring.market(3, 8, 4)
    views = [occ.replace(price=occ.price * f) for f in (.8, .9, 1.1)]
    one, three, plain = packs(views[0]), packs(*views), packs(occ)
    assert len(three.texts) == len(one.texts) <= len(plain.texts) and len(three.visits) == 3 * len(one.visits) and not plain.visits
    assert all((a == b).all() for a, b in zip(one.texts, three.texts))
    small, large = (read_packs(lm, three, budget) for budget in (60, 10**5))
    assert max(np.abs(a - b).max() for a, b in zip(small, large)) < 1e-4


def test_what_ifs_without_any_past_or_purchase(lm):
    occ = scoring.market(3, 3, 4)
    log = occ.log
    for chosen in (np.full(len(log.occasion["chosen"]), -1), np.where(np.arange(len(log.occasion["chosen"])) % 2, log.occasion["chosen"], -1)):
        none = Occasions(replace(log, occasion={**log.occasion, "chosen": chosen.astype(np.int32)}), occ.rows)
        model = LMChoice(lm)
        found = model.what_if(none, [{}, dict(price=none.price * 1.1)])
        assert largest(found[0], model.predict(none)) < 1e-6 and largest(found[1], model.predict(none.replace(price=none.price * 1.1))) < 1e-5
        alone = np.stack([model.predict(none[[i]]).choice[0] for i in range(len(none))])
        assert np.abs(found[0].choice - alone).max() < 1e-5
    assert model.what_if(occ, []) == [] and len(model.what_if(occ[:0], [{}])[0]) == 0
