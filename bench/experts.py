"""Mixture of experts beside a dense layer of the same active compute, forward and backward.

    python bench/experts.py                 # seconds on the clock, all cores
    python bench/experts.py --threads 1     # seconds of CPU, for a machine that is busy
    python bench/experts.py --shapes 4096,512,8,2 2048,256,64,8

A dense SwiGLU as wide as the experts that a token goes through; our block; a plain loop over
experts; transformers' Mixtral block as it comes, a loop too, and with its grouped products. The
router, its softmax and its gradient count. Then one token without gradients, as in decoding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from pairs import compared, keep, take_turns
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, MoEConfig
from lmworks.models.context import Context
from lmworks.models.feed_forward import MLP
from lmworks.models.moe import MoE
from lmworks.training.threads import set_threads

# tokens, width, experts, experts per token; together the experts of a token are 8/3 as wide
SHAPES = (
    (2048, 256, 8, 2),
    (2048, 256, 64, 8),
    (4096, 512, 8, 2),
    (4096, 512, 16, 4),
    (4096, 512, 64, 8),
    (4096, 768, 16, 1),
    (2048, 256, 64, 1),
)
DENSE = "dense"


class Loop(torch.nn.Module):
    """The loop that is written first: for each expert, the rows that chose it."""

    def __init__(self, width: int, inner: int, num_experts: int, k: int) -> None:
        super().__init__()
        self.router = torch.nn.Linear(width, num_experts, bias=False)
        self.experts = torch.nn.ModuleList(_mlp(width, inner) for _ in range(num_experts))
        self.k = k

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        rows = x.flatten(0, -2)
        weights, chosen = self.router(rows).softmax(-1).topk(self.k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            y = expert(rows[token], context) * weights[token, place, None]
            out = out.index_add(0, token, y)
        return out.view_as(x)


def _mlp(width: int, inner: int) -> MLP:
    return MLP(MLPConfig(intermediate_size=inner), _model(width, None))


def _model(width: int, feed_forward: MoEConfig | None) -> ModelConfig:
    mixer = AttentionConfig(num_attention_heads=4, num_key_value_heads=4, head_dim=width // 4)
    return ModelConfig.uniform(
        vocab_size=8,
        hidden_size=width,
        num_hidden_layers=1,
        mixer=mixer,
        feed_forward=feed_forward or MLPConfig(intermediate_size=8),
    )


def blocks(width: int, inner: int, num_experts: int, k: int) -> dict[str, Any]:
    """The contestants: (1, tokens, width) -> the same shape."""
    config = MoEConfig(num_experts=num_experts, num_experts_per_tok=k, intermediate_size=inner)
    ours = MoE(config, _model(width, config))
    ours.reset_parameters(torch.Generator().manual_seed(0), output_std=0.02)
    context = Context()
    made: dict[str, Any] = {DENSE: _mlp(width, k * inner), "lmworks MoE": ours}
    made["plain loop"] = Loop(width, inner, num_experts, k)
    called = {name: (block, lambda x, b=block: b(x, context)) for name, block in made.items()}
    for name, how in (("transformers Mixtral", "eager"), ("transformers, grouped", "grouped_mm")):
        theirs = MixtralConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_local_experts=num_experts,
            num_experts_per_tok=k,
        )
        theirs._experts_implementation = how
        block = MixtralSparseMoeBlock(theirs)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        called[name] = (block, block)
    return called


def step(block: torch.nn.Module, call: Callable[..., Any], x: torch.Tensor) -> None:
    """Forward and backward, gradients of the input and of all weights in fresh memory."""
    x.grad = None
    block.zero_grad(set_to_none=True)
    y = call(x)
    (y.square().sum() * 1e-3).backward()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="*", help="tokens,width,experts,experts per token")
    arguments = parser.parse_args()
    shapes = [tuple(map(int, s.split(","))) for s in arguments.shapes or ()] or SHAPES
    threads = set_threads(arguments.threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    cases = []
    for tokens, width, num_experts, k in shapes:
        inner = max(16, -(-width * 8 // 3 // k // 16) * 16)
        called = blocks(width, inner, num_experts, k)
        x = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0))
        shape = f"{tokens} tokens, width {width}, {k} of {num_experts} experts of {inner}"
        print(f"\n{shape}: forward and backward")
        x.requires_grad_()
        training = take_turns(
            {n: lambda b=b, c=c, x=x: step(b, c, x) for n, (b, c) in called.items()},
            arguments.rounds,
            clock,
        )
        case = {"shape": shape, "training": compared("tokens/s", tokens, training)}
        print(f"{shape}: one token")
        one = x[:, :1].detach()
        with torch.inference_mode():
            for block, _ in called.values():
                block.eval()
            many = {n: lambda c=c, o=one: [c(o) for _ in range(20)] for n, (_, c) in called.items()}
            decoding = take_turns(many, arguments.rounds * 3, clock)
        case["one_token"] = compared("tokens/s", 20, decoding)
        cases.append(case)
    busy = f"load {_load():.1f} on {torch.get_num_threads()} threads at the end"
    clocked = "CPU seconds" if threads == 1 else "seconds on the clock"
    keep("experts", threads=threads, clock=clocked, rounds=arguments.rounds, busy=busy, cases=cases)


def _load() -> float:
    import os

    return os.getloadavg()[0]


if __name__ == "__main__":
    main()
