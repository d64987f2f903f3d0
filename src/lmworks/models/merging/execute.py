"""The tensors of a plan, made one after the other and handed on a band of rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.parts import Part, Parts, Read
from lmworks.models.merging.plan import Input, Output, Plan

BAND_BYTES = 1 << 20


def bands(plan: Plan, output: Output, *, seed: int = 0) -> Iterator[torch.Tensor]:
    """A tensor of the result, band by band, in the type that is stored.

    Masks are drawn from `seed` and the tensor's name, so that they hang neither on the order in
    which tensors are made nor on where a killed run began again.

    Raises: UserError for NaN or infinity in an input, or in what is made of them, by name.
    """
    if output.copied:
        first = output.models[0]
        count = output.shape[0] if output.shape else 1
        yield first.source.read(first.name, 0, count)
        return
    for rows in plan.recipe.how.merge(parts_of(output, seed=seed)):
        made = rows.to(output.stored)
        if not bool(torch.isfinite(made).all()):
            raise UserError(
                f"{output.name}: the merge makes numbers that {_word(output.stored)} can't hold: "
                "take another out_dtype or other parameters"
            )
        yield made


def parts_of(output: Output, *, seed: int = 0) -> Parts:
    """The inputs of one tensor as its method sees them."""
    text = f"{seed} {output.name}".encode()
    own_seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
    return Parts(
        models=[Part(read=_reader(one), values=one.values) for one in output.models],
        base=Part(read=_reader(output.base)) if output.base else None,
        shape=output.shape,
        dtype=output.compute,
        shared=output.shared,
        random=torch.Generator().manual_seed(own_seed),
        band_bytes=BAND_BYTES,
    )


def _reader(one: Input) -> Read:
    def read(first: int, last: int) -> torch.Tensor:
        rows = one.source.read(one.name, first, last)
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"{one.source.reference}: {one.name} holds values that are NaN or infinite: the "
                "weights are damaged"
            )
        return rows

    return read


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
