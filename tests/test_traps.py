"leaks() names the sorted panels and the paid prices of the real sources without being told, and finds nothing in honest simulated ones."
import os
from pathlib import Path

import numpy as np, pandas as pd, pytest

from malles.market import Market
from malles.populations import simulate_population
from malles.traps import leaks

DATA = Path(os.environ.get("MALLES_DATA", Path(__file__).parent.parent.parent/"shared"/"data"))
# market: (sorted by its outcome, which prices a headline row may use)
KNOWN = {"panels/catsup": (False, "blind"), "panels/ketchup": (True, "given"), "panels/tuna": (True, "blind"), "panels/margarine": (False, "given"), "panels/detergent": (False, "blind"), "tafeng": (False, "earlier")}


@pytest.mark.parametrize("folder", KNOWN)
def test_real_traps_are_named(folder):
    if not (DATA/folder).is_dir(): pytest.skip(f"needs the development data in {DATA.name} (MALLES_DATA)")
    found = leaks(Market.read(DATA/folder))
    assert (not found.ordered, found.prices) == KNOWN[folder], found


@pytest.mark.parametrize("seed", range(8))
def test_honest_markets_are_not_accused(seed):
    market, _ = simulate_population(150, categories=2, trade=1, weeks=30, seed=seed)
    assert not leaks(market).table.found.any()


@pytest.mark.parametrize("seed", range(4))
def test_spoiled_markets_are(seed):
    market, _ = simulate_population(150, categories=2, trade=0, weeks=30, seed=seed)
    ch = market.choices
    rng = np.random.default_rng(seed)
    coupon = ch.assign(price=np.where(ch.chosen & (rng.random(len(ch)) < .08), (ch.price * .9).round(2) + .003, ch.price))
    assert leaks(Market.from_frames("coupons", choices=coupon)).prices == "blind"
    bought = ch[ch.chosen].set_index("occasion_id").product_id
    order = pd.DataFrame(dict(customer=ch.customer_id, category=ch.category, product=ch.occasion_id.map(bought), occasion=ch.occasion_id)).sort_values(["customer", "category", "product"], kind="stable")
    rank = order.drop_duplicates("occasion").reset_index(drop=True).reset_index().set_index("occasion")["index"]
    assert not leaks(Market.from_frames("sorted", choices=ch.assign(time=ch.occasion_id.map(rank)))).ordered
