"""What a table of readers is worth: one agent that reads what fits, random shares, or the top by popularity and own past, against a discussion, at the same number of tokens per decision.

    python benchmarks/discussion.py [--tafeng DIR] [--customers 1500] [--decisions 400] [--out benchmarks/results/discussion.json]

nano, no weight moved. Every row reads at most `budget` tokens of compact receipts per decision, all its readers together; what a row has not read keeps its share of the crowd and of the own past,
and how far its readers are trusted against that share is learned from training customers, for all rows alike.
nano reads at most twelve alternatives at once, so that one agent, however large its budget, spends the rest of it on past purchases (as many as fit, at most eight). (e) is not in the paper: one agent on the top by the running guess, which costs no tokens and is what nano leans on.
Settings of the table were chosen on one simulated world of 100 alternatives of another seed.
"""
import argparse, json, os, time
from dataclasses import replace
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np, pandas as pd, torch
from malles.choicesets import build_occasions
from malles.discussion import Discussion
from malles.elicitation import LMChoice
from malles.facts import expected_share
from malles.lessons import seen_by
from malles.market import Market, fold_of
from malles.metrics import clustered_mean
from malles.profiles import with_profiles
from malles.retail import retail_table
from malles.roles import Role
from malles.shoppers import simulate_market
from malles.tastes import guess
from malles.turns import decision, learned_trust
from malles.worlds import TRAITS, sample_world


def simulated(J, seed, households=400):
    rng = np.random.default_rng([seed, J])
    worlds = [replace(sample_world(rng, J), priced=True, marked=True, turnover=0., empty=0., outside=-np.inf, gaps=0.) for _ in range(4)]
    return simulate_market(worlds, rng.standard_normal((households, len(TRAITS))), rng, 6, name=f"simulated-{J}")[0]


def tafeng(folder, J, customers, groups=4):
    "Subclasses in the order of their codes, pooled until J products have sold at least ten times; the first groups with most lines."
    tx = pd.read_parquet(f"{folder}/transactions.parquet", columns=["time", "customer_id", "product_id", "category", "quantity", "unit_price"])
    tx = tx.assign(product_id=tx.category.astype(str) + "." + tx.product_id.astype(str))
    sold = tx.groupby(["category", "product_id"]).size()
    live = (sold >= 10).groupby("category").sum().sort_index()
    total, group, of = 0, 0, {}
    for c, n in live.items():
        of[c], total = f"pool{group}", total + n
        if total >= J: group, total = group + 1, 0
    tx["category"] = tx.category.map(of)
    size = tx.groupby("category").size().sort_values(ascending=False)
    tx = tx[tx.category.isin(size.index[:groups])]
    rng = np.random.default_rng(0)
    who = np.sort(tx.customer_id.astype(str).unique())
    tx = tx[tx.customer_id.astype(str).isin(set(rng.permutation(who)[:customers]))]
    return build_occasions(Market.from_frames(f"tafeng-{J}", transactions=tx), alternatives=J)


def one_agent(model, seen, rank, budget):
    "Utilities of what one reader reads, the first twelve of an order, with as much of the past as leaves room for them; tokens."
    U, tokens, left = np.full(seen.mask.shape, np.nan), np.zeros(len(seen)), np.arange(len(seen))
    for history in (8, 4, 2, 1, 0):
        if not len(left): break
        table = Discussion(model, [Role("none", "")], Role("agent", "", history=history, budget=budget), rounds=1)
        turn = table.turn(seen[left], table.chair, 0, rank[left], np.arange(len(left)))
        read = np.bincount(turn.rows, (turn.place >= 0).sum(1), len(left))
        fits = (read >= np.minimum(12, seen.sizes[left])) | (history == 0)
        U[left[fits]] = turn.spread(turn.score, (len(left), U.shape[1]))[fits]
        tokens[left[fits]] = np.bincount(turn.rows, turn.tokens, len(left))[fits]
        left = left[~fits]
    return U, tokens


