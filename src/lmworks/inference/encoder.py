"""A sentence encoder on this machine: texts in, vectors of length 1 out.

Any model with one vector for a head: a folder of sentence-transformers, for instance `minilm-l6`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.references import resolve

if TYPE_CHECKING:
    import numpy as np

_BATCH = 16


class Encoder:
    """Loads its model with the first text.

    Args:
        reference: see `lmworks.core.references`.
    """

    def __init__(self, reference: str) -> None:
        self.name = reference
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any, int] | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D). A text longer than the model reads is cut there.

        Raises: UserError when the model can't be had, or has no vector for a head.
        """
        import numpy as np
        import torch

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        with self._lock:
            model, tokenizer, longest = self._load()
            ids = [_ids(tokenizer, text, longest) for text in texts]
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
            rows: dict[int, np.ndarray] = {}
            with torch.inference_mode():
                for at in range(0, len(order), _BATCH):
                    batch = order[at : at + _BATCH]
                    vectors = _forward(model, [ids[i] for i in batch])
                    rows.update(zip(batch, vectors, strict=True))
        return np.stack([rows[i] for i in range(len(ids))])

    def _load(self) -> tuple[Any, Any, int]:
        if self._loaded is None:
            from lmworks.models.load import load_model
            from lmworks.tokenizers.load import load_tokenizer

            folder = resolve(self.name).path
            if folder is None:
                raise UserError(f"{self.name} is an endpoint: an encoder must be on this machine")
            model = load_model(folder)
            if getattr(model.config.head, "kind", "") != "embedding":
                raise UserError(
                    f"{self.name} is no sentence encoder: take a folder of sentence-transformers, "
                    "or minilm-l6"
                )
            self._loaded = model, load_tokenizer(folder), _longest(folder, model)
        return self._loaded


def _ids(tokenizer: Any, text: str, longest: int) -> list[int]:
    # No token has more characters than this; what follows would be cut off after much work.
    whole = tokenizer.encoding(text[: 32 * longest], allow_special=False, max_length=longest)
    return whole.ids or [0]


def _forward(model: Any, ids: list[list[int]]) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    width = max(map(len, ids))
    padded = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for row, line in enumerate(ids):
        padded[row, : len(line)] = torch.tensor(line)
        mask[row, : len(line)] = 1
    vectors = model(padded, attention_mask=mask)
    array: np.ndarray = F.normalize(vectors.float(), dim=-1).numpy()
    return array


def _longest(folder: Path, model: Any) -> int:
    limit = int(model.config.max_position_embeddings)
    file = folder / "sentence_bert_config.json"
    told = read_json(file, "sentence config") if file.is_file() else {}
    wanted = told.get("max_seq_length") if isinstance(told, dict) else None
    return min(limit, wanted) if isinstance(wanted, int) and wanted > 1 else limit
