"""Decisions per second of post-training: packed receipts in ChoiceSFTTrainer against a plain TRL SFTTrainer that reads one decision a row. One run, side by side, one thread.

The same purchases, model, optimiser and full fine-tuning; TRL's rows hold the same words as prompt and completion. TRL gets the best of several batch sizes.
    python benchmarks/posttraining.py [--households 60] [--occasions 20] [--seconds 40]
"""
import argparse, json, os, tempfile, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from dataclasses import replace
import numpy as np
import torch
from datasets.utils.logging import disable_progress_bar
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from malles.decisions import to_prompts, to_sft
from malles.lm import LM
from malles.occasions import mean_field, with_popularity
from malles.profiles import with_profiles
from malles.tastes import market_facts, with_facts
from malles.shoppers import sample_world, simulate
from malles.trainer import ChoiceSFTConfig, ChoiceSFTTrainer


class Clock(TrainerCallback):
    "Seconds per step, the first two left out."
    def __init__(self, limit): self.limit, self.times = limit, []
    def on_step_begin(self, args, state, control, **kw): self.t = time.perf_counter()
    def on_step_end(self, args, state, control, **kw):
        self.times.append(time.perf_counter() - self.t)
        control.should_training_stop = sum(self.times) > self.limit and len(self.times) > 6


def measure(trainer, decisions_per_step, limit):
    clock = Clock(limit)
    trainer.add_callback(clock); trainer.remove_callback(PrinterCallback)
    trainer.train()
    return decisions_per_step / np.mean(clock.times[2:])


def main(a):
    torch.set_num_threads(1); disable_progress_bar()
    world = replace(sample_world(np.random.default_rng(4), a.alternatives), priced=True, marked=True, counted=True, absent=0.)
    occ, _ = simulate(world, a.households, a.occasions, rng=1)
    occ = with_profiles(with_popularity(occ, mean_field(occ), counted=occ))
    occ = with_facts(occ, market_facts(occ))
    common = dict(num_train_epochs=100, save_strategy="no", disable_tqdm=True, logging_steps=10**9, report_to="none", learning_rate=1e-4)
    out, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        lm, packed = LM.from_pretrained("nano"), to_sft(occ)
        trainer = ChoiceSFTTrainer(lm.model, ChoiceSFTConfig(folder, **common), packed, processing_class=lm.tokenizer)
        n = sum(len(t) for t in packed["taken"])
        out["packed"] = measure(trainer, n / len(trainer.train_batches), a.seconds)
        plain = to_prompts(occ).rename_column("answer", "completion").select_columns(["prompt", "completion"])
        for size in (4, 16, 64):
            lm = LM.from_pretrained("nano"); lm.tokenizer.eos_token = "<visit>"
            args = SFTConfig(folder, per_device_train_batch_size=size, max_length=None, use_cpu=True, bf16=False, activation_checkpointing=False, **common)
            sizes[size] = measure(SFTTrainer(model=lm.model, args=args, train_dataset=plain, processing_class=lm.tokenizer), size, a.seconds)
    tokens = np.mean([len(p.split()) for p in plain["prompt"]])
    print(f"{n} decisions of {a.households} households, {a.alternatives} alternatives; a prompt holds {tokens:.0f} tokens, a packed decision {sum(map(len, packed['input_ids'])) / n:.0f}")
    print("plain SFTTrainer by batch size: " + ", ".join(f"{k}: {v:.1f}" for k, v in sizes.items()))
    best = max(sizes.values())
    print(json.dumps(dict(packed_vs_trl=round(out["packed"] / best, 2), packed_decisions_per_second=round(out["packed"], 1), trl_decisions_per_second=round(best, 1), alternatives=a.alternatives, occasions=a.occasions)))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--households", type=int, default=60); p.add_argument("--occasions", type=int, default=20); p.add_argument("--alternatives", type=int, default=4); p.add_argument("--seconds", type=float, default=40)
    main(p.parse_args())
