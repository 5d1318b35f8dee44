"Published estimates, reproduced to their printed digits by the project's own logit; and known tastes, recovered without any data."
import os, pathlib
import numpy as np, pandas as pd, pytest
from malles.logit import fit_logit, logit_loss

DATA = pathlib.Path(os.environ.get("MALLES_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))

def table(path):
    if not (DATA / path).exists(): pytest.skip(f"{DATA / path} is not here: set MALLES_DATA to the folder of the open data sets")
    return pd.read_parquet(DATA / path)

def padded(choices, columns):
    "Choice rows as arrays: X (n, J, K), mask (n, J), chosen (n,)."
    choices = choices.sort_values(["occasion_id", "product_id"], kind="stable")
    row, pos = pd.factorize(choices.occasion_id)[0], choices.groupby("occasion_id").cumcount().to_numpy()
    X, mask = np.zeros((row.max() + 1, pos.max() + 1, len(columns))), np.zeros((row.max() + 1, pos.max() + 1), bool)
    X[row, pos], mask[row, pos] = choices[columns].astype(float), True
    chosen, bought = np.zeros(len(X), int), choices.chosen.to_numpy()
    chosen[row[bought]] = pos[bought]
    return X, mask, chosen

def estimates(choices, columns):
    fit = fit_logit(*padded(choices, columns), names=columns)
    return fit.loglik, dict(zip(columns, fit.coefficient))

def printed(value, text):
    "Does the value, rounded to as many digits, read like the printed one?"
    return f"{value:.{len(text.split('.')[1])}f}".replace("-0.", "-.").removeprefix("0") == text

def check(found, expected):
    for name, text in expected.items(): assert printed(found[name], text), f"{name}: {found[name]:.6f}, printed {text}"

def test_electricity():
    c = table("domains/electricity/choices.parquet").assign(cents=lambda d: 100 * d.price.fillna(0))
    columns = ["cents", "contract_years", "local", "well_known", "time_of_day_rate", "seasonal_rate"]
    loglik, found = estimates(c, columns)
    assert printed(loglik, "-4958.649")
    check(found, dict(zip(columns, "-.6252 -.1083 1.4422 .9955 -5.4628 -5.8400".split())))

def test_swissmetro():
    c = table("domains/swissmetro/choices.parquet").merge(table("domains/swissmetro/customers.parquet"), on="customer_id")
    c = c[c.purpose.isin([1, 3])].assign(cost=lambda d: d.marginal_cost / 100, time=lambda d: d.travel_time / 100,
                                         car=lambda d: d.product_id == "car", train=lambda d: d.product_id == "train")
    assert c.occasion_id.nunique() == 6768
    loglik, found = estimates(c, ["cost", "time", "car", "train"])
    assert printed(loglik, "-5331.252")
    check(found, dict(cost="-1.0838", time="-1.2779", car="-.1546", train="-.7012"))

def test_heating():
    c = table("domains/heating/choices.parquet")
    loglik, found = estimates(c, ["price", "operating_cost"])
    assert printed(loglik, "-1095.237")
    check(found, dict(price="-.0062", operating_cost="-.0046"))
    systems = list(c.product_id.unique()[1:])
    for s in systems: c[s] = c.product_id == s
    assert printed(estimates(c, ["price", "operating_cost", *systems])[0], "-1008.229")

def test_modecanada():
    c = table("domains/modecanada/choices.parquet").merge(table("domains/modecanada/customers.parquet"), on="customer_id")
    c = c[c.groupby("occasion_id").product_id.transform("size") == 4].copy()
    assert c.occasion_id.nunique() == 2779
    columns = ["price", "frequency", "out_vehicle_time"]
    for mode in ("train", "air", "bus", "car"):
        own = c.product_id == mode
        c[f"inside_{mode}"] = own * c.in_vehicle_time
        columns.append(f"inside_{mode}")
        if mode != "train":
            c[f"constant_{mode}"], c[f"income_{mode}"] = own, own * c.income
            columns += [f"constant_{mode}", f"income_{mode}"]
    loglik, found = estimates(c, columns)
    assert printed(loglik, "-1874.343")
    check(found, dict(price="-.0333", frequency=".0925", out_vehicle_time="-.0430"))

def test_orange_juice():
    d = table("demand/orange_juice/demand.parquet")
    d = d[d.brand_name.isin(["Tropicana Premium 64 oz", "Minute Maid 64 oz", "Dominicks 64 oz"])]
    x, y = np.log(d.price.to_numpy()), np.log(d.units.to_numpy())
    slope = lambda *others: np.linalg.lstsq(np.column_stack([x, *others]).astype(float), y, rcond=None)[0][0]
    assert printed(slope(np.ones(len(d))), "-1.6013")
    assert printed(slope(*(d.brand == b for b in d.brand.unique())), "-3.1387")

# without any data: laws of the same functions
def simulated(n=3000, J=4, seed=0, beta=(-2., 1., .5)):
    rng = np.random.default_rng(seed)
    X, mask = rng.normal(size=(n, J, len(beta))), rng.random((n, J)) < .8
    mask[:, :2] = True
    u = np.where(mask, X @ beta + rng.gumbel(size=(n, J)), -np.inf)
    return X, mask, u.argmax(1)

def test_known_tastes_are_recovered_and_intervals_cover():
    inside = []
    for seed in range(20):
        X, mask, chosen = simulated(600, seed=seed)
        fit = fit_logit(X, mask, chosen)
        t = fit.table(X, mask, chosen)
        inside.append(np.abs(t.estimate - [-2, 1, .5]) < 1.96 * t.error)
    assert .85 <= np.mean(inside) <= 1, np.mean(inside)
    assert np.abs(fit_logit(*simulated(20000)).coefficient - [-2, 1, .5]).max() < .06

def test_the_gradient_is_zero_at_the_optimum_and_items_equal_dummies():
    X, mask, chosen = simulated()
    item = np.broadcast_to(np.arange(4), mask.shape)
    a = fit_logit(X, mask, chosen, item=item, ridge=1.)
    assert np.abs(logit_loss(np.r_[a.coefficient, a.constant], X * mask[..., None], mask, chosen, np.where(mask, item, -1), 0.)[1][:3]).max() < 3
    dummies = np.concatenate([X, np.broadcast_to(np.eye(4)[None, :, 1:], (len(X), 4, 3))], 2)
    b, c = fit_logit(dummies, mask, chosen), fit_logit(X, mask, chosen, item=item)
    assert abs(b.loglik - c.loglik) < 1e-3
    assert np.allclose(b.coefficient[3:], c.constant[1:] - c.constant[0], atol=1e-3)

def test_weights_repeat_and_units_do_not_matter():
    X, mask, chosen = simulated(500)
    w = np.random.default_rng(1).integers(1, 4, 500)
    twice = np.repeat(np.arange(500), w)
    a, b = fit_logit(X, mask, chosen, weight=w), fit_logit(X[twice], mask[twice], chosen[twice])
    assert np.allclose(a.coefficient, b.coefficient, atol=1e-4)
    c = fit_logit(X * [1000, 1, .001], mask, chosen, weight=w)
    assert np.allclose(a.coefficient, c.coefficient * [1000, 1, .001], atol=1e-3)
