"Ours meet theirs and theirs sit at our table; dialogues become offers, features and choices."
import numpy as np
import pytest

from malles.bargaining import Dealer, Manufacturer, refused
from malles.dialogues import as_occasions, ending, features, first_guess, first_half, offers_of, price_grid, prices_in

negmas = pytest.importorskip("negmas", reason="an extra: pip install malles[negotiation]")
from malles.negotiation import Table, conceder, meet, negotiators


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return Table(Dealer(tuple(rng.normal(100, 20, 30).clip(0)), 9., outside=20.), Manufacturer(4., 150., outside=30.))


def test_ours_and_theirs_agree_on_what_stands(table):
    for name, make in negotiators(table).items():
        deal = meet(table, make(table.dealer), conceder(table, table.maker), 30)
        if deal.offer is None: assert deal.dealer == table.dealer.outside
        else: assert not refused(deal.offer, table.dealer, table.maker) and deal.dealer >= table.dealer.outside - 1e-6 and deal.maker >= table.maker.outside - 1e-6
        assert {b.role for b in deal.bids} <= {"dealer", "manufacturer"}
    twice = [meet(table, conceder(table, table.dealer), conceder(table, table.maker), 30).offer for _ in range(2)]
    assert twice[0] is not None and twice[0] == twice[1]


def test_several_products_at_their_table():
    rng = np.random.default_rng(0)
    table = Table(Dealer(rng.normal([100, 60, 30], [20, 25, 10], (30, 3)).clip(0), (9., 12., 20.), outside=20.), Manufacturer((4., 8., 9.), 150., outside=30.))
    for name in ("malles, e 1", "boulware"):
        deal = meet(table, negotiators(table)[name](table.dealer), conceder(table, table.maker), 30)
        assert deal.offer.products == (0, 1, 2) and not refused(deal.offer, table.dealer, table.maker)
        assert np.allclose(np.divide(deal.offer.quantity, deal.offer.units), np.divide(table.frame.quantity, table.frame.units))
        assert deal.dealer + deal.maker >= .95 * (table.gain + table.dealer.outside + table.maker.outside)


@pytest.mark.parametrize("text, price, found", [("$45", 60, [45.]), ("1,250 or 1300", 1500, [1250., 1300.]), ("1.5k", 1600, [1500.]), ("2 seats, 2009", 90, []), ("30 bucks", 500, [30.]), ("", 10, []), ("$" * 1000 + "9" * 100_000, 100, [])])
def test_prices(text, price, found): assert prices_in(text, price) == found


def dialogue(texts, agreed=True, price=80.):
    turns = [dict(role=("buyer", "seller")[k % 2], text=t, act="message") for k, t in enumerate(texts)]
    return dict(category="bike", context=dict(list_price=100., buyer_target=70., seller_target=100.), turns=turns, outcome=dict(agreed=agreed, price=price))


def test_only_the_first_half_is_read():
    a, b = dialogue(["50?", "95", "60", "80 done"]), dialogue(["50?", "95", "12 no way", "never 42"])
    assert features([a]).equals(features([b])) and offers_of(a) == [("buyer", 50.), ("seller", 95.)] and len(first_half(dialogue(["x"]))) == 1
    assert "buyer_target" not in features([a], buyer_target=False)


def test_endings_are_choices():
    ds = [dialogue(["50?", "95", "60", "80"]), dialogue(["hi", "hello"], False, None)]
    table = features(ds)
    guess = np.full((2, 8), 1 / 8)
    occasions = as_occasions(table, np.array([True, False]), np.array([.8, np.nan]), guess)
    assert occasions.chosen[1] == 7 and occasions.sizes.tolist() == [8, 8]
    sure = np.zeros((2, 8)); sure[0, occasions.chosen[0]] = 1; sure[1, 7] = 1
    deal, price = ending(sure, table)
    assert deal.tolist() == [1, 0] and abs(price[0] - price_grid(table)[0, occasions.chosen[0]]) < .2


def many(n, rng):
    "Those who name prices close to each other agree, half way."
    out = []
    for k in range(n):
        low, high = sorted(rng.uniform(40, 100, 2))
        out.append(dialogue([f"{low:.0f}?", f"${high:.0f}", "well", "bye"], high - low < 25, (low + high) / 2 if high - low < 25 else None))
    return out, np.array([d["outcome"]["agreed"] for d in out]), np.array([(d["outcome"]["price"] or np.nan) / 100 for d in out])


def test_a_first_guess_learns_without_looking():
    ds, agreed, ratio = many(240, np.random.default_rng(0))
    tables, group, learn = [features(ds, later=k) for k in (0, -1, 1)], np.repeat(np.arange(120), 2), np.arange(240) < 180
    guess, price = first_guess(tables, agreed, ratio, learn, group)
    deal, near = ending(guess, tables[0])
    assert np.abs(near - price)[learn].mean() < .02          # laid out over seven prices and read again
    assert np.allclose(guess.sum(1), 1, atol=1e-4) and deal[~learn][agreed[~learn]].mean() > .75 > .3 > deal[~learn][~agreed[~learn]].mean()
    assert np.abs(price - ratio)[~learn & agreed].mean() < .06
    for other in (np.flatnonzero(~learn), [7]):     # nobody's own ending is in his guess: neither of those asked, nor of those learnt from
        fate, worth = agreed.copy(), ratio.copy()
        fate[other], worth[other] = ~fate[other], np.where(fate[other], np.nan, .5)
        again, priced = first_guess(tables, fate, worth, learn, group)
        assert np.allclose(1 - again[other, -1], deal[other]) and np.allclose(priced[other], price[other])
    assert not np.allclose(1 - again[:, -1], deal) and not np.allclose(priced, price)


def test_a_first_guess_needs_both_endings():
    ds, agreed, ratio = many(20, np.random.default_rng(1))
    with pytest.raises(ValueError, match="two deals and two failures"): first_guess([features(ds)], np.ones(20, bool), np.full(20, .8), np.ones(20, bool), np.arange(20))


def test_cuts_move_with_the_turns():
    d = dialogue(["50?", "95", "60", "80 done"])
    assert [len(first_half(d, k)) for k in (-5, -1, 0, 1, 2)] == [1, 1, 2, 3, 3] and len(first_half(dialogue(["x"]), 1)) == 1
    assert features([d], later=1).buyer_last[0] == .6


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_dialogues_teach_a_chat_model_in_its_own_dialect(kind, tmp_path):
    "The same endings, in the chat template of a hub model."
    from malles.decisions import to_sft
    from malles.lm import LM
    from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer
    from test_posttraining import chat_checkpoint
    dialogues, agreed, ratio = many(12, np.random.default_rng(0))
    lm = LM.from_pretrained(chat_checkpoint(tmp_path/"chat", kind))
    rows = to_sft(as_occasions(features(dialogues), agreed, ratio, np.full((12, 8), 1 / 8)), lm.tokenizer)
    assert len(rows) == 12 and lm.tokenizer.decode(rows[0]["input_ids"]).count("<|im_start|>") == 2 and min(t[0] for t in rows["taken"]) >= 0
    args = ChoiceSFTConfig(str(tmp_path/"work"), learning_rate=3e-3, max_steps=40, logging_steps=10**9, save_strategy="no", disable_tqdm=True, batch_tokens=16384)
    trainer = ChoiceSFTTrainer(lm.model, args, rows, rows, processing_class=lm.tokenizer)
    before = trainer.evaluate()["eval_log_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_log_loss"] < before - .3
