"""Laws of a rule in the place of its teacher; the search itself is tested elsewhere, here a formula is given."""
from dataclasses import replace
import numpy as np
import pytest
from malles import rulechoice
from malles.market import fold_of
from malles.occasions import mean_field, with_popularity
from malles.profiles import with_profiles
from malles.rulebook import RuleBook
from malles.predictions import Predictions, softmax
from malles.rulechoice import RuleChoice, shelf_columns
from malles.shoppers import simulate
from malles.tastes import RunningTastes, with_facts
from malles.trials import open_trial
from malles.worlds import sample_world


@pytest.fixture(scope="module")
def shopping():
    world = replace(sample_world(np.random.default_rng(4), 5), priced=True, marked=True, absent=0.)
    o = with_profiles(simulate(world, 60, 8, rng=1)[0])
    o = with_popularity(o, mean_field(o), counted=o)
    out = fold_of(o.market, o.customers)[o.customer] == 0
    return o[~out], o[out]


@pytest.fixture
def given(monkeypatch):
    "Instead of a search: this formula."
    def at_once(table, target, features, group, signs, **kw): return RuleBook(open_trial(table, target, features, group, signs), (), True).consider("1.0 * crowd + 1.0 * taste + 1.0 * move", source="given")
    monkeypatch.setattr(rulechoice, "search_rules", at_once)


def test_who_is_not_fitted_says_so(shopping):
    with pytest.raises(ValueError, match="call fit"): RuleChoice(RunningTastes()).predict(shopping[1])


def test_doubtful_decisions_are_the_teachers_and_the_others_the_rules(shopping, given):
    train, test = shopping
    student = RuleChoice(RunningTastes()).fit(train)
    teacher, alone = student.teacher.predict(test).choice, student.alone(test)
    assert (alone.argmax(1) == teacher.argmax(1)).mean() > .9, "the formula is the teacher's own sum, but for deals"
    shares = []
    for bound in (-1., .1, .3, 2.):
        student.bound = bound
        p = student.predict(test)
        back = np.array(p.trace) == "teacher"
        assert np.allclose(p.choice[back], teacher[back]) and np.allclose(p.choice[~back], alone[~back]) and np.allclose(p.choice.sum(1), 1) and (p.choice[~test.mask] == 0).all()
        shares.append(back.mean())
    assert shares[0] == 0 and shares[-1] == 1 and sorted(shares) == shares


def test_what_was_asked_is_set_on_other_customers_and_kept_within_the_share(shopping, given):
    student = RuleChoice(RunningTastes(), agree=1., most=.1).fit(shopping[0])
    f = student.fidelity
    assert f["handed_back"] <= .1 + 1e-9 and f["kept_agreement"] >= f["agreement"] > 0


def test_outcomes_are_not_read(shopping, given):
    train, test = shopping
    student = RuleChoice(RunningTastes()).fit(train)
    other = test.log.occasion["chosen"].copy()
    last = test.rows[np.r_[np.diff(test.customer) != 0, True]]            # nobody's past
    other[last] = (other[last] + 1) % np.diff(test.log.offsets)[last]
    again = test.with_columns(dict(chosen=other))
    at = np.isin(test.rows, last)
    assert np.allclose(student.alone(again)[at], student.alone(test)[at])


class WordsForPrices(RunningTastes):
    "To it every other price is a word of its own, liked or not."
    name = "words for prices"
    def predict(self, occasions, mu=None):
        p = super().predict(occasions, mu).choice
        at = np.round(10 * np.nan_to_num(occasions.alternative("price")))
        return Predictions(softmax(np.where(occasions.mask, np.log(np.maximum(p, 1e-9)) + np.where(at % 2 == 0, .8, -.8), -np.inf)), name=self.name)


def test_what_the_teacher_thinks_of_exact_prices_is_learnt(shopping, given):
    dime = lambda o: o.with_columns({}, dict(price=np.round(o.log.alternative["price"], 1)))   # few prices, each seen often
    train, test = (dime(o) for o in shopping)
    student = RuleChoice(WordsForPrices()).fit(train)
    told = student.teacher.predict(test).choice
    agree = lambda q: (q.argmax(1) == told.argmax(1)).mean()
    with_words = agree(student.alone(test))
    prices, value = student.tables["posted"]
    student.tables["posted"] = prices, 0 * value
    assert with_words > .8 and with_words > agree(student.alone(test)) + .15
    assert {"posted"} <= {str(s) for s in student.rule.free_symbols} and student.book.front.source.iloc[-1] == "a linear sum"


def test_a_price_that_was_never_seen_says_nothing(shopping, given):
    train, test = shopping
    student = RuleChoice(RunningTastes()).fit(train)
    strange = test.with_columns({}, dict(price=1000 + test.log.alternative["price"]))
    posted = lambda o: shelf_columns(with_facts(o, student.facts), student.tables, ["posted"])["posted"]
    assert np.abs(posted(test)).max() > 0 and (posted(strange) == 0).all()


def test_too_much_log_loss_hands_decisions_back_as_too_little_agreement_does(shopping, given):
    back = [RuleChoice(RunningTastes(), agree=0., excess=excess, most=.4).fit(shopping[0]).fidelity for excess in (np.inf, -1.)]
    assert back[0]["handed_back"] == 0 and back[1]["handed_back"] > .35


def test_columns_once_computed_decide_the_same(shopping, given):
    train, test = shopping
    student = RuleChoice(RunningTastes()).fit(train)
    assert np.array_equal(student.decide(student.columns(test), test.mask), student.alone(test))
