"""Ports with one mistake each: what the parity debugger is measured by.

A mistake is made where people make it: in the config that a port was given, in how it read the
weights, or in its code. A port is `plain_port.PlainPort`, which shares no code with our models, or
a model of transformers. The debugger sees it as a `Port`, a module with names: it knows no config
of it, and of its code nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tests.models.parity import randomised
from tests.models.plain_port import NAMES, PlainPort, port_with
from torch import nn

from lmworks.models.config import (
    AttentionConfig,
    MLPConfig,
    ModelConfig,
    RoPEConfig,
    SlidingWindow,
)
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.parity.sides import Port

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
GEMMA2 = SIZES | {
    "head_dim": 12,
    "num_key_value_heads": 3,
    "sliding_window": 9,
    "query_pre_attn_scalar": 10,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong port, and what the debugger should say of it.

    `operation`: the end of the name of the first operation that differs; `causes`: any of these.
    """

    name: str
    operation: str
    causes: tuple[str, ...]
    make: Callable[[Path], tuple[Any, Any]]  # folder to work in -> (what is right, the port)


# --- a port with code of its own -------------------------------------------------------------


def plain(port: type[PlainPort], **mixer: Any) -> Callable[[Path], tuple[Any, Any]]:
    """A Llama of ours, and `port` with its weights."""

    def make(folder: Path) -> tuple[Any, Any]:
        right = plain_model(**mixer)
        return right, Port(module=port(right), names=NAMES)

    return make


def plain_model(**mixer: Any) -> Model:
    config = ModelConfig.uniform(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            **({"rope": RoPEConfig(theta=1000.0)} | mixer),
        ),
        feed_forward=MLPConfig(intermediate_size=80),
    )
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    moved: Model = randomised(model)
    return moved


def _turn_neighbours(self: Any, x: torch.Tensor) -> torch.Tensor:
    waves = self.theta ** -(torch.arange(0, self.size, 2).float() / self.size)
    angles = torch.outer(torch.arange(x.shape[2]).float(), waves)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


def _stream_from_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = self.attention_norm(x)
    x = x + self.attention(x)
    return x + self.feed_forward(self.ffn_norm(x))


