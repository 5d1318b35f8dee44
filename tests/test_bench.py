"The bench: jobs are known by what they depend on, half files are done again, small markets and strange names do no harm."
import signal

import numpy as np, pandas as pd, pytest

from malles.bench import Contender, bench, contender, data_hash
from malles.contenders import contenders_for, model_name
from malles.evaluation import by_category, rows_of, trial_markets
from malles.market import Market
from malles.metrics import quantity_scores
from malles.populations import simulate_population
from malles.predictions import ChoiceModel, Dirichlet, Popularity, Uniform
from malles.report import model_table, write_report

FEW = [contender(m) for m in (Uniform, Popularity, Dirichlet)]


@pytest.fixture(scope="module")
def choices():
    return simulate_population(60, categories=2, trade=0, weeks=25, seed=4)[0].choices


def trials(choices, name="shop"):
    return trial_markets(Market.from_frames(name, choices=choices))


def loss(result):
    return result.rows.query("metric == 'log_loss' and split == 'customer' and category == 'all'").set_index("model")["value"]


def test_renamed_customers_are_other_data(choices, tmp_path):
    "Folds depend on names: old scores must not answer for new ones."
    a = trials(choices)
    b = trials(choices.assign(customer_id="new-" + choices.customer_id))
    c = trials(choices.assign(category=choices.category.str.upper()))
    assert len({data_hash(t[0]) for t in (a, b, c)}) == 3 and data_hash(a[0]) == data_hash(trials(choices)[0])
    first = loss(bench(a, FEW, tmp_path, ("customer",), champion="dirichlet", quiet=True))
    second = loss(bench(b, FEW, tmp_path, ("customer",), champion="dirichlet", quiet=True))
    fresh = loss(bench(b, FEW, tmp_path/"fresh", ("customer",), champion="dirichlet", quiet=True))
    pd.testing.assert_series_equal(second, fresh)
    assert abs(first["popularity"] - second["popularity"]) > 1e-6


def test_half_a_part_is_done_again(choices, tmp_path):
    t = trials(choices)
    first = bench(t, FEW, tmp_path, ("customer",), champion="dirichlet", quiet=True)
    parts = sorted((tmp_path/"parts").glob("*.npz"))
    parts[0].write_bytes(b"")
    parts[1].write_bytes(parts[1].read_bytes()[:50])
    again = bench(t, FEW, tmp_path, ("customer",), champion="dirichlet", quiet=True)
    pd.testing.assert_frame_equal(first.rows, again.rows)


def test_any_name_is_only_a_name(choices, tmp_path):
    "Unicode, markup, receipt words and the word 'all' as names of markets, customers, categories and products."
    names = dict(zip(sorted(choices.category.unique()), ["all", "Käse <script>alert(1)</script>"]))
    odd = choices.assign(category=choices.category.map(names), customer_id="‮ü<b>" + choices.customer_id, occasion_id="Käufe " + choices.occasion_id, product_id="<visit> A q3 " + choices.product_id)
    t = trials(odd, "../<img src=x onerror=y>")
    result = bench(t, FEW, tmp_path, ("customer",), champion="dirichlet", quiet=True)
    assert not result.summary["failed"]
    assert set(result.rows.category) == {"all", "all (category)", names[max(names)]}
    assert len(model_table(result.rows, t[0].name, "customer", {"log_loss": "loss"}, "log_loss")) == 3
    page = write_report(result, tmp_path/"report.html", "t", trials=t).read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "&lt;img" in page
    plain = bench(trials(choices, "../<img src=x onerror=y>"), FEW, tmp_path, ("time",), champion="dirichlet", quiet=True)
    renamed = bench(t, FEW, tmp_path, ("time",), champion="dirichlet", quiet=True)
    value = lambda r: r.rows.query("metric == 'log_loss' and category == 'all'").set_index("model")["value"]
    pd.testing.assert_series_equal(value(plain), value(renamed))


