"""Matrices as integers or 8-bit floats with scales, chosen for what the layer puts out.

Three ways, from fast to good:

- round: the largest number of a group just fits, each number goes to its nearest code.
- search: scales are shrunk where that costs least, errors weighed by the mean square of the inputs.
- solve: GPTQ. Each column makes up for what those before it missed (`error_feedback`); a group's
  scales are searched when its first column comes, on the values as they are by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lmworks.compression.error_feedback import BLOCK, feed_back
from lmworks.core.errors import unknown_name
from lmworks.models.coded_matrix import CodedMatrix, round_to, round_with
from lmworks.models.compressed_scheme import Scheme

if TYPE_CHECKING:
    from lmworks.compression.layer_inputs import LayerInputs

METHODS = ("solve", "search", "round")


def code_matrix(
    values: torch.Tensor, scheme: Scheme, inputs: LayerInputs | None, method: str
) -> CodedMatrix:
    """(rows, columns) float32 as codes.

    Args:
        inputs: what the module is given; None leaves nothing but `round`.
    Raises: UserError for an unknown method.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if inputs is None or method == "round":
        return round_to(values, scheme)
    importance = torch.from_numpy(inputs.mean_square)
    if method == "search" or inputs.moment is None:
        return round_to(values, scheme, importance)
    return _solved(values, scheme, inputs, importance)


def _solved(
    values: torch.Tensor, scheme: Scheme, inputs: LayerInputs, importance: torch.Tensor
) -> CodedMatrix:
    size = scheme.group_size or 0
    whole = None if size else round_to(values, scheme, importance)
    codes: list[torch.Tensor] = []
    groups: list[CodedMatrix] = []

    def choose(
        first: int, here: torch.Tensor, _: torch.Tensor
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        def column(j: int, given: torch.Tensor) -> torch.Tensor:
            if whole is not None:
                like = whole
            else:
                if j % size == 0:
                    end = slice(j, j + size)
                    weight = importance[first + j : first + j + size]
                    alone = dataclasses.replace(scheme, group_size=None)
                    groups.append(round_to(here[:, end], alone, weight))
                like = groups[-1]
            coded = round_with(given[:, None], scheme, like)
            codes.append(coded.codes)
            return coded.dequantized()[:, 0]

        return column

    assert inputs.moment is not None
    feed_back(values, inputs.moment, choose, block=max(size, BLOCK))
    if whole is not None:
        return dataclasses.replace(whole, codes=torch.cat(codes, dim=1))
    zeros = [group.zeros for group in groups if group.zeros is not None]
    return CodedMatrix(
        codes=torch.cat(codes, dim=1),
        scales=torch.cat([group.scales for group in groups], dim=1),
        zeros=torch.cat(zeros, dim=1) if zeros else None,
    )
