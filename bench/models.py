"""A forward and a training step: ours beside transformers and beside a GPT written by hand.

    python bench/models.py                 # GPT-2 and Llama shapes, forward and training step
    python bench/models.py --width 512 --layers 8 --length 512

All of a shape hold the same number of weights and see the same batches; a step is forward,
backward, clipping and AdamW. Rates are taken in turns in one process, the peak of memory in a
process of its own for each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pairs import report, take_turns
from plain_gpt import PlainGPT
from torch import nn

ROUNDS, VOCAB, ROWS = 9, 2048, 8


def ours(shape: str, options: argparse.Namespace) -> nn.Module:
    from lmworks.models.architectures.base import architecture
    from lmworks.models.model import Model

    values = hf_config(shape, options).to_dict()
    model = Model(architecture(shape).layout("hf").read_config(values))
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def hf_config(shape: str, options: argparse.Namespace) -> Any:
    import transformers

    heads = options.width // 64
    if shape == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=options.width, n_layer=options.layers, n_head=heads,
            n_positions=options.length, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
        )  # fmt: skip
    return transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=options.width, num_hidden_layers=options.layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        intermediate_size=-(-options.width * 8 // 3 // 32) * 32, tie_word_embeddings=True,
        max_position_embeddings=options.length,
    )  # fmt: skip


def theirs(shape: str, options: argparse.Namespace) -> nn.Module:
    import transformers

    config = hf_config(shape, options)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def by_hand(shape: str, options: argparse.Namespace) -> nn.Module:
    return PlainGPT(VOCAB, options.width, options.layers, options.width // 64, options.length)


MODELS: dict[str, Callable[[str, argparse.Namespace], nn.Module]] = {
    "lmworks": ours,
    "transformers": theirs,
    "by hand": by_hand,
}


def runs(name: str, shape: str, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The forward and the training step of one contestant."""
    torch.manual_seed(0)
    model = MODELS[name](shape, options)
    ids = torch.randint(VOCAB, (ROWS, options.length + 1))
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def logits() -> torch.Tensor:
        if name == "transformers":
            return model(inputs, use_cache=False).logits
        return model(inputs)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(logits().flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"forward": torch.inference_mode()(logits), "training step": step}


def contestants(shape: str) -> list[str]:
    return [name for name in MODELS if shape == "gpt2" or name != "by hand"]


def peak_megabytes(name: str, shape: str, options: argparse.Namespace) -> float:
    """Of a process that does three training steps and nothing else."""
    arguments = [f"--{key}={getattr(options, key)}" for key in ("width", "layers", "length")]
    command = [sys.executable, __file__, "--alone", name, "--shape", shape, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
    return float(found.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--shape", choices=("gpt2", "llama"))
    parser.add_argument("--alone", choices=tuple(MODELS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        step = runs(options.alone, options.shape, options)["training step"]
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    for shape in [options.shape] if options.shape else ["gpt2", "llama"]:
        named = {name: runs(name, shape, options) for name in contestants(shape)}
        peaks = {name: peak_megabytes(name, shape, options) for name in named}
        print("peak MB of a training:", {k: round(v) for k, v in peaks.items()})
        for kind in ("forward", "training step"):
            print(f"{shape}, {kind}")
            seconds = take_turns({n: found[kind] for n, found in named.items()}, options.rounds)
            report(
                f"models_{shape}_{kind.replace(' ', '_')}",
                "tokens/s",
                ROWS * options.length,
                seconds,
                threads=torch.get_num_threads(),
                peak_megabytes=peaks,
                width=options.width,
                layers=options.layers,
                length=options.length,
            )


if __name__ == "__main__":
    main()
