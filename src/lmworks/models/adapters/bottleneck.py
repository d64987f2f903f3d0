"""Bottleneck adapters: a thin feed-forward after a block, before the sum with the residual.

Houlsby et al. put one after the mixer and one after the feed-forward of each layer; Pfeiffer et al.
found the second alone to do as well. The last matrix starts at zero, so that the model at first
says what it said. PEFT has no such adapter: the folder is in its manner, but our own.

Source: Houlsby et al. 2019, arXiv 1902.00751, section 2.1; Pfeiffer et al. 2020, arXiv 2005.00247.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.utils import skip_init

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.models.adapters.base import Adapter, AdapterConfig
from lmworks.models.adapters.targets import put
from lmworks.models.context import Context
from lmworks.models.feed_forward import activation
from lmworks.models.initialization import INIT_STD

if TYPE_CHECKING:
    from lmworks.models.adapters.foreign import ForeignNames
    from lmworks.models.model import Model

_PLACES = {"houlsby": ("mixer", "feed_forward"), "pfeiffer": ("feed_forward",)}
_SIZE_KEYS = ("size", "placement", "activation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckConfig(AdapterConfig):
    """Thin feed-forwards after the blocks of each layer."""

    mergeable: ClassVar[bool] = False
    kind: str = dataclasses.field(default="bottleneck", init=False)
    size: int = option(32, help="width of the bottleneck")
    placement: Literal["houlsby", "pfeiffer"] = option(
        "pfeiffer", help="after mixer and feed-forward (houlsby), or after the feed-forward alone"
    )
    activation: str = option("relu", help="between its two matrices")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"bottleneck: size must be at least 1, not {self.size}")

    def attach(self, model: Model, generator: torch.Generator) -> dict[str, nn.Module]:
        """See `AdapterConfig`."""
        parts: dict[str, nn.Module] = {}
        for number, layer in enumerate(model.layers):
            for place in _PLACES[self.placement]:
                if (block := getattr(layer, place, None)) is not None:
                    path = f"layers.{number}.{place}"
                    parts[path] = Bottleneck(block, model.config.hidden_size, self, generator)
        if not parts:
            raise UserError("bottleneck: this model has no feed-forwards: use --set placement")
        for path, part in parts.items():
            put(model, path, part)
        return parts

    def to_files(
        self, adapter: Adapter, names: ForeignNames
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """See `AdapterConfig`: our own words, since PEFT has none."""
        values = {"adapter_type": self.kind} | {key: getattr(self, key) for key in _SIZE_KEYS}
        tensors = {
            f"{path}.{name}": tensor
            for path, part in adapter.parts.items()
            for name, tensor in part.state_dict().items()
            if not name.startswith("base.")
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
        from lmworks.core.config import from_mapping

        given = {key: values[key] for key in _SIZE_KEYS if key in values}
        config = from_mapping(cls, given, where="adapter_config.json")
        adapter = Adapter(model, config, config.attach(model, torch.Generator()))
        for path, part in adapter.parts.items():
            for name, parameter in part.named_parameters():
                if not name.startswith("base."):
                    names.fill(parameter, tensors.pop(f"{path}.{name}", None), f"{path}.{name}")
        return adapter


class Bottleneck(nn.Module):
    """A block, and after it x + up(activation(down(x)))."""

    def __init__(
        self,
        base: nn.Module,
        hidden_size: int,
        config: BottleneckConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.enabled = base, True
        self.down = skip_init(nn.Linear, hidden_size, config.size)
        self.up = skip_init(nn.Linear, config.size, hidden_size)
        self.activation = activation(config.activation)
        nn.init.normal_(self.down.weight, std=INIT_STD, generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        y: torch.Tensor = self.base(x, context)
        if self.enabled:
            y = y + self.up(self.activation(self.down(y)))
        return y

    def __getattr__(self, name: str) -> Any:
        """The block's own attributes, for those who ask a layer for its mixer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return [*self.down.parameters(), *self.up.parameters()]

    def merged(self) -> nn.Module:
        """See `Part`. Raises: UserError: what stands between is no matrix."""
        raise UserError("bottleneck adapters can't be merged: no weights do what they do")

    def taken_away(self) -> nn.Module:
        """See `Part`."""
        return self.base
