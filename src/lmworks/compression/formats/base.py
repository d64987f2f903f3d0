"""The types that weights in safetensors can have, and the writer of each one's layout.

A type is a row of TYPES; a layout is one file with a function `write`, a `Writer`, and a line
in WRITERS. What a type is good for is the reader's question, so the table says it in words.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from lmworks.core.tables import look_up

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmworks.models.coded_matrix import CodedMatrix
    from lmworks.models.compressed_scheme import Scheme
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coded:
    """A model whose linear modules have been coded.

    Attributes:
        model: with the values of the codes in it, on plain modules.
        modules: by path: its codes.
        input_scales: by path: the scale of its inputs, where it is static.
    """

    model: Model
    scheme: Scheme
    modules: Mapping[str, CodedMatrix]
    input_scales: Mapping[str, float]


class Writer(Protocol):
    """Writes a model folder."""

    def __call__(
        self, coded: Coded, folder: Path, *, tokenizer: Tokenizer, card: str, dtype: str
    ) -> None:
        """`dtype`: of the tensors that are not coded."""
        ...


WRITERS = {"compressed-tensors": "lmworks.compression.formats.compressed_tensors:write"}

# By type: what a Scheme takes, but for groups; and whether it has any.
TYPES: dict[str, tuple[dict[str, Any], bool]] = {
    "int4": ({"num_bits": 4}, True),
    "int4-shifted": ({"num_bits": 4, "symmetric": False}, True),
    "int3": ({"num_bits": 3}, True),
    "int2": ({"num_bits": 2}, True),
    "int8": ({"num_bits": 8}, False),
    "w8a8": ({"num_bits": 8, "inputs": "int8"}, False),
    "w8a8-static": ({"num_bits": 8, "inputs": "int8", "dynamic": False}, False),
    "fp8": ({"num_bits": 8, "kind": "float", "inputs": "fp8"}, False),
    "fp8-static": ({"num_bits": 8, "kind": "float", "inputs": "fp8", "dynamic": False}, False),
    "fp8-weights": ({"num_bits": 8, "kind": "float"}, False),
}


def scheme_of(name: str, group_size: int) -> Scheme:
    """The scheme of a type. Raises: UserError for an unknown name, with the nearest."""
    from lmworks.core.errors import unknown_name
    from lmworks.models.compressed_scheme import Scheme

    if name not in TYPES:
        raise unknown_name("type", name, TYPES)
    settings, grouped = TYPES[name]
    return Scheme(**settings, group_size=group_size if grouped else None)


def writer(name: str) -> Writer:
    """The writer of a layout. Raises: UserError for an unknown name, with the nearest."""
    found: Writer = look_up(WRITERS, name, seam="format")
    return found
