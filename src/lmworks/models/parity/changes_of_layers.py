"""What ports get wrong about a layer: where norms and residuals stand, which layer's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lmworks.models.config.model import PLACEMENTS
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_layer
from lmworks.models.parity.trial import Change, Stage, replaced

_WORDS = {
    "pre": "before the block",
    "post": "after the residual sum",
    "output": "on the block's output",
    "sandwich": "before the block and on its output",
    "parallel": "before both blocks, which read the same stream",
    "parallel_shared": "as one before both blocks, which read the same stream",
}
# (x, the part's norm, what the part gives) -> what is added to x
_Residual = Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]
_RESIDUALS: dict[str, tuple[str, _Residual]] = {
    "residual missing": ("does not add the stream to", lambda x, norm, update: update - x),
    "residual from the norm": (
        "adds the normed stream, not the stream itself, to",
        lambda x, norm, update: update - x + norm(x),
    ),
    "residual twice": ("adds the stream twice to", lambda x, norm, update: update + x),
    "residual halved": ("halves what is added by", lambda x, norm, update: update * 0.5),
    "block missing": ("leaves out what is added by", lambda x, norm, update: update * 0),
}


def layer_changes(stage: Stage) -> Iterator[Change]:
    """Placement of norms, residuals."""
    config = stage.config.layers[0]
    here = _WORDS.get(config.placement, config.placement)
    for placement in PLACEMENTS:
        if placement != config.placement:
            yield Change(
                cause="norm placement",
                says=f"has its norms {_WORDS.get(placement, placement)} instead of {here}",
                fix=f"put the norms {here}",
                config=in_layer(placement=placement),
                expense=1,
            )
    yield from _orders(stage)
    parts = ["mixer", *(["feed_forward"] if config.feed_forward else [])]
    for part in parts:
        for cause, (says, residual) in _RESIDUALS.items():
            yield Change(
                cause=cause,
                says=f"{says} the {part.replace('_', '-')}'s output",
                fix=f"compute stream + {part.replace('_', '-')}(norm(stream))",
                patch=_adding(part, residual),
            )


def skipped_layers(stage: Stage) -> Iterator[Change]:
    """The port was seen to leave out the layers before this stage."""
    if stage.skipped:
        layers = " and ".join(map(str, stage.skipped))
        yield Change(
            cause="layer missing",
            says=f"does not compute layer {layers}",
            fix="run all layers",
            known=True,
        )


def _orders(stage: Stage) -> Iterator[Change]:
    """The weights of another layer in this one's place."""
    here = int(stage.name.removeprefix("layers."))
    for number, weights in enumerate(stage.layers):
        if number != here and weights.keys() == stage.layers[here].keys():
            yield Change(
                cause="layer order",
                says=f"has the weights of layer {number} in layer {here}",
                fix="put the layers in their order (is a list of names sorted as text?)",
                state=lambda state, weights=weights: state | weights,  # type: ignore[misc]
            )


def _adding(part: str, residual: _Residual) -> Any:
    def patch(model: Model) -> Any:
        layer: Any = model.layers[0]
        plain = layer._update

        def update(name: str, x: torch.Tensor, context: Any) -> torch.Tensor:
            given: torch.Tensor = plain(name, x, context)
            return residual(x, getattr(layer, f"{name}_norm"), given) if name == part else given

        return replaced(layer, "_update", update)

    return patch
