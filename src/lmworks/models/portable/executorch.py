"""ExecuTorch programs of decoders, for phones and boards; needs the extra `executorch`.

The program's method `forward` takes `input_ids` (1, 1) and `position` (1,), both int64, and gives
the logits (1, 1, vocabulary). Keys and values live inside it. Products run on XNNPACK.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from lmworks.core.errors import MissingExtra
from lmworks.models.model import Model
from lmworks.models.portable.decoder import SteppingDecoder

PROGRAM = "model.pte"


def export_executorch(model: Model, folder: Path, *, length: int) -> Path:
    """Write `folder`/model.pte, float32.

    Args:
        model: of float modules; it is used up.
        length: the longest sequence, for which memory is kept.
    Raises: UserError for a model that can't be written out, or without the extra.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
            XnnpackPartitioner,
        )
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
    except ImportError as error:
        package = error.name or "executorch"
        raise MissingExtra(package, "executorch", "an ExecuTorch bundle") from error
    decoder = SteppingDecoder(model, length)
    given: tuple[Any, ...] = (torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]))
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        lowered = to_edge_transform_and_lower(
            torch.export.export(decoder, given), partitioner=[XnnpackPartitioner()]
        )
        # Without it the cache begins as whatever lies in memory, and what is hidden is not zero.
        zeroed = InitializedMutableBufferPass(["keys_", "values_"])
        program = lowered.to_executorch(ExecutorchBackendConfig(passes=[zeroed]))
    path = folder / PROGRAM
    with open(path, "wb") as file:
        program.write_to_file(file)
    return path