def test_an_empty_fold_is_said(choices, tmp_path):
    one = choices[choices.customer_id == choices.customer_id.iloc[0]]
    result = bench(trials(one), FEW, tmp_path, folds=[0, 1], champion="dirichlet", quiet=True)
    assert "customer" in {s["split"] for s in result.summary["skipped"]} or len(result.rows)
    for t in trials(choices, "quiet"):
        kept = bench([t], FEW, tmp_path, ("customer",), folds=[7], champion="dirichlet", quiet=True)
        assert "falls into fold 7" in kept.summary["skipped"][0]["why"] and not len(kept.rows)


class Breaks(ChoiceModel):
    name = "breaks"
    def fit(self, occasions): raise KeyError("no such thing")


def test_a_model_that_fails_is_a_missing_row_not_a_traceback(choices, tmp_path):
    result = bench(trials(choices), [*FEW, contender(Breaks)], tmp_path, ("customer",), champion="dirichlet", quiet=True)
    assert {f["model"] for f in result.summary["failed"]} == {"breaks"} and "KeyError" in result.summary["failed"][0]["why"]
    assert "breaks" not in set(result.rows.model) and len(loss(result)) == 3


def test_large_quantities_are_not_forgiven(choices, tmp_path):
    t = trials(choices.assign(quantity=np.where(choices.chosen, 200, 0)), "bulk")
    from malles.quantity import QuantityMedian
    result = bench(t, [*FEW, contender(QuantityMedian)], tmp_path, ("customer",), champion="dirichlet", quiet=True)
    rows = result.rows.query("model == 'quantity-median' and category == 'all'").set_index("metric")["value"]
    assert rows["quantity_mae"] == 180 and rows["quantity_wape"] > .8 and rows["quantity_beyond_support"] == 1


def test_a_model_may_not_take_another_s_name(choices, tmp_path):
    import shutil
    from malles.lm import WEIGHTS
    folder = tmp_path/"dirichlet"
    shutil.copytree(WEIGHTS/"nano", folder)
    t = trials(choices)
    with pytest.raises(ValueError, match="rename the folder"): contenders_for(t, str(folder))(t[0])
    with pytest.raises(FileNotFoundError, match="no model"): contenders_for(t, str(tmp_path/"nothing"))
    (folder/"card.json").write_text("{}")
    with pytest.raises(ValueError, match="other words"): contenders_for(t, str(folder))
    (folder/"model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError): contenders_for(t, str(folder))
    assert model_name("nano") == "nano" and model_name(str(folder)) == "dirichlet"


class Listener:
    name = "listener"
    def fit(self, occasions): raise ValueError(f"{signal.getsignal(signal.SIGINT).name}, blocked: {signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])}")


def test_workers_are_deaf_to_ctrl_c(choices, tmp_path):
    "A terminal sends it to all; only the parent answers, and it stops them."
    heard = lambda: (signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, []))
    before = heard()
    result = bench(trials(choices), [Contender("listener", Listener)], tmp_path, ("customer",), workers=2, quiet=True)
    assert {f["why"] for f in result.summary["failed"]} == {"ValueError: SIG_IGN, blocked: True"}  # blocked: from birth
    assert heard() == before


def test_pieces_are_told_apart_by_first_and_later_visits():
    "Errors of 3 where there is no past, of 1 elsewhere, one of them unknown."
    past, wrong = np.array([0, 0, 1, 2, 3, 4]), np.array([3., 3, 1, 1, 1, np.nan])
    rows = pd.DataFrame(rows_of(dict(customer=np.arange(6), n_past=past, quantity_absolute=wrong), market="m")).set_index("metric")
    assert rows.value.to_dict() == dict(quantity_mae=1.8, quantity_mae_first=3, quantity_mae_later=1) and rows.n.to_dict() == dict(quantity_mae=5, quantity_mae_first=2, quantity_mae_later=3)
