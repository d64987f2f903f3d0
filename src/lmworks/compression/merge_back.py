"""An adapter folded into the quantised blocks that it was trained on, type for type.

What a fine-tune adds is smaller than a step between two codes, so rounding its sum with the weights
anew loses most of it, and adds the error of a second rounding. Here each matrix becomes blocks of
the same type whose outputs on calibration text are nearest to the adapted ones (`block_solver`).
Layers are solved in order, each on the inputs that the merged layers before it give, so that it
makes up for what they missed.

The file is copied and the bytes of the changed tensors are replaced: everything else in it, the
metadata, the vocabulary, the chat template, stays as it is to the byte. Memory is that of the
packed model, one matrix in float32, and the states of the calibration text.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.layer_inputs import BATCH_TOKENS, LayerWalk
from lmworks.core import quantizers
from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, writing
from lmworks.core.ggml_types import FLOATS, encode_floats
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.core.progress import track
from lmworks.models.adapters.frozen import as_linear
from lmworks.models.gguf_weights import GGUFWeights
from lmworks.models.packed import PackedLinear
from lmworks.models.skeleton import skeleton
from lmworks.models.weights import bind_weights

if TYPE_CHECKING:
    from lmworks.models.model import Model

Wanted = Callable[[], torch.Tensor]  # the adapted matrix (out, in), float32, made when asked for
MIN_TOKENS = 256  # of calibration text; fewer say little about what a layer is given
_LAYERS = "layers."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A matrix of the model and where it lies in the file: `rows` are our order of the tensor's."""

    path: str
    tensor: GGUFTensor
    rows: np.ndarray | None

    def ours(self) -> GGUFTensor:
        """The tensor with its rows in our order."""
        if self.rows is None:
            return self.tensor
        data = np.asarray(self.tensor.data).reshape(len(self.rows), -1)[self.rows]
        return dataclasses.replace(self.tensor, data=data.reshape(-1))

    def theirs(self, raw: np.ndarray) -> np.ndarray:
        """Bytes of our rows, in the file's order."""
        if self.rows is None:
            return raw
        data = np.empty_like(raw)
        data[self.rows] = raw
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of one matrix.

    Attributes:
        error_unchanged, error: mean square error of its outputs on the calibration text, with the
            blocks as they were and as they are, over the mean square of what the adapter changes;
            0 is perfect, 1 is as if nothing had been merged. NaN where nothing was measured.
        codes_changed: share of its codes.
    """

    name: str
    type: str
    error_unchanged: float
    error: float
    codes_changed: float


def find_places(weights: GGUFWeights, paths: Sequence[str]) -> list[Place]:
    """Where the matrices of the modules `paths` lie, all of which can be written.

    Raises: UserError naming the first that has no tensor of its own or a type that can't be
        written, and what to do instead.
    """
    bounds = bind_weights(weights, skeleton(weights.config))
    by_name = {bound.own[0]: bound for bound in bounds if bound.rule.plain}
    places = []
    for path in paths:
        bound = by_name.get(f"{path}.weight")
        if bound is None or not path.startswith(_LAYERS):
            raise UserError(
                f"{weights.path}: {path} has no matrix of its own in the layers of the file, so an "
                "adapter on it can't be merged into blocks: merge into float32 weights with "
                "`lmworks model merge-adapter`"
            )
        tensor = weights.tensors[bound.foreign[0]]
        if tensor.type not in FLOATS:
            quantizers.check_writable(tensor.type, f"{weights.path}: {tensor.name}")
        order = bound.row_order
        rows = None if order is None else order.numpy()
        places.append(Place(path=path, tensor=tensor, rows=rows))
    return places


def merge_plainly(
    weights: GGUFWeights, places: Sequence[Place], wanted: dict[str, Wanted], out: Path
) -> list[Merged]:
    """The baseline: every adapted matrix is rounded to its type anew.

    Raises: UserError for an adapted matrix that is not finite, by name.
    """
    _copy(weights.path, out)
    merged = []
    with track("re-quantising", total=len(places)) as bar, writing(out), open(out, "r+b") as file:
        for place in places:
            values = _finite(wanted[place.path](), place)
            raw = _rounded(values, place.tensor)
            _put(file, place, raw)
            merged.append(_outcome(place, raw))
            bar.advance()
    return merged


def merge_back(
    weights: GGUFWeights,
    model: Model,
    places: Sequence[Place],
    wanted: dict[str, Wanted],
    rows: Sequence[np.ndarray],
    out: Path,
    *,
    work: Path,
    damping: float = 0.5,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Merged]:
    """Solve every adapted matrix on calibration text and write the file; see the module.

    Args:
        model: the packed model of `weights` with the adapter on it; its layers are replaced by the
            merged ones.
        wanted: by the path of a module: what its matrix should be.
        rows: token ids of the calibration texts.
        work: folder for what a later run goes on with.
        damping: of the second moments, as a share of their mean: how much the weights themselves
            count beside the outputs.
    Raises: UserError for too little calibration text, or an adapted matrix that is not finite.
    """
    total = sum(len(row) for row in rows)
    if total < MIN_TOKENS:
        raise UserError(
            f"the calibration text has {total} tokens; give at least {MIN_TOKENS}, better 8,000"
        )
    done = _resume(weights.path, out, work)
    in_layer: dict[int, list[Place]] = {}
    for place in places:
        in_layer.setdefault(int(place.path.split(".")[1]), []).append(place)
    with torch.inference_mode(), track("merging", total=len(places)) as bar:
        walk = LayerWalk(model, rows, batch_tokens=batch_tokens)
        for index in range(len(model.layers)):
            if index > max(in_layer, default=-1):
                break
            here = in_layer.get(index, [])
            left = [place.path for place in here if place.path not in done]
            inputs = walk.inputs(index, left) if left else {}
            with writing(out), open(out, "r+b") as file:
                for place in here:
                    if place.path in done:
                        raw = _read(file, place)
                    else:
                        values = _finite(wanted[place.path](), place)
                        moment = inputs[place.path].moment
                        assert moment is not None
                        raw, outcome = _solve(place, values, moment, damping)
                        _put(file, place, raw)
                        done[place.path] = dataclasses.asdict(outcome)
                    _replace(model, place, raw)
                    bar.advance()
            write_json(work / _DONE, done)
            walk.advance(index)
    return [Merged(**done[place.path]) for place in places]


def _solve(
    place: Place, values: np.ndarray, moment: np.ndarray, damping: float
) -> tuple[np.ndarray, Merged]:
    """Bytes of our rows, and what became of them."""
    tensor = place.ours()
    before = dequantize(tensor)
    change = values - before
    raw_before = np.asarray(tensor.data).reshape(tensor.shape[0], -1)
    if tensor.type in FLOATS or not change.any():
        raw = _rounded(values, tensor) if change.any() else raw_before
        return raw, _outcome(place, raw)
    blocks = solve_blocks(tensor, values, moment, damping)
    raw = blocks.raw()
    after = dequantize(dataclasses.replace(tensor, data=raw.reshape(-1)))
    size = _error(change, moment)
    return raw, dataclasses.replace(
        _outcome(place, raw), error_unchanged=1.0, error=_error(after - values, moment) / size
    )


def solve_blocks(
    tensor: GGUFTensor, values: np.ndarray, moment: np.ndarray, damping: float
) -> BlockRows:
    """Blocks of the tensor's type for `values` (rows, n), given the moment (n, n) of the inputs.

    The start is the tensor's own blocks, but for those that the new values outgrow, which are
    rounded anew.
    """
    from lmworks.compression.block_solver import solve

    best = BlockRows.of_tensor(tensor)
    best.take(BlockRows.rounded(values, tensor.type), _outgrown(best, values))
    fed = best.copy()
    errors = solve(best, values, moment, damping=damping, feedback=False)
    better = solve(fed, values, moment, damping=damping) < errors
    best.take(fed, np.repeat(better[:, None], best.d.shape[1], axis=1))
    return best


def _outgrown(blocks: BlockRows, values: np.ndarray) -> np.ndarray:
    """(rows, blocks) bool: where values lie more than a step past what the scales reach."""
    low, high = int(blocks.limits[0]), int(blocks.limits[1])
    rows = len(values)
    groups = blocks.scales.shape[1]
    each = groups // blocks.d.shape[1]
    step = np.repeat(blocks.d, each, axis=1) * blocks.scales
    shift = np.repeat(blocks.m, each, axis=1) * blocks.offsets
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = (values.reshape(rows, groups, -1) - shift[..., None]) / step[..., None]
    past = ~((codes >= low - 1) & (codes <= high + 1)).all(axis=-1)
    outgrown: np.ndarray = past.reshape(rows, -1, each).any(axis=-1)
    return outgrown


def _error(change: np.ndarray, moment: np.ndarray) -> float:
    """The mean square of what `change` (rows, n) adds to the outputs."""
    return float(np.einsum("ij,ij->", change @ moment, change, dtype=np.float64) / len(change))


def _finite(values: torch.Tensor, place: Place) -> np.ndarray:
    array = values.detach().float().numpy()
    if array.shape != place.tensor.shape:
        raise UserError(
            f"{place.path} would become {array.shape}, but {place.tensor.name} is "
            f"{place.tensor.shape}: is this adapter for another model?"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"{place.path} holds NaN or infinity with the adapter: the adapter is damaged"
        )
    return array


def _rounded(values: np.ndarray, tensor: GGUFTensor) -> np.ndarray:
    """Bytes of our rows, each number at its nearest; (rows, bytes of a row)."""
    if tensor.type in quantizers.QUANTIZERS:
        return quantizers.quantize(values, tensor.type, name=tensor.name)
    return encode_floats(values, tensor.type)


def _outcome(place: Place, raw: np.ndarray) -> Merged:
    before, after = place.ours(), dataclasses.replace(place.tensor, data=raw.reshape(-1))
    changed = np.nan
    if place.tensor.type in quantizers.QUANTIZERS:
        codes = [BlockRows.of_tensor(tensor).codes for tensor in (before, after)]
        changed = float((codes[0] != codes[1]).mean())
    return Merged(
        name=place.tensor.name, type=place.tensor.type, error_unchanged=np.nan, error=np.nan,
        codes_changed=changed,
    )  # fmt: skip


def _replace(model: Model, place: Place, raw: np.ndarray) -> None:
    """Put the merged matrix in the place of the adapted module, in our model."""
    tensor = dataclasses.replace(place.tensor, data=raw.reshape(-1))
    module: Any = model.get_submodule(place.path)
    base = getattr(module, "base", module)
    bias = getattr(base, "bias", None)
    parent, _, name = place.path.rpartition(".")
    new: nn.Module
    if tensor.type in FLOATS:
        new = as_linear(torch.from_numpy(dequantize(tensor)), bias)
    else:
        new = PackedLinear(tensor, bias)
    setattr(model.get_submodule(parent), name, new)


_DONE = "merged.json"


def _copy(source: Path, out: Path) -> None:
    with writing(out):
        shutil.copyfile(source, out)


def _resume(source: Path, out: Path, work: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run has merged into `out` already, by path; a fresh copy if none."""
    if out.is_file() and out.stat().st_size == source.stat().st_size and (work / _DONE).is_file():
        done: dict[str, dict[str, Any]] = read_json(work / _DONE, "list of merged matrices")
        return done
    _copy(source, out)
    return {}


def _put(file: Any, place: Place, raw: np.ndarray) -> None:
    file.seek(place.tensor.start)
    file.write(np.ascontiguousarray(place.theirs(raw)).tobytes())
    file.flush()


def _read(file: Any, place: Place) -> np.ndarray:
    """Bytes of our rows of a matrix that was merged before."""
    file.seek(place.tensor.start)
    data = np.frombuffer(file.read(place.tensor.data.nbytes), np.uint8)
    theirs = dataclasses.replace(place.tensor, data=data)
    ours = dataclasses.replace(place, tensor=theirs).ours()
    return ours.data.reshape(place.tensor.shape[0], -1)