def _no_second_stream(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = x + self.attention(self.attention_norm(x))
    y: torch.Tensor = self.feed_forward(self.ffn_norm(x))
    return y


class _Centred(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class _CentredPort(PlainPort):
    def __init__(self, right: Model) -> None:
        super().__init__(right)
        for block in self.blocks:
            block.attention_norm = _Centred(block.attention_norm)
            block.ffn_norm = _Centred(block.ffn_norm)


class _NoLastNorm(PlainPort):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(input_ids)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.output(x)
        return logits


class _Reversed(PlainPort):
    def __init__(self, right: Model) -> None:
        super().__init__(right)
        self.blocks = nn.ModuleList(reversed(list(self.blocks)))


def reading(change: Callable[[PlainPort], None]) -> type[PlainPort]:
    """The port with weights that were read wrongly."""

    def __init__(self: PlainPort, right: Model) -> None:
        PlainPort.__init__(self, right)
        with torch.no_grad():
            change(self)

    return type("Port", (PlainPort,), {"__init__": __init__})


def _square(port: Any) -> None:
    for block in port.blocks:
        block.wo.weight.copy_(block.wo.weight.mT.clone())


def _gguf_rows(port: Any) -> None:
    for block in port.blocks:
        for matrix in (block.wq, block.wk):
            rows = matrix.weight.view(-1, 2, block.size // 2, 48)
            matrix.weight.copy_(rows.transpose(1, 2).reshape(-1, 48).clone())


def _rounded(port: Any) -> None:
    for parameter in port.blocks.parameters():
        parameter.copy_(parameter.to(torch.bfloat16).float())


def _key_is_value(port: Any) -> None:
    for block in port.blocks:
        keys = block.wk.weight.clone()
        block.wk.weight.copy_(block.wv.weight)
        block.wv.weight.copy_(keys)


PLAIN = [
    Mistake(
        name="neighbouring dimensions are turned",
        operation="layers.0.mixer.q",
        causes=("rope layout",),
        make=plain(port_with(turn=_turn_neighbours)),
    ),
    Mistake(
        name="positions begin with 1",
        operation="layers.0.mixer.q",
        causes=("rope position off by one",),
        make=plain(port_with(positions=lambda self, n: torch.arange(1, n + 1).float())),
    ),
    Mistake(
        name="only q is turned",
        operation="layers.0.mixer.k",
        causes=("rope on q only",),
        make=plain(port_with(place=lambda self, q, k: (self.turn(q), k))),
    ),
    Mistake(
        name="no causal mask",
        operation="layers.0.mixer.attended",
        causes=("causal mask missing",),
        make=plain(port_with(mask=lambda self, n: torch.ones(n, n, dtype=torch.bool))),
    ),
    Mistake(
        name="no scale",
        operation="layers.0.mixer.attended",
        causes=("attention scale",),
        make=plain(port_with(scale=lambda self: 1.0)),
    ),
    Mistake(
        name="scale by the hidden size",
        operation="layers.0.mixer.attended",
        causes=("attention scale",),
        make=plain(port_with(scale=lambda self: 48**-0.5)),
    ),
    Mistake(
        name="key-value heads repeated as a whole",
        operation="layers.0.mixer.k",
        causes=("key-value heads tiled",),
        make=plain(port_with(share=lambda self, x: x.repeat(1, self.heads // self.groups, 1, 1))),
    ),
    Mistake(
        name="heads joined without a transpose",
        operation="layers.0.mixer.attended",
        causes=("heads not transposed",),
        make=plain(port_with(join=lambda self, y: y.reshape(1, y.shape[2], -1))),
    ),
    Mistake(
        name="a window that does not count the position itself",
        operation="layers.0.mixer.attended",
        causes=("window off by one",),
        make=plain(
            port_with(
                mask=lambda self, n: torch.ones(n, n, dtype=torch.bool).tril().triu(-self.window)
            ),
            pattern=SlidingWindow(window=9),
        ),
    ),
    Mistake(
        name="the stream is taken after the norm",
        operation="layers.0.mixer_residual",
        causes=("residual from the norm",),
        make=plain(port_with(forward=_stream_from_norm)),
    ),
    Mistake(
        name="no second residual",
        operation="layers.0",
        causes=("residual missing",),
        make=plain(port_with(forward=_no_second_stream)),
    ),
    Mistake(
        name="the activation is on the wrong projection",
        operation="layers.0.feed_forward.inner",
        causes=("gate_proj and up_proj swapped",),
        make=plain(
            port_with(feed_forward=lambda self, x: self.w2(self.w1(x) * F.silu(self.w3(x))))
        ),
    ),
    Mistake(
        name="gelu for silu",
        operation="layers.0.feed_forward.inner",
        causes=("activation",),
        make=plain(
            port_with(feed_forward=lambda self, x: self.w2(F.gelu(self.w1(x)) * self.w3(x)))
        ),
    ),
    Mistake(
        name="LayerNorm for RMSNorm",
        operation="layers.0.mixer_norm",
        causes=("norm kind",),
        make=plain(_CentredPort),
    ),
    Mistake(
        name="no last norm",
        operation="logits",
        causes=("norm missing",),
        make=plain(_NoLastNorm),
    ),
    Mistake(
        name="layers in reverse",
        operation="layers.0.mixer_norm",
        causes=("layer order",),
        make=plain(_Reversed),
    ),
    Mistake(
        name="a square matrix read transposed",
        operation="layers.0.mixer",
        causes=("transposed weight", "weights mixer.o_proj.weight"),
        make=plain(reading(_square)),
    ),
    Mistake(
        name="rows of q and k as GGUF files hold them",
        operation="layers.0.mixer.q_proj",
        causes=("rope rows interleaved",),
        make=plain(reading(_gguf_rows)),
    ),
    Mistake(
        name="k and v changed about",
        operation="layers.0.mixer.k_proj",
        causes=("k_proj and v_proj swapped",),
        make=plain(reading(_key_is_value)),
    ),
]


# --- models of transformers --------------------------------------------------------------------


def theirs(
    kind: str,
    settings: dict[str, Any],
    *,
    wrong: dict[str, Any] | None = None,
    spoil: Callable[[Any], None] | None = None,
) -> Callable[[Path], tuple[Any, Any]]:
    """Ours from a right folder; the port is transformers with a wrong config or spoiled."""

    def make(folder: Path) -> tuple[Any, Any]:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, kind)(**settings)
        head = "MaskedLM" if kind == "BertConfig" else "CausalLM"
        build = getattr(transformers, f"AutoModelFor{head}").from_config
        right = randomised(build(config, attn_implementation="eager"))
        right.save_pretrained(folder)
        port = build(
            getattr(transformers, kind)(**settings | (wrong or {})), attn_implementation="eager"
        )
        missing = port.load_state_dict(right.state_dict(), strict=False)
        assert not missing.missing_keys
        if spoil is not None:
            with torch.no_grad():
                spoil(port)
        return load_model(folder), Port(module=port.eval(), names=config.model_type)

    return make


def _shift_positions(port: Any) -> None:
    table = port.transformer.wpe
    plain = table.forward
    table.forward = lambda positions: plain(positions + 1)


def _fused_k_q_v(port: Any) -> None:
    for block in port.transformer.h:
        for tensor in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            q, k, v = tensor.split(48, dim=-1)
            tensor.copy_(torch.cat((k, q, v), dim=-1))


def _square_conv(port: Any) -> None:
    for block in port.transformer.h:
        block.attn.c_proj.weight.copy_(block.attn.c_proj.weight.mT.clone())


def _no_bias(path: str) -> Callable[[Any], None]:
    def spoil(port: Any) -> None:
        for name, parameter in port.named_parameters():
            if name.endswith(path):
                parameter.zero_()

    return spoil


def _no_embedding_scale(port: Any) -> None:
    port.model.embed_tokens.embed_scale = torch.tensor(1.0)


def _no_unit_offset(port: Any) -> None:
    for name, parameter in port.named_parameters():
        if "norm" in name:
            parameter.sub_(1)


def _tie(port: Any) -> None:
    port.lm_head.weight = port.model.embed_tokens.weight


def _swap_qk_norms(port: Any) -> None:
    for layer in port.model.layers:
        attention = layer.self_attn
        attention.q_norm, attention.k_norm = attention.k_norm, attention.q_norm


THEIRS = [
    Mistake(
        name="gpt2: exact gelu",
        operation="layers.0.feed_forward.inner",
        causes=("activation",),
        make=theirs("GPT2Config", GPT2, wrong={"activation_function": "gelu"}),
    ),
    Mistake(
        name="gpt2: Conv1D not transposed",
        operation="layers.0.mixer",
        causes=("transposed weight", "weights mixer.o_proj.weight"),
        make=theirs("GPT2Config", GPT2, spoil=_square_conv),
    ),
    Mistake(
        name="gpt2: fused as k, q, v",
        operation="layers.0.mixer.q_proj",
        causes=("q_proj and k_proj swapped",),
        make=theirs("GPT2Config", GPT2, spoil=_fused_k_q_v),
    ),
    Mistake(
        name="gpt2: positions begin with 1",
        operation="embedding",
        causes=("position offset",),
        make=theirs("GPT2Config", GPT2, spoil=_shift_positions),
    ),
    Mistake(
        name="gpt2: no bias of the first product",
        operation="layers.0.feed_forward.up_proj",
        causes=("bias missing", "weights feed_forward.up_proj.bias"),
        make=theirs("GPT2Config", GPT2, spoil=_no_bias("mlp.c_fc.bias")),
    ),
    Mistake(
        name="gpt2: eps",
        operation="layers.0.mixer_norm",
        causes=("norm eps",),
        make=theirs("GPT2Config", GPT2, wrong={"layer_norm_epsilon": 1e-3}),
    ),
    Mistake(
        name="gemma2: the embedding is not scaled",
        operation="embedding",
        causes=("embedding scale",),
        make=theirs("Gemma2Config", GEMMA2, spoil=_no_embedding_scale),
    ),
    Mistake(
        name="gemma2: no cap of the scores",
        operation="layers.0.mixer.attended",
        causes=("attention softcap",),
        make=theirs("Gemma2Config", GEMMA2, wrong={"attn_logit_softcapping": None}),
    ),
    Mistake(
        name="gemma2: no cap of the logits",
        operation="logits",
        causes=("logit softcap",),
        make=theirs("Gemma2Config", GEMMA2, wrong={"final_logit_softcapping": None}),
    ),
    Mistake(
        name="gemma2: norms scale by the weight alone",
        operation="layers.0.mixer_norm",
        causes=("norm unit offset", "norm weight -1"),
        make=theirs("Gemma2Config", GEMMA2, spoil=_no_unit_offset),
    ),
    Mistake(
        name="gemma2: scale by another number",
        operation="layers.0.mixer.attended",
        causes=("attention scale",),
        make=theirs("Gemma2Config", GEMMA2, wrong={"query_pre_attn_scalar": 27}),
    ),
    Mistake(
        name="gemma2: all layers look at everything",
        operation="layers.0.mixer.attended",
        causes=("window missing",),
        make=theirs("Gemma2Config", GEMMA2, wrong={"layer_types": ["full_attention"] * 2}),
    ),
    Mistake(
        name="llama: theta",
        operation="layers.0.mixer.q",
        causes=("rope theta",),
        make=theirs(
            "LlamaConfig",
            SIZES,
            wrong={"rope_parameters": {"rope_type": "default", "rope_theta": 432100.0}},
        ),
    ),
    Mistake(
        name="llama: scaling left out",
        operation="layers.0.mixer.q",
        causes=("rope scaling",),
        make=theirs(
            "LlamaConfig",
            SIZES | {"rope_parameters": LLAMA3},
            wrong={"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        ),
    ),
    Mistake(
        name="llama: tied by mistake",
        operation="logits",
        causes=("tied head", "weights lm_head.weight"),
        make=theirs("LlamaConfig", SIZES, spoil=_tie),
    ),
    Mistake(
        name="qwen2: no bias of k",
        operation="layers.0.mixer.k_proj",
        causes=("bias missing", "weights mixer.k_proj.bias"),
        make=theirs("Qwen2Config", SIZES, spoil=_no_bias("k_proj.bias")),
    ),
    Mistake(
        name="qwen3: the norms of q and k changed about",
        operation="layers.0.mixer.q_norm",
        causes=("q_norm and k_norm swapped",),
        make=theirs("Qwen3Config", SIZES | {"head_dim": 8}, spoil=_swap_qk_norms),
    ),
    Mistake(
        name="gpt_neox: all of each head is turned",
        operation="layers.0.mixer.q",
        causes=("rope fraction",),
        make=theirs(
            "GPTNeoXConfig",
            NEOX | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0}},
            wrong={"rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 500.0}},
        ),
    ),
    Mistake(
        name="gpt_neox: blocks one after the other",
        operation="layers.0.feed_forward_norm",
        causes=("norm placement",),
        make=theirs("GPTNeoXConfig", NEOX, wrong={"use_parallel_residual": False}),
    ),
    Mistake(
        name="mixtral: one expert instead of two",
        operation="layers.0.feed_forward",
        causes=("experts per token",),
        make=theirs(
            "MixtralConfig",
            SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
            wrong={"num_experts_per_tok": 1},
        ),
    ),
    Mistake(
        name="olmoe: weights of the experts not normalised",
        operation="layers.0.feed_forward",
        causes=("router normalisation",),
        make=theirs(
            "OlmoeConfig",
            SIZES | {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
            wrong={"norm_topk_prob": False},
        ),
    ),
]

MISTAKES = PLAIN + THEIRS
