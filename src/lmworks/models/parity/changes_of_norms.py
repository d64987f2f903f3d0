"""What ports get wrong about norms: epsilon, 1 + weight, the kind, a weight or a whole norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lmworks.models.config import LayerNormConfig, ModelConfig, NormConfig, RMSNormConfig
from lmworks.models.model import Model
from lmworks.models.norms import LayerNorm, RMSNorm, build_norm
from lmworks.models.parity.changes import part_of, told
from lmworks.models.parity.trial import END, Change, Stage, replaced
from lmworks.models.skeleton import skeleton

_EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3)


def norm_changes(stage: Stage) -> Iterator[Change]:
    """For all norms of the stage at once, where one config serves them, and for each alone."""
    for config, says, fix, cause in _all(stage):
        yield Change(cause=cause, says=says, fix=fix, config=config)
    for path, norm in _norms(stage):
        yield from _of_one(path, norm)


def _all(stage: Stage) -> Iterator[tuple[Any, str, str, str]]:
    end = stage.name == END
    norm = stage.config.norm if end else stage.config.layers[0].norm
    if norm is None:
        return
    for changed, says, fix, cause in _variants(norm):

        def config(whole: ModelConfig, changed: NormConfig = changed) -> ModelConfig:
            if end:
                return dataclasses.replace(whole, norm=changed)
            layer = dataclasses.replace(whole.layers[0], norm=changed)
            return dataclasses.replace(whole, layers=(layer,))

        yield config, f"{says} in its norms", fix, cause


def _variants(norm: NormConfig) -> Iterator[tuple[NormConfig, str, str, str]]:
    """(config, what the port does, what to do, the cause) of each change of a norm's config."""
    for eps in _EPS:
        if eps != norm.eps:
            yield (
                dataclasses.replace(norm, eps=eps),
                f"uses eps {told(eps)} instead of {told(norm.eps)}",
                f"set rms_norm_eps (or layer_norm_eps) to {told(norm.eps)}",
                "norm eps",
            )
    if isinstance(norm, RMSNormConfig):
        wants, does = (
            ("1 + weight", "the weight") if norm.unit_offset else ("the weight", "1 + weight")
        )
        yield (
            dataclasses.replace(norm, unit_offset=not norm.unit_offset),
            f"scales by {does} instead of {wants}",
            f"multiply by {wants}",
            "norm unit offset",
        )
        yield (
            LayerNormConfig(eps=norm.eps, bias=False),
            "subtracts the mean (LayerNorm, not RMSNorm)",
            "use RMSNorm",
            "norm kind",
        )
    else:
        yield (
            RMSNormConfig(eps=norm.eps),
            "does not subtract the mean (RMSNorm, not LayerNorm)",
            "use LayerNorm",
            "norm kind",
        )


def _norms(stage: Stage) -> Iterator[tuple[str, RMSNorm | LayerNorm]]:
    for path, module in skeleton(stage.config).named_modules():
        if isinstance(module, RMSNorm | LayerNorm) and path.startswith("layers") == (
            stage.name.startswith("layers")
        ):
            yield path, module


def _config(norm: RMSNorm | LayerNorm) -> NormConfig:
    if isinstance(norm, RMSNorm):
        return RMSNormConfig(eps=norm.eps, unit_offset=norm.unit_offset)
    return LayerNormConfig(eps=norm.eps, bias=norm.bias is not None)


def _of_one(path: str, norm: RMSNorm | LayerNorm) -> Iterator[Change]:
    name = part_of(path)
    size = norm.weight.shape[0]
    for changed, says, fix, cause in _variants(_config(norm)):
        yield Change(
            cause=cause,
            says=f"{says} in {name} alone",
            fix=f"{fix} in {name}",
            patch=_putting(path, changed, size),
            expense=1,
        )
    if isinstance(norm, RMSNorm):
        for eps in (norm.eps, *_EPS, 1e-2):
            yield Change(
                cause="norm eps",
                says=f"adds eps {told(eps)} outside of the root in {name}",
                fix=f"add eps {told(norm.eps)} to the mean of the squares, under the root",
                patch=_outside(path, eps),
                expense=1,
            )
    yield Change(
        cause="norm missing",
        says=f"has no {name}: the stream passes as it is",
        fix=f"apply {name}",
        patch=lambda model: _put(model, path, nn.Identity()),
    )
    neutral = torch.zeros if isinstance(norm, RMSNorm) and norm.unit_offset else torch.ones
    yield Change(
        cause="norm weight missing",
        says=f"does not multiply by the weight of {name}",
        fix=f"load {name}.weight",
        state=lambda state: state | {f"{path}.weight": neutral(size)},
    )


def _putting(path: str, config: NormConfig, size: int) -> Any:
    def patch(model: Model) -> Any:
        former: Any = model.get_submodule(path)
        norm = build_norm(config, size)
        norm.weight = former.weight
        if isinstance(norm, LayerNorm) and norm.bias is not None:
            bias = getattr(former, "bias", None)
            norm.bias = bias if bias is not None else nn.Parameter(torch.zeros(size))
        return _put(model, path, norm)

    return patch


class _EpsOutside(nn.Module):
    """x / (sqrt(mean(x^2)) + eps) * scale."""

    def __init__(self, norm: RMSNorm, eps: float) -> None:
        super().__init__()
        self.norm, self.eps = norm, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        scale = self.norm.weight + 1 if self.norm.unit_offset else self.norm.weight
        return x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps) * scale


def _outside(path: str, eps: float) -> Any:
    def patch(model: Model) -> Any:
        norm: Any = model.get_submodule(path)
        return _put(model, path, _EpsOutside(norm, eps))

    return patch


def _put(model: Model, path: str, module: nn.Module) -> Any:
    parent, _, name = path.rpartition(".")
    return replaced(model.get_submodule(parent), name, module)
