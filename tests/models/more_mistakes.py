"""A second set of planted mistakes, written when the debugger's changes were done.

They measure what it does with mistakes that it was not made beside: other families, and mistakes
that no change of its lists stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tests.models.plain_port import PlainPort, port_with
from tests.models.planted_mistakes import SIZES, Mistake, plain, reading, theirs
from torch import nn

from lmworks.models.model import Model

BERT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
T5: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 40,
}
MAMBA: dict[str, Any] = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2}
GEMMA3 = SIZES | {
    "head_dim": 12,
    "num_key_value_heads": 3,
    "sliding_window": 9,
    "layer_types": ["full_attention", "sliding_attention"],
}


def _setting(end: str, name: str, value: Any) -> Callable[[Any], None]:
    """Every module whose class name ends in `end` gets the attribute."""

    def spoil(port: Any) -> None:
        for module in port.modules():
            if type(module).__name__.endswith(end):
                setattr(module, name, value)

    return spoil


def _changing(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Every parameter whose name ends in `end` is changed."""

    def spoil(port: Any) -> None:
        for name, parameter in port.named_parameters():
            if name.endswith(end):
                parameter.copy_(change(parameter.clone()))

    return spoil


def _halves_swapped(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.roll(len(tensor) // 2, 0)


class _EpsOutside(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 0.01) * self.weight


class _EpsOutsidePort(PlainPort):
    def __init__(self, right: Model) -> None:
        super().__init__(right)
        for block in self.blocks:
            block.attention_norm = _EpsOutside(block.attention_norm)


class _NormedTwice(PlainPort):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.output(self.final_norm(self.final_norm(x)))
        return logits


class _LastLayerLeftOut(PlainPort):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(input_ids)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        logits: torch.Tensor = self.output(self.final_norm(x))
        return logits


def _values_turned(self: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = self.split(self.wq(x)), self.split(self.wk(x)), self.split(self.wv(x))
    q, k, v = self.turn(q), self.turn(k), self.turn(v)
    y: torch.Tensor = self.wo(self.join(self.attend(q, self.share(k), self.share(v))))
    return y


def _softmax_over_queries(
    self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    scores = (q @ k.mT * self.scale()).masked_fill(~self.mask(q.shape[2]), -1e9)
    return scores.softmax(dim=-2) @ v


def _mask_of_ones(self: Any, length: int) -> torch.Tensor:
    return torch.ones(length, length).tril()


def _heads_reversed(port: Any) -> None:
    for block in port.blocks:
        block.wv.weight.copy_(block.wv.weight.view(2, 8, 48).flip(0).reshape(16, 48).clone())


def _first_feed_forward_in_all(port: Any) -> None:
    for block in port.blocks:
        block.w1.weight.copy_(port.blocks[0].w1.weight)


def _dead_head(port: Any) -> None:
    port.output.weight[5] = float("nan")


MORE_MISTAKES = [
    Mistake(
        name="bert: no token types",
        operation="embedding",
        causes=("token types missing", "weights embed_types.weight"),
        make=theirs(
            "BertConfig", BERT, spoil=_changing("token_type_embeddings.weight", torch.zeros_like)
        ),
    ),
    Mistake(
        name="bert: eps",
        operation="embedding",
        causes=("norm eps", "embedding norm eps"),
        make=theirs("BertConfig", BERT, wrong={"layer_norm_eps": 1e-3}),
    ),
    Mistake(
        name="bert: relu",
        operation="layers.0.feed_forward.inner",
        causes=("activation",),
        make=theirs("BertConfig", BERT, wrong={"hidden_act": "relu"}),
    ),
    Mistake(
        name="gpt2: layer norm without its bias",
        operation="layers.0.mixer_norm",
        causes=("bias missing", "weights mixer_norm.bias"),
        make=theirs(
            "GPT2Config",
            {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4},
            spoil=_changing("ln_1.bias", torch.zeros_like),
        ),
    ),
    Mistake(
        name="mamba: no bias of the convolution",
        operation="layers.0.mixer.x_proj",
        causes=("weights mixer.conv.bias",),
        make=theirs("MambaConfig", MAMBA, spoil=_changing("conv1d.bias", torch.zeros_like)),
    ),
    Mistake(
        name="mamba: the skip is left out",
        operation="layers.0.mixer.inner",
        causes=("weights mixer.D",),
        make=theirs("MambaConfig", MAMBA, spoil=_changing(".D", torch.zeros_like)),
    ),
    Mistake(
        name="gemma3: one theta for all layers",
        operation="layers.1.mixer.q",
        causes=("rope theta",),
        make=theirs(
            "Gemma3TextConfig",
            GEMMA3,
            wrong={
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e6},
                }
            },
        ),
    ),
    Mistake(
        name="phi3: gate and up in the other order",
        operation="layers.0.feed_forward.up_proj",
        causes=("gate_proj and up_proj swapped",),
        make=theirs("Phi3Config", SIZES, spoil=_changing("gate_up_proj.weight", _halves_swapped)),
    ),
    Mistake(
        name="qwen3: the norms of q and k have no weights",
        operation="layers.0.mixer.q_norm",
        causes=("norm weight missing", "weights mixer.q_norm.weight"),
        make=theirs(
            "Qwen3Config", SIZES | {"head_dim": 8}, spoil=_changing("_norm.weight", torch.ones_like)
        ),
    ),
    Mistake(
        name="olmo2: another scale",
        operation="layers.0.mixer.attended",
        causes=("attention scale",),
        make=theirs("Olmo2Config", SIZES, spoil=_setting("Attention", "scaling", 0.5)),
    ),
    Mistake(
        name="eps outside the root",
        operation="layers.0.mixer_norm",
        causes=("norm eps",),
        make=plain(_EpsOutsidePort),
    ),
    Mistake(
        name="the last norm twice",
        operation="logits",
        causes=("norm twice",),
        make=plain(_NormedTwice),
    ),
    Mistake(
        name="the last layer is left out",
        operation="norm",
        causes=("layer missing",),
        make=plain(_LastLayerLeftOut),
    ),
    Mistake(
        name="values are turned too",
        operation="layers.0.mixer.v",
        causes=("rope on v",),
        make=plain(port_with(attention=_values_turned)),
    ),
    Mistake(
        name="softmax over the queries",
        operation="layers.0.mixer.attended",
        causes=("softmax axis",),
        make=plain(port_with(attend=_softmax_over_queries)),
    ),
    Mistake(
        name="a mask of ones and zeros is added",
        operation="layers.0.mixer.attended",
        causes=("mask added as numbers",),
        make=plain(port_with(mask=_mask_of_ones)),
    ),
    Mistake(
        name="key-value heads in reverse",
        operation="layers.0.mixer.v_proj",
        causes=("head order", "weights mixer.v_proj.weight"),
        make=plain(reading(_heads_reversed)),
    ),
    Mistake(
        name="the first layer's gate in all layers",
        operation="layers.1.feed_forward.gate_proj",
        causes=("weights feed_forward.gate_proj.weight",),
        make=plain(reading(_first_feed_forward_in_all)),
    ),
    Mistake(
        name="relu for silu",
        operation="layers.0.feed_forward.inner",
        causes=("activation",),
        make=plain(
            port_with(feed_forward=lambda self, x: self.w2(F.relu(self.w1(x)) * self.w3(x)))
        ),
    ),
    Mistake(
        name="a row of the head is NaN",
        operation="logits",
        causes=("weights lm_head.weight",),
        make=plain(reading(_dead_head)),
    ),
]
