"""The reference of preference objectives: what the model was before, as log-probabilities.

There are three ways to have it, and all give the same figures: every row scored once beforehand and
kept on disk, the base of an adapter while the adapter is off, or a second, frozen model. An
objective sees none of that: it finds the figures in its batch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmworks.core import processes
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save
from lmworks.core.progress import track

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.preferences.batches import JudgedAnswers, Pairs

Keep = Literal["auto", "stored", "frozen", "base"]

_SCORED_ROWS = 8
_WEIGHTS_IN_TRAINING = 4  # weights, gradients and two moments of AdamW


def reference_logprobs(model: Any, batch: Any, rows_at_once: int = 0) -> Mapping[str, Any]:
    """Log-probabilities (B,) of all that the batch wants scored, by name; no gradient.

    Args:
        rows_at_once: rows that go through the model at a time; 0 for all.
    """
    import torch

    from lmworks.training.objectives.in_parts import in_parts
    from lmworks.training.objectives.sequence_logprobs import sequence_logprobs

    device = next(model.parameters()).device

    def score(part: Any) -> torch.Tensor:
        return sequence_logprobs(model, part)

    training = model.training
    model.eval()  # dropout would make another reference of every batch
    try:
        with torch.no_grad():
            return {
                name: in_parts(score, rows.to(device), rows_at_once).float()
                for name, rows in batch.sequences().items()
            }
    finally:
        model.train(training)


def store_reference(model: Any, data: Pairs | JudgedAnswers, path: Path) -> None:
    """Score every row once and hand the figures to `data`; `path` keeps them for a resume.

    Raises: UserError when the disk is full.
    """
    with processes.main_first():
        if not _kept_reference(data, path):
            _score_all(model, data, path)


def _kept_reference(data: Pairs | JudgedAnswers, path: Path) -> bool:
    """Whether `path` holds the figures of these rows, which `data` has then."""
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as kept:
        data.reference = {name: kept[name] for name in kept.files}
    return all(len(table) == len(data) for table in data.reference.values())


def _score_all(model: Any, data: Pairs | JudgedAnswers, path: Path) -> None:
    count = len(data)
    tables: dict[str, np.ndarray] = {}
    data.reference = {}
    with track("scoring the reference", total=count) as bar:
        # Mismatched answers are those of their batch, so the batches must be those of training.
        for rows in data.order.epoch(0):
            found = reference_logprobs(model, data.collate(rows), _SCORED_ROWS)
            for name, figures in found.items():
                tables.setdefault(name, np.zeros(count))[rows] = figures.cpu().numpy()
            bar.advance(len(rows))

    def save(part: Path) -> None:
        with open(part, "wb") as file:
            np.savez(file, **tables)  # type: ignore[arg-type]

    atomic_save(path, save)
    data.reference = tables


@dataclasses.dataclass(frozen=True)
class Referenced:
    """Batches with the reference scored when they are asked for.

    Args:
        batches: step -> rows.
        model: the frozen model, or the one that is trained, whose adapter `off` turns off.
    """

    batches: Callable[[int], Any]
    model: Any
    off: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    rows_at_once: int = _SCORED_ROWS

    def __call__(self, step: int) -> Any:
        """Batch number `step`."""
        return self.score(self.batches(step))

    def score(self, batch: Any) -> Any:
        """`batch` with the reference in it."""
        with self.off():
            found = reference_logprobs(self.model, batch, self.rows_at_once)
        return dataclasses.replace(batch, reference={n: f.cpu() for n, f in found.items()})


def frozen_copy(model: Any) -> Any:
    """The model as it is now, for good."""
    frozen = copy.deepcopy(model).eval()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


def choose(keep: Keep, *, model: Any, rows_seen: int, num_rows: int, has_adapter: bool) -> Keep:
    """The cheapest way to have the reference.

    Scoring beforehand costs one forward of every row, and no memory; it is the cheaper way as soon
    as training sees a row twice, and the only one where a second model would not fit.

    Args:
        rows_seen: rows that training goes through, repeats counted.
    Raises: UserError for `base` without an adapter to turn off.
    """
    if keep == "base" and not has_adapter:
        raise UserError(
            "keep_reference=base needs an adapter, whose base is the reference: "
            "train one (--adapter lora), or choose stored or frozen"
        )
    if has_adapter and keep == "frozen":
        return "base"  # which is frozen
    if keep != "auto":
        return keep
    if rows_seen >= num_rows:
        return "stored"
    if has_adapter:
        return "base"
    return "frozen" if _fits_twice(model) else "stored"


def _fits_twice(model: Any) -> bool:
    from lmworks.core.machine import memory_bytes

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return size * (_WEIGHTS_IN_TRAINING + 1) < memory_bytes() / 2


def same_tokenizer(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether both give the same ids."""
    try:
        check_same_tokenizer(first, second, who="", what="")
    except UserError:
        return False
    return True


def check_same_tokenizer(first: Tokenizer, second: Tokenizer, *, who: str, what: str) -> None:
    """Raises: UserError unless both give the same ids; `who` is the second, `what` may mend it."""
    if first.vocab_size != second.vocab_size:
        raise UserError(
            f"{who} has a vocabulary of {second.vocab_size:,} entries, the model of "
            f"{first.vocab_size:,}: {what}"
        )
    if first.special_tokens != second.special_tokens:
        odd = min(first.special_tokens.items() ^ second.special_tokens.items())[0]
        raise UserError(f"{who} has other special tokens (first {odd!r}): {what}")
    for token_id in range(first.vocab_size):
        one, other = (t.decode_bytes([token_id]) for t in (first, second))
        if one != other:
            raise UserError(
                f"{who} has another token at id {token_id} ({other!r}, the model {one!r}): {what}"
            )
