"""What looking costs: a training step of a model of nano's shape without maps, with the rows of every decision, and with eager attention.

    python benchmarks/attention.py              # medians of five interleaved steps
    python benchmarks/attention.py --repeats 9

A step is forward and backward over the texts of one pre-training step (8,000 tokens), loss of the choice; `rows` adds the attention loss in all layers (`last_layer`: in the last one).
`eager` is what output_attentions=True asks for, the maps written down and not even used. Seconds are process seconds on one core, so that other work on the machine does not count. The last line is JSON.
"""
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from contextlib import nullcontext
import argparse, json, statistics, time

import torch

from malles.attention import CODE, attention_loss, attention_prior, looking
from malles.network import Recipe, batches, losses, new_model
from malles.texts import sample_texts


def step(model, parts, layers=None, eager=False):
    "Seconds of one step; layers: where the rows are asked for, None for nowhere."
    codes, prior, begin = torch.from_numpy(CODE), attention_prior(), time.process_time()
    if eager: model.set_attn_implementation("eager")
    for ids, decisions in parts:
        row, _, spots, *_ = decisions
        with nullcontext() if layers is None else looking(model, layers) as look:
            if look: look.ask(row, spots, ids)
            loss = losses(model, ids, decisions)[0].mean()
            if look: loss = loss + attention_loss(look.mass(codes[ids]), prior)
            loss.backward()
    model.set_attn_implementation("sdpa"); model.zero_grad()
    return time.process_time() - begin


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0]); a.add_argument("--repeats", type=int, default=5)
    repeats = a.parse_args().repeats
    torch.set_num_threads(1)
    model, parts = new_model(Recipe()), list(batches(sample_texts(0, 1, 8000)))
    ways = dict(no_maps={}, last_layer=dict(layers=[-1]), rows=dict(layers=range(Recipe().layers)), eager=dict(eager=True))
    seconds = {k: [] for k in ways}
    for r in range(repeats + 1):
        for k, kw in ways.items():
            t = step(model, parts, **kw)
            if r: seconds[k].append(t)                         # the first round warms up
    middle = {k: statistics.median(v) for k, v in seconds.items()}
    print(json.dumps(dict(tokens=sum(ids.numel() for ids, _ in parts), **{k: round(v, 2) for k, v in middle.items()}, **{f"{k}_ratio": round(v / middle["no_maps"], 2) for k, v in middle.items() if k != "no_maps"})))


if __name__ == "__main__": main()
