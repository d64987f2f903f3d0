"""A model's modules and shapes without memory: what a loader fills, and what names are told by."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lmworks.models.config import ModelConfig, TwoTowerConfig
from lmworks.models.model import Model
from lmworks.models.two_tower import TwoTower, build_model


@overload
def skeleton(config: ModelConfig) -> Model: ...


@overload
def skeleton(config: TwoTowerConfig) -> TwoTower: ...


def skeleton(config: ModelConfig | TwoTowerConfig) -> Model | TwoTower:
    """The model on the "meta" device, with shapes and no values.

    Nothing is drawn for it: torch's modules draw fresh weights when they are made, and on "meta"
    that alone would import torch's compiler, which takes seconds.
    """
    with torch.device("meta"), _WithoutDrawing():
        return build_model(config)


class _WithoutDrawing(TorchFunctionMode):
    """`nn.init` leaves tensors as they are while it lasts."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
