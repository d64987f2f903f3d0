"""A Llama as somebody would port it in an afternoon: one file, names of its own, no blocks of ours.

Each step is a method, so that a mistake is a subclass with one method written otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model

# Our parts -> the port's.
NAMES = {
    "embed_tokens": "tok_embeddings",
    "layers.{}.mixer_norm": "blocks.{}.attention_norm",
    "layers.{}.mixer.q_proj": "blocks.{}.wq",
    "layers.{}.mixer.k_proj": "blocks.{}.wk",
    "layers.{}.mixer.v_proj": "blocks.{}.wv",
    "layers.{}.mixer.o_proj": "blocks.{}.wo",
    "layers.{}.feed_forward_norm": "blocks.{}.ffn_norm",
    "layers.{}.feed_forward.gate_proj": "blocks.{}.w1",
    "layers.{}.feed_forward.up_proj": "blocks.{}.w3",
    "layers.{}.feed_forward.down_proj": "blocks.{}.w2",
    "norm": "final_norm",
    "lm_head": "output",
}


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layer: Any = config.layers[0]
        mixer, feed_forward, hidden = layer.mixer, layer.feed_forward, config.hidden_size
        assert isinstance(mixer, AttentionConfig) and isinstance(feed_forward, MLPConfig)
        self.heads, self.groups, self.size = (
            mixer.num_attention_heads,
            mixer.num_key_value_heads,
            mixer.head_dim,
        )
        assert mixer.rope is not None
        self.theta = mixer.rope.theta
        self.window = getattr(mixer.pattern, "window", None)
        self.attention_norm = Norm(hidden, layer.norm.eps)
        self.ffn_norm = Norm(hidden, layer.norm.eps)
        self.wq = nn.Linear(hidden, self.heads * self.size, bias=False)
        self.wk = nn.Linear(hidden, self.groups * self.size, bias=False)
        self.wv = nn.Linear(hidden, self.groups * self.size, bias=False)
        self.wo = nn.Linear(self.heads * self.size, hidden, bias=False)
        self.w1 = nn.Linear(hidden, feed_forward.intermediate_size, bias=False)
        self.w2 = nn.Linear(feed_forward.intermediate_size, hidden, bias=False)
        self.w3 = nn.Linear(hidden, feed_forward.intermediate_size, bias=False)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(1, x.shape[1], -1, self.size).transpose(1, 2)

    def positions(self, length: int) -> torch.Tensor:
        return torch.arange(length).float()

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        waves = self.theta ** -(torch.arange(0, self.size, 2).float() / self.size)
        angles = torch.outer(self.positions(x.shape[2]), waves)
        angles = torch.cat((angles, angles), dim=-1)
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-right, left), dim=-1) * angles.sin()

    def place(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.turn(q), self.turn(k)

    def share(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.heads // self.groups, dim=1)

    def mask(self, length: int) -> torch.Tensor:
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        return seen if self.window is None else seen.triu(1 - self.window)

    def scale(self) -> float:
        return float(self.size**-0.5)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = self.mask(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale())

    def join(self, y: torch.Tensor) -> torch.Tensor:
        return y.transpose(1, 2).reshape(1, y.shape[2], -1)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.wq(x)), self.split(self.wk(x)), self.split(self.wv(x))
        q, k = self.place(q, k)
        y: torch.Tensor = self.wo(self.join(self.attend(q, self.share(k), self.share(v))))
        return y

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class PlainPort(nn.Module):
    """Logits (1, T, V) of input_ids (1, T), with the weights of a model of ours."""

    block: type[Block] = Block

    def __init__(self, right: Model) -> None:
        super().__init__()
        config = right.config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.block(config) for _ in config.layers)
        assert config.norm is not None
        self.final_norm = Norm(config.hidden_size, config.norm.eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.load_state_dict(renamed(right))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.output(self.final_norm(x))
        return logits


def renamed(right: Model) -> dict[str, torch.Tensor]:
    """The weights under the port's names, copied."""
    state = {}
    for name, tensor in right.state_dict().items():
        path = name.removesuffix(".weight")
        number = path.split(".")[1] if path.startswith("layers.") else ""
        template = path.replace(f".{number}.", ".{}.", 1) if number else path
        state[NAMES[template].format(number) + ".weight"] = tensor.clone()
    return state


def port_with(**methods: Any) -> type[PlainPort]:
    """The port with these methods of its blocks written otherwise."""
    block = type("Block", (Block,), methods)
    return type("Port", (PlainPort,), {"block": block})
