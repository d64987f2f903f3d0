"""The float parameters of a model, a layer at a time: what quantising reads without holding all.

Parameters are given as the tensors of a GGUF file, grouped by the layer they belong to. Where they
come from a checkpoint, only those of one group are in memory. An adapter's folder is folded into
its base first, and then stands whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmworks.core.errors import UserError
from lmworks.models.adapters.base import is_adapter
from lmworks.models.architectures.base import architecture_of
from lmworks.models.architectures.rules import Bound
from lmworks.models.load import check_language_model, load_language_model, open_weights
from lmworks.models.model import Model
from lmworks.models.skeleton import skeleton
from lmworks.models.weights import bind_weights, read_weights

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig

BEFORE, AFTER = -1, 1 << 30  # groups of what stands before the layers, and behind them


class LayerSource:
    """A model without memory whose layers can be filled and emptied.

    Attributes:
        model: on the "meta" device, but for the groups that are loaded.
        config: its config.
    Raises: UserError for a reference that gives no language model, or one that GGUF can't hold.
    """

    def __init__(self, ref: str | Path) -> None:
        path = Path(ref)
        self.model: Model
        self._whole: dict[str, torch.Tensor] = {}
        if path.is_dir() and is_adapter(path):
            whole = load_language_model(path)
            self._whole = {name: p.detach() for name, p in whole.named_parameters()}
            self.config: ModelConfig = whole.config
            self.model = skeleton(whole.config)
        else:
            self._weights = open_weights(path)
            found = skeleton(self._weights.config)
            if not isinstance(found, Model):
                raise UserError(
                    f"{path} holds two towers that meet, and no model that stands alone"
                )
            check_language_model(found.config, path)
            self.model, self.config = found, found.config
            self._bounds = _by_group(bind_weights(self._weights, self.model))
        self.model.eval()
        self.layout = architecture_of(self.config, "gguf").layout("gguf")
        parameters = dict(self.model.named_parameters())
        self._theirs = _by_group(self.layout.bind(parameters, self.config))

    @property
    def groups(self) -> list[int]:
        """BEFORE, the numbers of the layers, AFTER."""
        return sorted(self._theirs)

    def load(self, group: int) -> None:
        """Fill the parameters of a group. Raises: UserError for weights that are not finite."""
        names = {name for bound in self._theirs[group] for name in bound.own}
        state: dict[str, torch.Tensor] = {}
        if self._whole:
            state = {name: self._whole[name] for name in names}
        else:
            for bound in self._bounds[group]:
                if not names.isdisjoint(bound.own):
                    state |= read_weights(self._weights, bound)
        self.model.load_state_dict(state, strict=False, assign=True)
        for name in state:
            self.model.get_parameter(name).requires_grad_(False)

    def drop(self, group: int) -> None:
        """Forget the values of a group."""
        for bound in self._theirs[group]:
            for name in bound.own:
                parameter = self.model.get_parameter(name)
                parent, _, last = name.rpartition(".")
                empty = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
                setattr(self.model.get_submodule(parent), last, empty)

    def tensors(self, group: int) -> Iterator[tuple[str, np.ndarray, Bound]]:
        """The group's tensors as a file holds them, float32, and the rule that made each."""
        for bound in self._theirs[group]:
            own = [self.model.get_parameter(name).detach() for name in bound.own]
            for name, tensor in bound.to_foreign(own).items():
                yield name, np.ascontiguousarray(tensor.numpy(), dtype=np.float32), bound

    def bounds(self, group: int) -> list[Bound]:
        """The rules of the group's tensors."""
        return self._theirs[group]

    def names(self, group: int) -> list[str]:
        """Of the group's tensors in the file."""
        return [name for bound in self._theirs[group] for name in bound.foreign]

    def row_order(self, bound: Bound) -> np.ndarray | None:
        """Which row of ours each row of the file's tensor is; None: the same."""
        order = bound.row_order
        return None if order is None else np.argsort(order.numpy())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the file, nothing being loaded."""
        found: dict[str, tuple[int, ...]] = {}
        for group in self.groups:
            for bound in self._theirs[group]:
                own = [self.model.get_parameter(name).to("meta") for name in bound.own]
                found |= {name: tuple(t.shape) for name, t in bound.to_foreign(own).items()}
        return found | {name: a.shape for name, a in self.layout.extras(self.config).items()}

    def put(self, bound: Bound, theirs: dict[str, np.ndarray]) -> None:
        """Set the parameters of a rule to what the file's tensors say."""
        parts = [torch.from_numpy(theirs[name]) for name in bound.foreign]
        for name, tensor in bound.to_own(parts).items():
            self.model.get_parameter(name).data = tensor.contiguous()


def _by_group(bounds: list[Bound]) -> dict[int, list[Bound]]:
    groups: dict[int, list[Bound]] = {}
    for bound in bounds:
        found = re.match(r"layers\.(\d+)\.", bound.own[0])
        if found:
            group = int(found[1])
        else:
            group = AFTER if re.match(r"(norm|head|lm_head)\.", bound.own[0]) else BEFORE
        groups.setdefault(group, []).append(bound)
    return groups
