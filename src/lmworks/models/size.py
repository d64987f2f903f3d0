"""How much memory a model will take, told from its config and the table of its tensors.

Nothing is read but headers: the model is laid out without memory, and of a packed matrix only the
first rows are taken apart, since all rows cost the same. What `load_model` then holds is this to
the byte; what a forward needs meanwhile is left out.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lmworks.core.errors import UserError
from lmworks.core.references import resolve
from lmworks.models.adapters.base import is_adapter
from lmworks.models.cache_types import row_layout
from lmworks.models.compressed_tensors import CompressedWeights
from lmworks.models.config import ModelConfig
from lmworks.models.ensemble import combined_config, side_by_side
from lmworks.models.ensemble_spec import ensemble_file, member_paths, read_ensemble
from lmworks.models.gguf_weights import GGUFWeights
from lmworks.models.load import adapter_base, open_weights
from lmworks.models.model import Model
from lmworks.models.pages import PAGE
from lmworks.models.skeleton import skeleton
from lmworks.models.weights import bind_weights

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor
    from lmworks.models.config import AnyConfig
    from lmworks.models.weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model takes.

    Attributes:
        config: of the model, or of the one under an adapter.
        weight_bytes: held as long as the model is.
    """

    config: AnyConfig
    weight_bytes: int

    def cache_bytes(
        self,
        num_slots: int,
        max_positions: int,
        cache_tokens: int | None = None,
        cache_type: str = "f32",
    ) -> int:
        """Of a cache for so many sequences of so many positions.

        Args:
            cache_tokens: positions of all sequences together, if not enough for each to be full.
            cache_type: see `cache_types`.
        """
        if not isinstance(self.config, ModelConfig):
            return 0
        whole = num_slots * -(-max_positions // PAGE) * PAGE
        if cache_tokens is not None:
            whole = -(-cache_tokens // PAGE) * PAGE
        total = 0
        for layer in self.config.layers:
            kept = layer.kept(self.config)
            ring = kept.window if kept.window and kept.window < max_positions else 0
            positions = num_slots * ring or whole
            for heads, size in kept.per_position.values():
                dtype, width = row_layout("f32" if ring else cache_type, size)
                total += positions * heads * width * dtype.itemsize
            total += 4 * num_slots * sum(math.prod(shape) for shape in kept.fixed.values())
        return total


def model_size(ref: str | Path, *, packed: bool = False, base: str = "") -> ModelSize:
    """The memory that `load_model(ref, packed=packed, base=base)` will take.

    Of the folder of an adapter that of its base, and of its own tensors where they stand beside it.

    Raises: UserError as `load_model` does, but for damage inside the tensors.
    """
    path = resolve(str(ref)).path
    if file := ensemble_file(path):
        spec = read_ensemble(file)
        here = [path for path in member_paths(file, spec) if path is not None]
        members = [model_size(member, packed=packed) for member in here]
        configs = [size.config for size in members if isinstance(size.config, ModelConfig)]
        if not configs or len(configs) < len(members):
            raise UserError(
                f"{ref}: its members must be models that continue text, and one be here"
            )
        together = side_by_side(configs) if spec.routes else combined_config(configs)
        return ModelSize(config=together, weight_bytes=sum(s.weight_bytes for s in members))
    beside = 0
    if path is not None and is_adapter(path):
        beside = adapter_bytes(path) if packed else 0
        ref = adapter_base(path, base)
    weights = open_weights(ref)
    return ModelSize(config=weights.config, weight_bytes=_weight_bytes(weights, packed) + beside)


def held_bytes(model: nn.Module) -> int:
    """Memory of a loaded model's weights: packed ones at their packed size, shared ones once."""
    from lmworks.models.packed import PackedMatrix

    matrices = (getattr(module, "matrix", None) for module in model.modules())
    # By identity: a tied head and its embedding hold one matrix.
    packed = {id(m): m.num_bytes for m in matrices if isinstance(m, PackedMatrix)}
    return sum(p.numel() * p.element_size() for p in model.parameters()) + sum(packed.values())


def adapter_bytes(folder: Path) -> int:
    """Memory of an adapter's tensors, float32.

    Raises: UserError for a folder that holds none, or a damaged file.
    """
    from lmworks.models.adapters.files import tensor_shapes

    return 4 * sum(math.prod(shape) for shape in tensor_shapes(folder).values())


def _weight_bytes(weights: Weights, packed: bool) -> int:
    model = skeleton(weights.config)
    bounds = bind_weights(weights, model)
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    if packed and isinstance(weights, GGUFWeights) and isinstance(model, Model):
        for _, module, bound in weights.packable(model, bounds):
            tensor = weights.tensors[bound.foreign[0]]
            total += _packed_bytes(tensor) - 4 * module.weight.numel()
    if packed and isinstance(weights, CompressedWeights):
        total += weights.packed_bytes(bounds)
    return total


def _packed_bytes(tensor: GGUFTensor) -> int:
    from lmworks.models.packed import TILE, PackedMatrix

    rows, columns = tensor.shape
    few = min(rows, TILE)
    data = tensor.data.reshape(rows, -1)[:few]
    part = dataclasses.replace(tensor, shape=(few, columns), data=data)
    return PackedMatrix(part).num_bytes * -(-rows // TILE)
