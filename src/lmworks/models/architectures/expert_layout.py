"""What architectures with experts share: their names in files, and their keys in a `config.json`.

transformers keeps the experts of a layer in one tensor, but writes each expert's matrices by
themselves, as all files did before; `save_pretrained(save_original_format=False)` writes what it
keeps. Both are read; the first is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.llama_layout import hf_rules
from lmworks.models.architectures.rules import Rule, experts, same, transposed
from lmworks.models.architectures.values import Values, activation
from lmworks.models.config import BlockConfig, MLPConfig, ModelConfig, MoEConfig, RouterConfig

_OWN, _HF = "layers.{}.feed_forward.", "model.layers.{}."
# How a file says that the experts of a layer are in one tensor.
FUSED = r"model\.layers\.\d+\.mlp\.experts\.gate_up_proj"
LLAMA_NAMES = ("gate_proj", "up_proj", "down_proj")


def expert_rules(
    block: str = "mlp.", names: Sequence[str] = LLAMA_NAMES, *, shared: str = "shared_expert"
) -> list[Rule]:
    """Names where each expert's matrices stand by themselves.

    Args:
        block: what the feed-forward is called.
        names: an expert's gate, up and down.
        shared: what the shared expert is called.
    """
    one = f"{_HF}{block}experts.{{}}."
    gate, up, down = (f"{one}{name}.weight" for name in names)
    return [
        *_common(block, shared),
        experts(f"{_OWN}experts.gate_up_proj", [gate, up]),
        experts(f"{_OWN}experts.down_proj", [down]),
    ]


def fused_expert_rules(shared: str = "shared_expert") -> list[Rule]:
    """Names where the experts of a layer stand in one tensor."""
    return [
        *_common("mlp.", shared),
        transposed(f"{_OWN}experts.gate_up_proj", f"{_HF}mlp.experts.gate_up_proj"),
        transposed(f"{_OWN}experts.down_proj", f"{_HF}mlp.experts.down_proj"),
    ]


def _common(block: str, shared: str) -> list[Rule]:
    rules = [
        *hf_rules(),
        same(f"{_OWN}router.weight", f"{_HF}{block}gate.weight"),
        same(f"{_OWN}router_bias", f"{_HF}{block}gate.e_score_correction_bias"),
        same(f"{_OWN}shared_gate.weight", f"{_HF}{block}shared_expert_gate.weight"),
    ]
    for name in LLAMA_NAMES:
        own = f"{_OWN}shared_expert.{name}.weight"
        rules.append(same(own, f"{_HF}{block}{shared}.{name}.weight"))
    return rules


def moe_from_hf(
    values: Values, *, size: str, count: str = "num_experts", normalize: bool, **changes: Any
) -> MoEConfig:
    """The experts of a `config.json`.

    Args:
        size: the key of an expert's size.
        count: the key of the number of experts.
        normalize: whether weights sum to 1 where nothing is said of it.
    """
    counted = "num_local_experts" if "num_local_experts" in values else count
    return MoEConfig(
        num_experts=values.count(counted),
        num_experts_per_tok=values.count("num_experts_per_tok"),
        intermediate_size=values.count(size),
        activation=activation(values, "hidden_act", "silu"),
        router=RouterConfig(
            norm_topk_prob=values.flag("norm_topk_prob", normalize),
            aux_loss_coef=values.number("router_aux_loss_coef", 0.001),
            z_loss_coef=values.number("router_z_loss_coef", 0.0),
        ),
        **changes,
    )


def moe_to_hf(moe: Any, *, size: str, count: str = "num_experts") -> dict[str, Any]:
    """The keys that `moe_from_hf` reads. `router_z_loss_coef` is our own; others pass it over."""
    router: RouterConfig = moe.router
    z_loss = {"router_z_loss_coef": router.z_loss_coef} if router.z_loss_coef else {}
    return {
        count: moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        size: moe.intermediate_size,
        "norm_topk_prob": router.norm_topk_prob,
        "router_aux_loss_coef": router.aux_loss_coef,
        "output_router_logits": False,
        **z_loss,
    }


def sparse_layers(values: Values) -> Callable[[int], bool]:
    """(number of a layer) -> whether it has experts, as the Qwen MoEs say it.

    Raises: UserError for values that fit no model.
    """
    step = values.count("decoder_sparse_step", 1)
    dense = values.items("mlp_only_layers", [])
    if step < 1:
        raise UserError(f"decoder_sparse_step must be a whole number >= 1, not {step}")
    return lambda number: number not in dense and (number + 1) % step == 0


def with_dense(config: ModelConfig, dense: MLPConfig, sparse: Callable[[int], bool]) -> ModelConfig:
    """`config`, whose layers all have experts, with `dense` in those that are not `sparse`."""
    changed = [
        layer if sparse(number) else dataclasses.replace(layer, feed_forward=dense)
        for number, layer in enumerate(config.layers)
    ]
    return dataclasses.replace(config, layers=tuple(changed))


def split_layers(config: ModelConfig) -> tuple[MoEConfig, MLPConfig | None, list[int]]:
    """The experts of a model, its dense feed-forward, and the numbers of the layers that have it.

    Raises: UserError for a model without experts.
    """
    parts: list[BlockConfig | None] = [layer.feed_forward for layer in config.layers]
    moe = next((part for part in parts if isinstance(part, MoEConfig)), None)
    if moe is None:
        raise UserError("this model has no experts")
    dense = next((part for part in parts if isinstance(part, MLPConfig)), None)
    return moe, dense, [i for i, part in enumerate(parts) if isinstance(part, MLPConfig)]


def variants(shared: str = "shared_expert") -> Mapping[str, Sequence[Rule]]:
    """`Layout.variants` of these architectures."""
    return {FUSED: fused_expert_rules(shared)}
