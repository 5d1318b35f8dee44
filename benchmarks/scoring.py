"""How quickly a household's decisions are scored, against five other ways to ask the same model, and how the cost grows.

    python benchmarks/scoring.py                                # compare, grow, plot: benchmarks/results/scoring.json and scoring.svg
    python benchmarks/scoring.py --full                         # a million decisions: time and peak memory, benchmarks/results/scoring_full.json
    python benchmarks/scoring.py --full --decisions 100000      # fewer of them
    python benchmarks/scoring.py --threads 2                    # on two cores, which must be idle

All ways read the same receipts in float32 on one core, interleaved, on households of 20 purchases; figures are medians of process
seconds (what an idle core would need; of wall seconds with --threads). Packed: 32 households in one call (20M parameters: 4) (`alone`: one household), from texts to probabilities. Every other
way: the 20 decisions of one household, one after the other.

    packed         read_packs: few texts, each answers several visits (what LMChoice.predict does)
    per_decision   one forward pass per decision over its own text, `yes` read at all of its letters
    per_option     one forward pass per option over its own text up to its letter, `yes` read there
    letter         one forward pass per option over its own text, <pick> and the letter: log-probability of the letter
    generate       greedy generation of two words, read by parse_retail; what cannot be read is counted
    pipeline       transformers' pipeline("decision"), one request at a time: the letter after <pick>

The first three give the same probabilities (max_probability_difference); the last three read another place of the same network. `packed`,
`per_decision` and `per_option` do not count the making of the texts; `..._with_rendering` does, for both sides. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
import argparse, hashlib, json, resource, sys, tempfile, time

import numpy as np
import pandas as pd

from malles.elicitation import LMChoice
from malles.reading import over_alternatives, packs, read_packs
from malles.lm import LM, compact_tokenizer
from malles.network import Recipe, new_model
from malles.occasions import Occasions, mean_field, with_popularity
from malles.profiles import with_profiles
from malles.receipts import render, window
import malles.receipts
from malles.shoppers import sample_world, simulate
from malles.words import ID, SLOTS, WORDS, parse_retail

RESULTS = Path(__file__).parent/"results"
CARD = dict(words=hashlib.sha256(" ".join(WORDS).encode()).hexdigest())


# what is asked

def nano():
    "The shipped weights; while they read other words than this version writes, an untrained model of the same shape."
    lm = LM.from_pretrained("nano")
    try: LMChoice(lm)
    except ValueError: return LM(new_model(Recipe()), compact_tokenizer(), "nano's shape, untrained", CARD)
    return lm


def qwen(hidden=448, inner=1280, layers=8, heads=7):
    "A random Qwen3 with the compact tokenizer; 20 million parameters unless told otherwise."
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(WORDS), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=hidden // heads, max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=.05)
    return LM(Qwen3ForCausalLM(config), compact_tokenizer(), "qwen3", CARD)


def market(households, n, J, seed=0):
    "Occasions as a model reads them, with facts: households that bought exactly n times among J alternatives."
    world = replace(sample_world(np.random.default_rng(seed), J), priced=True, marked=True, counted=True, absent=0.)
    occ, _ = simulate(world, households + households // 2 + 10, n, rng=seed)
    occ = with_profiles(with_popularity(occ, mean_field(occ)))
    seen = LMChoice(LM(new_model(Recipe(width=8, layers=1, heads=1, inner=8)), compact_tokenizer(), "reader", CARD)).fit(occ).read(occ)
    full = np.flatnonzero(np.bincount(seen.customer) == n)[:households]
    assert len(full) == households, f"{len(full)} households with {n} purchases, {households} wanted"
    return seen[np.isin(seen.customer, full)]


# ways to ask

@dataclass(frozen=True)
class Own:
    "The text of one decision: market, the visits in its sight, the visit itself up to <pick>."
    ids:object        # (1, T) tensor
    spots:np.ndarray  # (k,) places of the letters
    order:np.ndarray  # (k,) alternative behind each letter
    J:int             # alternatives

    def over(self, scores):  # (k,) -> (J,)
        "Softmax over the letters, put where the alternatives stand."
        e, p = np.exp(np.asarray(scores, float) - np.max(scores)), np.zeros(self.J)
        p[self.order] = e / e.sum()
        return p


def own_text(occasions, i):
    "Rendered for this decision alone."
    import torch
    one = occasions[[i]]
    (purchases, first, stop), now = window(one), render(one, answer=False)
    past = render(Occasions(one.log, purchases[first[0]:stop[0]])).ids if stop[0] > first[0] else now.ids[:0]
    ids, there = np.concatenate([now.before(0), past, now.ids]).astype(np.int64), now.order[0] >= 0
    return Own(torch.from_numpy(ids)[None], now.spots[0][there] + len(ids) - len(now.ids), now.order[0][there], one.mask.shape[1])


def packed(lm, texts, occasions): return over_alternatives(occasions, *read_packs(lm, texts), texts.order)[0]

def per_decision(lm, own):
    logits = lm.model(input_ids=own.ids, use_cache=False).logits[0]
    return own.over(logits[own.spots, ID["yes"]].numpy())

def per_option(lm, own):
    return own.over([lm.model(input_ids=own.ids[:, :s+1], use_cache=False).logits[0, -1, ID["yes"]].item() for s in own.spots])

def letter(lm, own):
    import torch
    score = lambda k: lm.model(input_ids=torch.cat([own.ids, torch.tensor([[ID[SLOTS[k]]]])], 1), use_cache=False).logits[0, -2].log_softmax(-1)[ID[SLOTS[k]]].item()
    return own.over([score(k) for k in range(len(own.spots))])

def generate(lm, own):
    "What is said, or None; no probabilities."
    import torch
    out = lm.model.generate(input_ids=own.ids, attention_mask=torch.ones_like(own.ids), max_new_tokens=2, do_sample=False, pad_token_id=ID["<pad>"])
    return parse_retail(lm.tokenizer.decode(out[0, own.ids.shape[1]:]), len(own.spots))

def decision_pipeline(lm, folder):
    "The same weights behind transformers' decision pipeline."
    from transformers import DecisionConfig, pipeline
    from transformers.utils import logging
    logging.disable_progress_bar()
    lm.model.save_pretrained(folder); lm.tokenizer.save_pretrained(folder)
    DecisionConfig(labels={"choice": list(SLOTS)}, chat_template="{{ state }}").save_pretrained(folder)
    decide = pipeline("decision", model=str(folder), device="cpu", dtype="float32")
    def ask(own):
        request = {"state": " ".join(WORDS[t] for t in own.ids[0].tolist()), "questions": {"which": {"type": "choice", "criteria": {s: None for s in SLOTS[:len(own.spots)]}}}}
        p, out = decide(request)["which"]["probabilities"], np.zeros(own.J)
        out[own.order] = [p[s] for s in SLOTS[:len(own.spots)]]
        return out
    return ask


# side by side

def clocked(step):
    "Result and seconds: of the process on one core, so that other work on the machine does not count; of the clock on several."
    import torch
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    out = step()
    return out, clock() - start


def side_by_side(lm, J, households=32, repeats=5, few=False, decisions=20):
    "Seconds per decision of every way (medians) and how far their probabilities are apart. few: packed, per decision and per option alone."
    import torch
    many = market(households, decisions, J)
    home = many[:decisions]
    texts, lonely, own = packs(many), packs(home), [own_text(home, i) for i in range(decisions)]
    each = lambda way: lambda: [way(lm, o) for o in own]
    ways = dict(packed=lambda: packed(lm, texts, many), alone=lambda: packed(lm, lonely, home), per_decision=each(per_decision), per_option=each(per_option))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if not few:
            ask = decision_pipeline(lm, folder)
            ways |= dict(letter=each(letter), generate=each(generate), pipeline=lambda: [ask(o) for o in own],
                packed_with_rendering=lambda: packed(lm, packs(many), many), per_decision_with_rendering=lambda: [per_decision(lm, own_text(home, i)) for i in range(decisions)],
                per_option_with_rendering=lambda: [per_option(lm, own_text(home, i)) for i in range(decisions)])
        seconds, said = {k: [] for k in ways}, {}
        for r in range(repeats + 1):
            for k, way in ways.items():
                said[k], t = clocked(way)
                if r: seconds[k].append(t / (len(many) if k.startswith("packed") else decisions))   # the first round warms up
    spent = {k: float(np.median(v)) for k, v in seconds.items()}
    there, gap = home.mask, lambda a, b: float(np.abs(np.stack(said[a])[:decisions] - np.stack(said[b])[:decisions]).max())
    assert (np.stack(said["per_decision"])[~there] == 0).all()
    apart = dict(max_probability_difference=max(gap("packed", k) for k in ("alone", "per_decision", "per_option")))
    if not few: apart |= dict(letter_probability_difference=gap("packed", "letter"), pipeline_probability_difference=gap("packed", "pipeline"),
        pipeline_against_letter=gap("letter", "pipeline"), generate_unparsable=sum(s is None for s in said["generate"]) / decisions)
    return spent, apart


def ratios(spent):
    "How many times longer than packed."
    out = {f"packed_vs_{name}": spent[k] / spent["packed"] for k, name in (("per_option", "per_option"), ("letter", "per_option_letter"), ("per_decision", "per_decision"),
        ("generate", "generate"), ("pipeline", "decision_pipeline")) if k in spent}
    out |= {f"packed_alone_vs_{k}": spent[k] / spent["alone"] for k in ("per_option", "per_decision")}
    out |= {f"packed_vs_{k}_with_rendering": spent[f"{k}_with_rendering"] / spent["packed_with_rendering"] for k in ("per_option", "per_decision") if "packed_with_rendering" in spent}
    return out | dict(decisions_per_second=1 / spent["packed"])


def what_ifs(lm, J=6, households=20, scenarios=10):
    "What-ifs per second on every visit: with the past read once, and by predict on the replaced occasions; and the largest difference."
    occ, model = market(households, 20, J), LMChoice(lm, facts=False)
    some = [dict(price=occ.price * f) for f in np.linspace(.7, 1.3, scenarios)]
    shared, a = clocked(lambda: model.what_if(occ, some))
    plain, b = clocked(lambda: [model.predict(occ.replace(**s)) for s in some])
    (purchases, first, stop), views = window(occ), [occ.replace(**s) for s in some]
    own = [own_text(views[0], i) for i in range(40)]
    import torch
    with torch.inference_mode(): alone, c = clocked(lambda: [per_decision(lm, o) for o in own])
    apart = max(float(np.abs(p.choice - q.choice).max()) for p, q in zip(shared, plain))
    apart = max(apart, float(np.abs(shared[0].choice[:40] - np.stack(alone)).max()))
    n = len(occ) * scenarios
    return dict(what_ifs_per_second=n / a, what_ifs_per_second_one_scenario_at_a_time=n / b, what_ifs_per_second_own_text=40 / c, what_if_difference=apart)


# growth

@contextmanager
def sight(part):
    "Texts of a part of the visits that receipts have: what that costs, not how well nano reads them."
    keep = malles.receipts.STRIDE, malles.receipts.OVERLAP
    malles.receipts.STRIDE, malles.receipts.OVERLAP = (int(k * part) for k in keep)
    try: yield int(sum(keep) * part)
    finally: malles.receipts.STRIDE, malles.receipts.OVERLAP = keep


def growth(lm, quick=False):
    "Milliseconds per decision of packed and of one pass per decision, as four things grow."
    import torch
    rows = []
    def measure(what, value, occ):
        texts, some = packs(occ), np.linspace(0, len(occ) - 1, min(len(occ), 40)).astype(int)
        own = [own_text(occ, i) for i in some]
        with torch.inference_mode():
            for _ in range(1 if quick else 2):
                rows.append((what, value, "packed", 1000 * clocked(lambda: packed(lm, packs(occ), occ))[1] / len(occ)))
                rows.append((what, value, "one pass per decision", 1000 * clocked(lambda: [per_decision(lm, o) for o in own])[1] / len(own)))
    for n in (1, 2, 4, 8, 16, 32): measure("history", n - 1, market(640 // n, n, 6)[n-1::n])       # the last visit only
    for n in (1, 2, 4, 8, 16, 32): measure("visits", n, market(640 // n, n, 6))
    for J in (2, 4, 6, 8, 10, 12): measure("alternatives", J, market(32, 20, J))
    for H in (1, 3, 10, 30, 100, 300): measure("customers", H, market(H, 20, 6))
    for k in (.25, .5, 1):
        with sight(k) as visits: measure("window", visits, market(32, 40, 4))
    table = pd.DataFrame(rows, columns=["what", "value", "way", "ms"])
    return table.groupby(["what", "value", "way"], as_index=False).ms.median()


AXES = dict(visits="purchases of a household, all scored", history="past purchases, last visit scored", alternatives="alternatives on offer", customers="households of 20 purchases",
            window="longest text (visits)")

def growth_chart(table):
    from malles.charts import COLOUR, GREY, altair, styled
    alt = altair()
    def panel(what, log):
        x = alt.X("value:Q", title=AXES[what], scale=alt.Scale(type="log", base=10 if what == "customers" else 2, nice=False) if log else alt.Scale(nice=True, zero=False),
                  axis=alt.Axis(values=sorted(table[table.what == what].value.unique().tolist()), format="d", labelOverlap=False))
        base = alt.Chart(table[table.what == what]).encode(x=x, y=alt.Y("ms:Q", title="milliseconds per decision", scale=alt.Scale(zero=True)),
            color=alt.Color("way:N", scale=alt.Scale(domain=["packed", "one pass per decision"], range=[COLOUR, GREY]), title=None, legend=alt.Legend(orient="top")))
        return (base.mark_line(strokeWidth=2, opacity=.7) + base.mark_point(filled=True, size=55, opacity=1)).properties(width=260, height=180)
    grid = alt.vconcat(alt.hconcat(panel("visits", True), panel("history", False)), alt.hconcat(panel("alternatives", False), panel("customers", True)), alt.hconcat(panel("window", False)))
    return styled(grid, "What a decision costs", "packed counts the making of the texts")


# a million

def full(lm, decisions, J=6, block=1000):
    "Score simulated households block by block: seconds and peak memory."
    memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    world = replace(sample_world(np.random.default_rng(0), J), priced=True, marked=True, counted=True, absent=0.)
    model, mu, done, spent, cpu, start = LMChoice(lm), None, 0, 0., 0., time.perf_counter()
    while done < decisions:
        occ = with_profiles(simulate(world, block, 20, rng=done)[0])
        if mu is None:
            mu = mean_field(occ)
            model.fit(with_popularity(occ, mu))
        occ = occ[:decisions - done]
        a, c = time.perf_counter(), time.process_time()
        p = model.predict(occ, mu).choice
        spent, cpu = spent + time.perf_counter() - a, cpu + time.process_time() - c
        assert np.abs(p.sum(1) - 1).max() < 1e-6
        done += len(occ)
        if done // 50_000 != (done - len(occ)) // 50_000 or done == decisions:
            print(f"{done:>9,} decisions   {spent:8.0f} s ({cpu:.0f} s of the core)   peak memory {memory():6,.0f} MB", flush=True)
    return dict(decisions=done, alternatives=J, seconds_scoring=spent, seconds_core=cpu, seconds_total=time.perf_counter() - start, peak_memory_mb=memory(),
        decisions_per_second=done / spent, decisions_per_second_core=done / cpu)


def plain(x):
    return {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else float(f"{x:.4g}") if isinstance(x, float) else x


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="score --decisions decisions and print time and peak memory, nothing else")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one repetition of everything, nothing written")
    args = parser.parse_args(argv)
    import torch
    torch.set_num_threads(args.threads)
    lm, start = nano(), time.time()
    found = dict(weights=lm.name, parameters=lm.parameters, threads=args.threads)
    if args.full: found |= full(lm, args.decisions)
    else:
        cases = [(lm, "", 32, 3, 1), (lm, "_half_the_window", 32, 1, .5), (qwen(), "_20M", 4, 1, 1)]   # model, suffix, households packed, repetitions, window
        for other, suffix, households, repeats, part in cases:
            for J in (4, 12):
                with sight(part) as visits: spent, apart = side_by_side(other, J, households, 1 if args.quick else repeats, few=bool(suffix))
                figures = plain(ratios(spent) | apart)
                print(f"{other.name}, {other.parameters:,} parameters, {J} alternatives, texts of up to {visits} visits: milliseconds per decision")
                for k, v in spent.items(): print(f"  {k:<30}{1000 * v:9.2f}   {v / spent['packed']:7.1f} times packed")
                print("  " + ", ".join(f"{k} {v}" for k, v in figures.items() if k in apart), flush=True)
                found |= {f"{k}{suffix}_{J}": v for k, v in figures.items()}
            worst = lambda k: (max if "difference" in k else min)(found[f"{k}{suffix}_{J}"] for J in (4, 12))
            found |= {f"{k}{suffix}": worst(k) for k in figures if k.startswith("packed_") or k in ("max_probability_difference", "decisions_per_second")}
        found |= what_ifs(lm)
        table = growth(lm, args.quick)
        found["milliseconds"] = {what: {way: dict(zip(map(str, t.value), map(float, t.ms))) for way, t in part.groupby("way")} for what, part in table.groupby("what")}
        if not args.quick:
            from malles.charts import svg
            (RESULTS/"scoring.svg").write_text(svg(growth_chart(table)), encoding="utf-8")
    found = plain(found | dict(seconds=time.time() - start))
    if not args.quick: (RESULTS/("scoring_full.json" if args.full else "scoring.json")).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__": main()
