"Ours meet theirs and theirs sit at our table; dialogues become offers, features and choices."
import numpy as np
import pytest

from malles.bargaining import Dealer, Manufacturer, refused
from malles.dialogues import as_occasions, ending, features, first_half, offers_of, price_grid, prices_in

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
    occasions = as_occasions(table, np.array([True, False]), np.array([.8, np.nan]))
    assert occasions.chosen[1] == 7 and occasions.sizes.tolist() == [8, 8]
    sure = np.zeros((2, 8)); sure[0, occasions.chosen[0]] = 1; sure[1, 7] = 1
    deal, price = ending(sure, table)
    assert deal.tolist() == [1, 0] and abs(price[0] - price_grid(table)[0, occasions.chosen[0]]) < .2
