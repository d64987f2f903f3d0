"""(IA)^3: a number per output of the keys and values, and per input of the feed-forward's last.

Source: Liu et al. 2022, arXiv 2205.05638, section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.models.adapters import frozen
from lmworks.models.adapters.base import Adapter, AdapterConfig
from lmworks.models.adapters.foreign import ForeignNames, grouped
from lmworks.models.adapters.peft_values import as_names, peft_values, taken
from lmworks.models.adapters.targets import is_linear, matching, put

if TYPE_CHECKING:
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3Config(AdapterConfig):
    """Learned scales of keys, values and feed-forward activations."""

    kind: str = dataclasses.field(default="ia3", init=False)
    targets: tuple[str, ...] = option(
        ("k_proj", "v_proj", "down_proj"), help="names of layers, or patterns of them"
    )
    feed_forward_targets: tuple[str, ...] = option(
        ("down_proj",), help="those of them whose inputs are scaled instead of their outputs"
    )

    def attach(self, model: Model, generator: torch.Generator) -> dict[str, nn.Module]:
        """See `AdapterConfig`; nothing is random here."""
        chosen = matching(model, self.targets, is_linear, "linear layer")
        inside = set()
        if self.feed_forward_targets:
            inside = set(matching(model, self.feed_forward_targets, is_linear, "linear layer"))
        if outside := sorted(inside - chosen.keys()):
            raise UserError(f"ia3: {outside[0]} is in feed_forward_targets but not in targets")
        parts = {path: IA3Linear(base, inputs=path in inside) for path, base in chosen.items()}
        for path, part in parts.items():
            put(model, path, part)
        return dict(parts)

    def to_files(
        self, adapter: Adapter, names: ForeignNames
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """See `AdapterConfig`."""
        parts: dict[str, Any] = adapter.parts
        tensors: dict[str, torch.Tensor] = {}
        inside = set()
        groups = grouped(names, parts)
        for name, fused in groups.items():
            held = [parts[path] for path in fused.own if path in parts]
            if any(part.inputs for part in held):
                if len(fused.own) > 1:
                    raise UserError(f"{name} is one matrix for several of ours: can't be written")
                inside.add(name)
                tensors[f"{name}.ia3_l"] = held[0].scales[None]
            else:
                columns = [
                    parts[path].scales[:, None] if path in parts else torch.ones(rows, 1)
                    for path, rows in zip(fused.own, fused.rows)
                ]
                tensors[f"{name}.ia3_l"] = fused.rows_to_foreign(columns)
        values = peft_values("IA3", names, set(groups), groups) | {
            "feedforward_modules": names.shortest(inside) if inside else []
        }
        return values, tensors

    @classmethod
    def from_files(
        cls,
        model: Model,
        values: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        names: ForeignNames,
    ) -> Adapter:
        """See `AdapterConfig`."""
        theirs = names.by_foreign()
        found: dict[str, torch.Tensor] = {}
        inside: list[str] = []
        for name, tensor in taken(tensors, ".ia3_l").items():
            fused = theirs.get(name) or names.unknown(name)
            if tensor.shape[0] == 1 and fused.rows != (1,):
                inside += fused.own
                found |= dict.fromkeys(fused.own, tensor[0])
            else:
                columns = fused.rows_to_own(tensor)
                found |= {path: part[:, 0] for path, part in zip(fused.own, columns)}
        config = cls(targets=as_names(found), feed_forward_targets=as_names(inside))
        adapter = Adapter(model, config, config.attach(model, torch.Generator()))
        for path, scales in found.items():
            part: Any = adapter.parts[path]
            names.fill(part.scales, scales, path)
        return adapter


class IA3Linear(nn.Module):
    """(..., in) -> (..., out): outputs, or with `inputs` inputs, times a learned vector."""

    def __init__(self, base: nn.Module, *, inputs: bool) -> None:
        super().__init__()
        held: Any = base
        self.base: Any = base
        self.in_features: int = held.in_features
        self.out_features: int = held.out_features
        self.inputs, self.enabled = inputs, True
        self.scales = nn.Parameter(torch.ones(self.in_features if inputs else self.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if not self.enabled:
            out: torch.Tensor = self.base(x)
        elif self.inputs:
            out = self.base(x * self.scales)
        else:
            out = self.base(x) * self.scales
        return out

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return [self.scales]

    def merged(self) -> nn.Module:
        """See `Part`."""
        weight, bias = frozen.weight(self.base), frozen.bias(self.base)
        if self.inputs:
            return frozen.as_linear(weight * self.scales, bias)
        scaled = None if bias is None else bias * self.scales
        return frozen.as_linear(weight * self.scales[:, None], scaled)

    def taken_away(self) -> nn.Module:
        """See `Part`."""
        base: nn.Module = self.base
        return base
