"""What ports get wrong about the feed-forward: the activation, and how experts are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models.config import MLPConfig, MoEConfig
from lmworks.models.config.feed_forward import ACTIVATIONS
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_part, told
from lmworks.models.parity.trial import Change, Stage, State, replaced

_MOST_EXPERTS = 8  # per token that are tried


def feed_forward_changes(stage: Stage) -> Iterator[Change]:
    """Those of a layer's feed-forward, if it has one with an activation."""
    config = stage.config.layers[0].feed_forward
    activation = getattr(config, "activation", None)
    if not isinstance(activation, str):
        return
    for name in ACTIVATIONS:
        if name != activation:
            yield Change(
                cause="activation",
                says=f"uses {name} where {activation} is meant",
                fix=f"set hidden_act to {activation}",
                config=in_part("feed_forward", activation=name),
            )
    if isinstance(config, MLPConfig):
        yield Change(
            cause="activation missing",
            says="has no activation between the two products",
            fix=f"apply {activation}",
            patch=lambda model: _activating(model, lambda x: x),
        )
    if isinstance(config, MoEConfig):
        yield from _expert_changes(config)


def _activating(model: Model, function: Any) -> Any:
    feed_forward: Any = model.layers[0].feed_forward
    return replaced(feed_forward, "activation", function)


def _expert_changes(config: MoEConfig) -> Iterator[Change]:
    router = config.router
    for count in range(1, min(_MOST_EXPERTS, config.num_experts) + 1):
        if count != config.num_experts_per_tok:
            yield Change(
                cause="experts per token",
                says=f"sends a token to {count} experts instead of {config.num_experts_per_tok}",
                fix=f"set num_experts_per_tok to {config.num_experts_per_tok}",
                config=in_part("feed_forward", num_experts_per_tok=count),
            )
    does, wanted = ("does not make", "make") if router.norm_topk_prob else ("makes", "do not make")
    yield Change(
        cause="router normalisation",
        says=f"{does} the weights of a token's experts sum to 1",
        fix=f"{wanted} them sum to 1 (norm_topk_prob)",
        config=_routing(router, norm_topk_prob=not router.norm_topk_prob),
    )
    scoring = "sigmoid" if router.scoring == "softmax" else "softmax"
    yield Change(
        cause="router scoring",
        says=f"scores experts by {scoring} instead of {router.scoring}",
        fix=f"use {router.scoring}",
        config=_routing(router, scoring=scoring),
    )
    if router.scale != 1:
        yield Change(
            cause="router scale",
            says=f"does not multiply the experts' weights by {told(router.scale)}",
            fix="apply routed_scaling_factor",
            config=_routing(router, scale=1.0),
        )
    if config.shared_gate:
        yield Change(
            cause="shared expert's gate missing",
            says="adds what the shared expert gives as it is",
            fix="multiply it by the sigmoid of shared_expert_gate",
            config=in_part("feed_forward", shared_gate=False),
        )
    if config.shared_intermediate_size:
        yield Change(
            cause="shared expert missing",
            says="leaves the shared expert out",
            fix="add what the shared expert gives",
            config=in_part("feed_forward", shared_intermediate_size=0, shared_gate=False),
        )
    for cause, says, order in (
        ("expert order", "holds the experts in the reverse order", _flipped),
        ("experts' gate and up swapped", "takes each expert's gate for its up", _turned),
    ):
        yield Change(cause=cause, says=says, fix="keep their order", state=order)


def _routing(router: Any, **fields: Any) -> Any:
    return in_part("feed_forward", router=dataclasses.replace(router, **fields))


def _experts(state: State, change: Any) -> State:
    changed = {name: change(name, tensor) for name, tensor in state.items() if ".experts." in name}
    return state | changed


def _flipped(state: State) -> State:
    return _experts(state, lambda name, tensor: tensor.flip(0))


def _turned(state: State) -> State:
    """Gate and up lie one after the other in the last dimension."""

    def turn(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.roll(tensor.shape[-1] // 2, -1) if "gate_up" in name else tensor

    return _experts(state, turn)
