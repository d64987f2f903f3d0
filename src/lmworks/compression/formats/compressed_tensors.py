"""A model folder in the compressed-tensors layout, which vLLM, SGLang and transformers load.

A coded matrix becomes `weight_packed` (words of 32 bits) or `weight` (bytes), `weight_scale`, and
what else its scheme needs; everything else stays a float tensor. Scales are float32, so that the
file says to the bit what was measured here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmworks.compression.formats.base import Coded
from lmworks.models.architectures.base import Layout, architecture_of, to_foreign
from lmworks.models.architectures.rules import Bound
from lmworks.models.coded_matrix import CodedMatrix, pack_words
from lmworks.models.compressed_scheme import Scheme, quantization_config
from lmworks.models.save import save_state

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer

_HALF_LIMIT = 65504.0


def write(
    coded: Coded, folder: Path, *, tokenizer: Tokenizer, card: str, dtype: str = "float16"
) -> None:
    """See `formats.base.Writer`. Raises: UserError as `save_model` does."""
    model, scheme = coded.model, coded.scheme
    layout = architecture_of(model.config).layout("hf")
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    names = foreign_names(model, layout)
    state: dict[str, torch.Tensor] = {}
    by_foreign = {names[path][0]: (path, names[path][1]) for path in coded.modules}
    ignore = [name for path, (name, _) in names.items() if path not in coded.modules]
    for name, tensor in to_foreign(ours, model.config, layout).items():
        path = name.removesuffix(".weight")
        if path in by_foreign and name.endswith(".weight"):
            own, bound = by_foreign[path]
            scale = coded.input_scales.get(own)
            parts = tensors_of(_in_their_order(coded.modules[own], bound), scheme, scale)
            state |= {f"{path}.{part}": value for part, value in parts.items()}
        else:
            state[name] = _narrowed(tensor, dtype)
    save_state(
        state, model, layout, folder, tokenizer=tokenizer, card=card,
        more={"quantization_config": quantization_config(scheme, [*ignore, "lm_head"]),
              "dtype": dtype},
    )  # fmt: skip


def foreign_names(model: object, layout: Layout) -> dict[str, tuple[str, Bound]]:
    """By our path of a linear module of the layers: what the file calls it, and the rule.

    Only of those whose matrix is one of theirs, row for row.
    """
    from torch import nn

    from lmworks.models.model import Model

    assert isinstance(model, Model)
    bounds = layout.bind(dict(model.named_parameters()), model.config)
    by_own = {bound.own[0]: bound for bound in bounds if bound.rule.plain}
    found = {}
    for path, module in model.layers.named_modules():
        bound = by_own.get(f"layers.{path}.weight")
        if isinstance(module, nn.Linear) and bound is not None:
            found[f"layers.{path}"] = (bound.foreign[0].removesuffix(".weight"), bound)
    return found


def tensors_of(
    matrix: CodedMatrix, scheme: Scheme, input_scale: float | None
) -> dict[str, torch.Tensor]:
    """What a module's matrix is in the file, by the last word of each tensor's name."""
    parts = {"weight_scale": matrix.scales}
    zeros = matrix.zeros
    if scheme.packed:
        parts["weight_packed"] = pack_words(matrix.codes, scheme.num_bits)
        parts["weight_shape"] = torch.tensor(matrix.codes.shape, dtype=torch.int64)
        if zeros is not None:
            words = pack_words(zeros.T.contiguous(), scheme.num_bits)
            parts["weight_zero_point"] = words.T
    else:
        parts["weight"] = matrix.codes
        if zeros is not None:
            parts["weight_zero_point"] = zeros
    if input_scale is not None:
        parts["input_scale"] = torch.tensor([input_scale], dtype=torch.float32)
    return {name: tensor.contiguous() for name, tensor in parts.items()}


def _in_their_order(matrix: CodedMatrix, bound: Bound) -> CodedMatrix:
    order = bound.row_order
    if order is None:
        return matrix
    rows = order.argsort()
    zeros = None if matrix.zeros is None else matrix.zeros[rows]
    return dataclasses.replace(
        matrix, codes=matrix.codes[rows], scales=matrix.scales[rows], zeros=zeros
    )


def _narrowed(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """In `dtype`, or in float32 where float16 can't hold it."""
    tensor = tensor.to("cpu", torch.float32)
    if dtype == "float16" and not bool(tensor.abs().max() <= _HALF_LIMIT):
        return tensor.contiguous()
    return tensor.to(getattr(torch, dtype)).contiguous()
