"""A model quantised layer by layer, each on the inputs that the quantised ones before it give.

One layer is in memory in float32 at a time. Tensors go to a `TensorStore`; a run that was killed
lets the calibration text pass the layers that it finds there and goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lmworks.compression.layer_inputs import LayerInputs, LayerWalk, linear_paths
from lmworks.compression.layer_source import AFTER, BEFORE, LayerSource
from lmworks.compression.methods.base import Matrix, Method, Round
from lmworks.compression.tensor_store import TensorStore
from lmworks.core import quantizers
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import FLOATS, INSTEAD, TYPES, encode_floats
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.core.progress import track
from lmworks.models.architectures.rules import Bound

Types = Callable[[str, tuple[int, ...]], str]  # (name, shape) -> the type it is to have
_LARGEST_HALF = 65504.0


def fitting_type(kind: str, shape: Sequence[int]) -> str:
    """`kind`, or the nearest that a tensor of this shape can have."""
    if len(shape) < 2:
        return "F32"
    if kind in INSTEAD and shape[-1] % TYPES[kind].size:
        kind = INSTEAD[kind]
    return "F16" if shape[-1] % TYPES[kind].size else kind


def encode_matrix(matrix: Matrix, shape: tuple[int, ...], kind: str, rounding: Round) -> GGUFTensor:
    """One tensor in the wanted type, or in the nearest that its shape and values allow.

    Args:
        matrix: the tensor with all but its last dimension in one.
    """
    kind, values = fitting_type(kind, shape), matrix.weight
    data = None
    if kind in quantizers.QUANTIZERS and np.isfinite(values).all():
        try:
            data = rounding(matrix, kind)
        except UserError:  # too large for its scales
            kind = "F32"
    elif kind == "F16" and not np.abs(values).max(initial=0) <= _LARGEST_HALF:
        kind = "F32"
    if data is None:
        data = encode_floats(values, kind if kind in FLOATS else "F32")
    return GGUFTensor(
        name=matrix.name, shape=shape, type=kind, data=data.reshape(-1).view(np.uint8)
    )


class LayerQuantizer:
    """Quantises the tensors of a source into a store.

    Args:
        types: which type each tensor is to have.
        rows: token rows of calibration text, for methods that need it.
        importance: by tensor name, the mean squares of the inputs, (n,), out of a file; in place of
            what the rows say of them.
        damping: see `Matrix`.
    """

    def __init__(
        self,
        source: LayerSource,
        store: TensorStore,
        types: Types,
        how: Method,
        *,
        rows: Sequence[np.ndarray] = (),
        importance: Mapping[str, np.ndarray] | None = None,
        damping: float = 0.0,
    ) -> None:
        self.source, self.store, self.types, self.how = source, store, types, how
        self.rounding, self.rescale = how.rounding(), how.rescaling()
        self.rows, self.importance, self.damping = rows, importance or {}, damping

    def run(self) -> None:
        """Quantise what the store doesn't hold yet."""
        names = self.source.shapes()
        for name, values in self.source.layout.extras(self.source.config).items():
            if name not in self.store:
                plain = GGUFTensor(
                    name=name, shape=values.shape, type="F32",
                    data=np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8),
                )  # fmt: skip
                self.store.put(plain)
        with track("quantizing", total=len(names)) as bar, torch.inference_mode():
            walk = self._walk()
            final: dict[str, LayerInputs] = {}
            # The embedding comes last: where it is the head too, it is known then what it is given.
            for group in sorted(self.source.groups, key=lambda g: (g == BEFORE, g)):
                mine = self.source.names(group)
                done = all(name in self.store for name in mine)
                if done and (walk is None or group in (AFTER, BEFORE)):
                    bar.advance(len(mine))
                    continue
                self.source.load(group)
                inputs = {} if done else self._inputs(walk, group, final)
                for name, values, bound in list(self.source.tensors(group)):
                    if name not in self.store:
                        self._quantize(name, values, bound, inputs)
                    bar.advance()
                self.store.keep()
                if walk is not None and group not in (AFTER, BEFORE):
                    self._replace(group)
                    walk.advance(group)
                self.source.drop(group)

    def _walk(self) -> LayerWalk | None:
        if not self.rows:
            return None
        self.source.load(BEFORE)
        walk = LayerWalk(self.source.model, self.rows)
        self.source.drop(BEFORE)
        return walk

    def _inputs(
        self, walk: LayerWalk | None, group: int, final: dict[str, LayerInputs]
    ) -> dict[str, LayerInputs]:
        """By path of a module; after the layers, `final` is filled."""
        if walk is None:
            return {}
        moments = self.how.needs == "moments"
        model = self.source.model
        if group == AFTER:
            final["lm_head"] = walk.final(moments=moments)
        if group == BEFORE and self.source.config.tie_word_embeddings:
            if not final:  # another run has been here
                self.source.load(AFTER)
                final["lm_head"] = walk.final(moments=moments)
                self.source.drop(AFTER)
            return {"embed_tokens": final["lm_head"]}
        if group in (AFTER, BEFORE):
            return final if group == AFTER else {}
        paths = linear_paths(model.layers[group], f"layers.{group}")
        inputs = walk.inputs(group, paths, moments=moments)
        if self.rescale is not None:
            kind = self.types(*self._a_matrix(group))
            inputs = self.rescale(model, group, inputs, kind)
        return inputs

    def _a_matrix(self, group: int) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the largest tensor of a layer, whose type scales are searched for."""
        shapes = {name: values.shape for name, values, _ in self.source.tensors(group)}
        name = max(shapes, key=lambda name: (len(shapes[name]), np.prod(shapes[name])))
        return name, shapes[name]

    def _quantize(
        self, name: str, values: np.ndarray, bound: Bound, inputs: Mapping[str, LayerInputs]
    ) -> None:
        flat = values.reshape(-1, values.shape[-1])
        matrix = Matrix(
            name=name, weight=flat, inputs=self._inputs_of(name, flat, bound, inputs),
            damping=self.damping,
        )  # fmt: skip
        tensor = encode_matrix(matrix, values.shape, self.types(name, values.shape), self.rounding)
        self.store.put(tensor, **_facts(tensor, matrix))

    def _inputs_of(
        self, name: str, values: np.ndarray, bound: Bound, inputs: Mapping[str, LayerInputs]
    ) -> LayerInputs | None:
        """What is known of a tensor's inputs, where all modules in it are given the same."""
        found = [inputs.get(own.rpartition(".")[0]) for own in bound.own]
        first = found[0]
        columns = values.shape[1]
        same = first is not None and all(
            other is not None and np.array_equal(other.mean_square, first.mean_square)
            for other in found
        )
        if first is not None and (not same or len(first.mean_square) != columns):
            first = None
        if name in self.importance:
            squares = self.importance[name]
            if squares.shape != (columns,):
                raise UserError(
                    f"the importance of {name} is for {len(squares)} inputs, but it has {columns}: "
                    "was the file made from this model?"
                )
            moment = None if first is None else first.moment
            return LayerInputs(
                count=0, mean_square=squares, largest=np.sqrt(squares), moment=moment
            )
        return first

    def _replace(self, group: int) -> None:
        """Put what the file will say in the model, so that the next layer gets its outputs."""
        for bound in self.source.bounds(group):
            theirs = {name: dequantize(self.store.tensor(name)) for name in bound.foreign}
            self.source.put(bound, theirs)


def _facts(tensor: GGUFTensor, matrix: Matrix) -> dict[str, Any]:
    if len(tensor.shape) < 2:
        return {}
    change = dequantize(tensor).reshape(matrix.weight.shape) - matrix.weight
    size = float(np.linalg.norm(matrix.weight))
    facts: dict[str, Any] = {"error": float(np.linalg.norm(change)) / size if size else 0.0}
    if matrix.inputs is not None:
        outputs = matrix.output_error(matrix.weight)
        facts["output_error"] = matrix.output_error(change) / outputs if outputs > 0 else 0.0
    return facts
