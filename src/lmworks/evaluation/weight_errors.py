"""How far a model's matrices went from those they were made of, and how many bits they take.

Read tensor by tensor from both files, so that memory holds two tensors and never two models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.evaluation.noise_sensitivity import kind_of

if TYPE_CHECKING:
    import torch

    from lmworks.models.architectures.rules import Bound
    from lmworks.models.weights import Weights

_FILES = ("*.safetensors", "*.gguf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightErrors:
    """What quantising did to a model.

    Attributes:
        by_kind: of each kind of matrix (see `noise_sensitivity.kind_of`), the mean over the layers
            of |w' - w|^2 / |w|^2.
        bits_per_weight: of the file, over all weights (norms and what else is kept wider included).
        file_bytes: of all files that hold weights.
    """

    by_kind: Mapping[str, float]
    bits_per_weight: float
    file_bytes: int

    @property
    def relative(self) -> float:
        """The mean over the kinds."""
        return sum(self.by_kind.values()) / max(1, len(self.by_kind))


def weight_errors(reference: str | Path, candidate: str | Path) -> WeightErrors:
    """Compare a model's weights with those of what it was made from, matrix by matrix.

    Raises: UserError for models that are not of one shape.
    """
    theirs = dict(_matrices(reference))
    errors: dict[str, list[float]] = {}
    for name, (read, shape) in _matrices(candidate):
        if name not in theirs or theirs[name][1] != shape:
            raise UserError(f"{candidate} is of another shape than {reference}: its {name} differs")
        before, after = theirs[name][0](), read()
        norm = float(before.double().square().sum())
        if norm:
            lost = float((after - before).double().square().sum())
            errors.setdefault(kind_of(name), []).append(lost / norm)
    size = file_bytes(Path(candidate))
    return WeightErrors(
        by_kind=_means(errors),
        bits_per_weight=8 * size / num_weights(candidate),
        file_bytes=size,
    )


def rounding_errors(reference: str | Path, kind: str) -> WeightErrors:
    """What rounding a model to a ggml type would do, without a model made or asked.

    Raises: UserError for a type that can't be written.
    """
    from lmworks.compression.quantize import encode
    from lmworks.core.gguf import dequantize

    errors: dict[str, list[float]] = {}
    size, count = 0, 0
    for name, (read, _) in _matrices(reference):
        array = read().numpy()
        tensor = encode(name, array, kind)
        size, count = size + tensor.data.nbytes, count + array.size
        norm = float((array.astype(float) ** 2).sum())
        if norm:
            lost = float(((dequantize(tensor) - array).astype(float) ** 2).sum())
            errors.setdefault(kind_of(name), []).append(lost / norm)
    bits = 8 * size / max(1, count)
    return WeightErrors(
        by_kind=_means(errors),
        bits_per_weight=bits,
        file_bytes=int(bits * num_weights(reference) / 8),
    )


def _means(errors: Mapping[str, list[float]]) -> dict[str, float]:
    return {kind: sum(found) / len(found) for kind, found in errors.items()}


def file_bytes(path: Path) -> int:
    """Bytes of the files that hold a model's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for pattern in _FILES for f in path.glob(pattern))


def num_weights(reference: str | Path) -> int:
    """Weights of a model, those that two places share once."""
    from lmworks.models.load import open_weights
    from lmworks.models.skeleton import skeleton

    return sum(p.numel() for p in skeleton(open_weights(reference).config).parameters())


def _matrices(reference: str | Path) -> Iterator[tuple[str, tuple[Any, tuple[int, ...]]]]:
    """Our names of all matrices, each with how to read it and its shape."""
    from lmworks.models.load import open_weights
    from lmworks.models.skeleton import skeleton
    from lmworks.models.weights import bind_weights

    weights = open_weights(reference)
    model = skeleton(weights.config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for bound in bind_weights(weights, model):
        for name in bound.own:
            if len(shapes.get(name, ())) == 2:
                yield name, (_reader(weights, bound, name), shapes[name])


def _reader(weights: Weights, bound: Bound, name: str) -> Any:
    from lmworks.models.weights import read_weights

    def read() -> torch.Tensor:
        return read_weights(weights, bound)[name].float()

    return read