def orders(seen, rng):
    return {"a what fits": np.broadcast_to(np.arange(seen.mask.shape[1], dtype=float), seen.mask.shape), "b random share": rng.random(seen.mask.shape),
            "c top by popularity and own past": -expected_share(seen), "e top by running guess": -guess(seen)}


def scores(p, o): return -np.log(np.maximum(p[np.arange(len(o)), o.chosen], 1e-9)), p.argmax(1) == o.chosen


def trial(occasions, budgets, decisions, note):
    occasions = with_profiles(occasions[occasions.chosen >= 0])
    out = fold_of(occasions.market, occasions.customers)[occasions.customer] == 0
    look = seen_by(occasions, occasions[~out])
    train, test = look[~out], look[out]
    rng = np.random.default_rng(0)
    test = test[np.sort(rng.permutation(len(test))[:decisions])]
    model = LMChoice.nano().fit(train[np.sort(rng.permutation(len(train))[:4000])])
    lesson = train[np.sort(rng.permutation(len(train))[:decisions // 2])]      # how far each row's readers are to be trusted is learned here, of training customers
    seen, known = model.read(test), model.read(lesson)
    customer, n, rows = seen.customers[seen.customer], len(seen), []
    for budget in budgets:
        got, trust = {}, {}
        tests, lessons = orders(seen, rng), orders(known, rng)
        for k in tests:
            trust[k] = learned_trust(one_agent(model, known, lessons[k], budget)[0], known.mask, expected_share(known), known.chosen)
            U, tokens = one_agent(model, seen, tests[k], budget)
            got[k] = decision(U, seen.mask, expected_share(seen), trust[k]), tokens
        table = retail_table(model, budget)
        talk = table.discuss(lesson)
        table.trust = trust["d discussion"] = learned_trust(talk.utility(), talk.mask, talk.prior, lesson.chosen)
        talk = table.discuss(test)
        got["d discussion"] = talk.choice(), talk.tokens()
        told = {k: scores(p, seen) for k, (p, _) in got.items()}
        for k, (p, tokens) in sorted(got.items()):
            assert tokens.max() <= budget, (k, tokens.max(), budget)
            loss, hit = told[k]
            gain, low, high, _ = clustered_mean(told["d discussion"][0] - loss, customer)
            hits, hlow, hhigh, _ = clustered_mean(told["d discussion"][1].astype(float) - hit, customer)
            rows.append(dict(market=occasions.market, alternatives=float(seen.sizes.mean()), budget=budget, row=k, n=n, log_loss=loss.mean(), hit_rate=hit.mean(), tokens=tokens.mean(), trust=trust[k],
                             discussion_minus_row=gain, low=low, high=high, hit_difference=hits, hit_low=hlow, hit_high=hhigh))
        note(rows)
    return rows


def main(a):
    torch.set_num_threads(1)
    rows = []
    def note(more):
        with open(a.out, "w") as f: json.dump(rows + more, f, indent=1)
    for J in a.sizes:
        for make in ([lambda: simulated(J, 7)] if a.simulated else []) + ([lambda: tafeng(a.tafeng, J, a.customers)] if a.tafeng else []):
            t = time.time()
            rows += trial(make(), a.budgets, a.decisions, note)
            print(pd.DataFrame(rows[-len(a.budgets) * 5:]).drop(columns=["hit_low", "hit_high"]).round(3).to_string(index=False), f"\n{time.time() - t:.0f} s", flush=True)
    note([])


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--tafeng"); p.add_argument("--customers", type=int, default=1500); p.add_argument("--decisions", type=int, default=400); p.add_argument("--simulated", type=int, default=1)
    p.add_argument("--sizes", nargs="+", type=int, default=[10, 30, 100, 300]); p.add_argument("--budgets", nargs="+", type=int, default=[256, 512, 1024]); p.add_argument("--out", default="benchmarks/results/discussion.json")
    main(p.parse_args())
