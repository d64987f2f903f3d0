"""A pre-training step beside others': tokens per second, share of the GEMM limit, peak memory.

    python bench/training.py                     # ours, transformers, a plain GPT; litgpt if there
    python bench/training.py --compile           # compiled ones too (a minute to compile each)

6 layers, width 384, 6 heads, context 256, vocabulary 4096, 16 rows, float32: forward, backward,
clipping, AdamW. All take turns in one process; the peak of memory is that of a process of its own
for each. The limit is the best matrix product of the machine with the same threads, and a token
counts 6 operations per parameter and its attention, as nanoGPT counts them, for everybody's own
number of parameters. The step's own matrix products, alone and in its own shapes, take their turn
too: no step of the same products can be faster than they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pairs import report, take_turns
from plain_gpt import PlainGPT
from torch import nn

LAYERS, WIDTH, HEADS, LENGTH, VOCAB, INNER = 6, 384, 6, 256, 4096, 1024
Step = Callable[[], object]


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(VOCAB, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def ours(rows: int, compiled: bool = False, **changes: Any) -> tuple[Step, nn.Module]:
    """A step of the trainer itself."""
    from lmworks.models.config.patterns import Sizes, decoder_config
    from lmworks.models.model import Model
    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.optimizers.base import OptimizerConfig
    from lmworks.training.trainer import Trainer
    from lmworks.training.trainer_config import LoopConfig

    sizes = Sizes(hidden_size=WIDTH, num_key_value_heads=HEADS, intermediate_size=INNER)
    model = Model(decoder_config("attention", depth=LAYERS, vocab_size=VOCAB, sizes=sizes))
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids, labels = batch(rows)
    given = Batch(input_ids=ids, labels=labels)
    loop = LoopConfig(optimizer=OptimizerConfig(name="adamw"), compile=compiled, **changes)
    work = Path(tempfile.mkdtemp())
    trainer = Trainer(model, causal, lambda number: given, loop, num_steps=10**6, work=work)
    model.train()
    steps = iter(range(1, 10**6))
    return lambda: trainer.take_step(next(steps)), model


def plain_loop(model: nn.Module, rows: int, logits: Callable[..., torch.Tensor]) -> Step:
    """What people write by hand around a model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, labels = batch(rows)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits(ids).flatten(0, 1), labels.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def by_hand(rows: int, compiled: bool = False) -> tuple[Step, nn.Module]:
    model = PlainGPT(VOCAB, WIDTH, LAYERS, HEADS, LENGTH)
    called: Any = torch.compile(model) if compiled else model
    return plain_loop(model, rows, called), model


def transformers(rows: int, compiled: bool = False) -> tuple[Step, nn.Module]:
    """A step of its Trainer, which does what `train` does between data and callbacks."""
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=INNER, tie_word_embeddings=True,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    called: Any = torch.compile(model) if compiled else model
    arguments = hf.TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to=[], optim="adamw_torch_fused"
    )
    trainer = hf.Trainer(model=called, args=arguments)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what `train` would set
    ids, _ = batch(rows)

    def step() -> None:
        trainer.training_step(called, {"input_ids": ids, "labels": ids})
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        model.zero_grad(set_to_none=True)

    return step, model


def litgpt(rows: int, compiled: bool = False) -> tuple[Step, nn.Module]:
    from litgpt import GPT, Config

    model = GPT(
        Config(
            block_size=LENGTH, vocab_size=VOCAB, padded_vocab_size=VOCAB, n_layer=LAYERS,
            n_head=HEADS, n_embd=WIDTH, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=INNER, bias=False, parallel_residual=False, rotary_percentage=1.0,
        )
    )  # fmt: skip
    called: Any = torch.compile(model) if compiled else model
    return plain_loop(model, rows, called), model


MAKERS: dict[str, Callable[..., tuple[Step, nn.Module]]] = {
    "lmworks": ours,
    "by hand": by_hand,
    "transformers": transformers,
    **({"litgpt": litgpt} if importlib.util.find_spec("litgpt") else {}),
    "lmworks, computed again": lambda rows: ours(rows, activation_checkpointing=True),
    "lmworks, 4 rows at a time": lambda rows: ours(rows, micro_batch_size=4),
}


def products(rows: int) -> Step:
    """Every matrix product of a step, forward and both gradients, and nothing else."""
    tokens = rows * LENGTH
    sizes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, INNER)] * 2 + [(INNER, WIDTH)]
    layers = [torch.randn(size) for size in sizes] * LAYERS + [torch.randn(WIDTH, VOCAB)]
    states = {size: torch.randn(tokens, size) for size in {WIDTH, INNER, VOCAB}}

    def step() -> None:
        for weight in layers:
            x, upstream = states[weight.shape[0]], states[weight.shape[1]]
            x @ weight
            upstream @ weight.T
            x.T @ upstream

    return step


def contestant(name: str, rows: int) -> tuple[Step, nn.Module]:
    make = MAKERS[name.removesuffix(" compiled")]
    return make(rows, True) if name.endswith(" compiled") else make(rows)


def flops_per_token(model: nn.Module) -> float:
    return 6 * sum(p.numel() for p in model.parameters()) + 12 * LAYERS * WIDTH * LENGTH


def peak_mb(name: str, rows: int, threads: int) -> float:
    command = [sys.executable, __file__, "--alone", name, "--rows", str(rows)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-1500:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()

    from lmworks.training.machine_speed import matrix_product_limit
    from lmworks.training.threads import set_threads

    if options.alone:
        if options.alone.startswith("lmworks"):
            set_threads(options.threads)
        torch.set_num_threads(options.threads)
        step, _ = contestant(options.alone, options.rows)
        for _ in range(3):
            step()
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        print(int(found[1]) / 1e3 if found else 0)
        return
    threads = set_threads(options.threads)
    names = list(MAKERS)
    if options.compile:
        names += [f"{n} compiled" for n in ("lmworks", "by hand", "transformers")]
    if "litgpt" not in MAKERS:
        print("litgpt is not installed here (pip install litgpt) and is left out")
    peaks = {name: peak_mb(name, options.rows, threads) for name in names}
    made = {name: contestant(name, options.rows) for name in names}
    limit = matrix_product_limit(torch.device("cpu"))
    steps = {name: step for name, (step, _) in made.items()}
    seconds = take_turns({**steps, "its products alone": products(options.rows)}, options.rounds)
    limit = max(limit, matrix_product_limit(torch.device("cpu")))
    tokens = options.rows * LENGTH
    shares = {
        name: flops_per_token(model) * tokens / sorted(seconds[name])[len(seconds[name]) // 2]
        / limit
        for name, (_, model) in made.items()
    }  # fmt: skip
    for name in names:
        print(f"{name:28} {shares[name]:6.1%} of {limit / 1e9:.0f} GFLOP/s, {peaks[name]:6.0f} MB")
    report("training", "tokens/s", tokens, seconds, threads=threads, batch_rows=options.rows,
           peak_megabytes=peaks, share_of_gemm_limit=shares, gemm_gflops=limit / 1e9)  # fmt: skip


if __name__ == "__main__":
    main()
