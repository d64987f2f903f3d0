"""Stage `importance`: how large a model's inputs are on a text, as a file that llama.cpp reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.stages import Run, stage

FILE = "imatrix.gguf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceConfig:
    """Measure an importance matrix on calibration text.

    `lmworks compress quantize --importance` and llama.cpp's `llama-quantize --imatrix` take it.

    Examples:
        lmworks compress importance --model runs/chat --calibration runs/dataset
        lmworks compress importance --model smollm2-135m --out runs/importance
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    calibration: str = option(
        "",
        role=REFERENCE,
        help="corpus, dataset, folder, text or JSONL file; by default Python's documentation",
    )
    calibration_tokens: int = option(32768, help="tokens of it to look at")
    seed: int = option(0, help="which of the text is taken")


@stage("importance", makes="importance")
def importance(config: ImportanceConfig, run: Run) -> dict[str, Any]:
    """Measure and write; see ImportanceConfig."""
    from lmworks.compression.calibration import calibration_rows, row_length
    from lmworks.compression.importance_matrix import measure_importance
    from lmworks.compression.layer_source import LayerSource
    from lmworks.core.importance import write_importance
    from lmworks.tokenizers.load import load_tokenizer

    source = LayerSource(run.inputs["model"])
    length = row_length(source.config, 512)
    rows = calibration_rows(
        run.inputs.get("calibration"), load_tokenizer(run.inputs["model"]),
        max_tokens=config.calibration_tokens, length=length, seed=config.seed,
    )  # fmt: skip
    found = measure_importance(source, rows)
    count = sum(map(len, rows))
    write_importance(
        run.folder / FILE, found, count,
        texts=[config.calibration or "python-docs"], chunk_tokens=length,
    )  # fmt: skip
    return {"tensors": len(found), "tokens": count}
