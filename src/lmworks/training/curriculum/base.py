"""Curricula: the same windows of text in another order, at other lengths or in other parts.

- **length**: rows begin short. A step reads the very tokens that it would read without a
  curriculum, but its rows are cut into pieces that know nothing of each other: the same number of
  targets, less to look back at, and less attention to compute (Li et al. 2022, "The stability-
  efficiency dilemma", arXiv 2108.06084).
- **quality**, **perplexity**: documents are sorted, worst or easiest first, and a pool of windows
  grows from the beginning to all of them (`orders.GrowingPool`).
- **mixture**: batches are drawn from sources by weights that move from one mixture to another, for
  example to the best text at the end (`orders.Mixture`).

A batch stays a pure function of (seed, step): nothing depends on what was trained before, on the
machine or on the number of processes, and a run that was killed goes on with the same rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lmworks.core import processes
from lmworks.core.errors import UserError
from lmworks.training.curriculum.mixture import parts_of, weights_over_time
from lmworks.training.curriculum.orders import GrowingPool, Mixture, Order
from lmworks.training.tokens import PackedWindows, document_separator, next_tokens

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.batches import Batch
    from lmworks.training.curriculum.config import PacingConfig
    from lmworks.training.pretrain import PretrainConfig

_SHORTEST = 8  # tokens of the shortest row


class Windows(Protocol):
    """Text for every step: what a curriculum gives, and what it is made of."""

    def windows(self, step: int) -> np.ndarray:
        """(rows, tokens + 1) of batch number `step`."""

    def __call__(self, step: int) -> Batch:
        """`windows` as a batch whose labels are the next tokens."""


def with_curriculum(
    config: PretrainConfig,
    plain: PackedWindows,
    documents: Callable[[], Sequence[Document]],
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    *,
    num_steps: int,
    reference: Path | None,
    work: Path,
) -> Windows:
    """The windows that a config's curriculum makes of a corpus; `plain` without one.

    Args:
        plain: the windows in the order of no curriculum.
        documents: gives those that `tokens` holds, in order; asked only if they are needed.
        tokens: (N,) as `token_stream` makes them.
        reference: what `config.curriculum_reference` points to.
        work: keeps sorted text, so that a resume need not score again.
    Raises: UserError for settings that make no sense or say nothing, a source that is not there.
    """
    _check(config)
    kind = config.curriculum
    if kind == "uniform":
        return plain
    if kind == "length":
        lengths = _lengths(config.context_length, config.pacing)
        return ShortenedWindows(plain, lengths, paced(config.pacing, num_steps))
    separator = document_separator(tokenizer)
    kept = work / "curriculum.npz"
    with processes.main_first():
        if not kept.is_file():
            known = documents()
            encoded = _documents_of(tokens, separator, len(known))
            if kind == "mixture":
                parts = parts_of(known, config.mixture)
            else:
                parts = {kind: _sorted(config, known, encoded, tokenizer, reference)}
            laid = _rearranged(encoded, parts.values(), separator)
            _keep(kept, stream=laid[0], ends=np.array(laid[1]), names=np.array([*parts], dtype=str))
    with np.load(kept, allow_pickle=False) as found:
        stream, ends, names = found["stream"], found["ends"].tolist(), found["names"].tolist()
    ordered = OrderedWindows(
        stream, ends, names=names, context_length=config.context_length, seed=config.seed
    )
    rows = config.batch_size
    if kind == "mixture":
        sizes = [stop - start for start, stop in ordered.parts]
        weights = weights_over_time(config.mixture, dict(zip(names, sizes)), num_steps)
        ordered.order = Mixture(ordered.counts, rows, weights, config.seed)
    else:
        opened = paced(config.pacing, num_steps)
        ordered.order = GrowingPool(ordered.counts[0], rows, opened, config.seed)
    return ordered


class ShortenedWindows:
    """Rows cut into shorter ones, less and less."""

    def __init__(
        self, plain: PackedWindows, lengths: Sequence[int], opened: Callable[[int], float]
    ) -> None:
        self._plain, self._lengths, self._opened = plain, lengths, opened

    def length(self, step: int) -> int:
        """Tokens of a row at `step`."""
        most = self._opened(step) * self._lengths[-1] + 1e-9
        return max([n for n in self._lengths if n <= most], default=self._lengths[0])

    def windows(self, step: int) -> np.ndarray:
        """See `Windows`: as many tokens at every step, in rows of `length`."""
        rows, length = self._plain.windows(step), self.length(step)
        starts = range(0, rows.shape[1] - 1, length)
        return np.concatenate([rows[:, at : at + length + 1] for at in starts])

    def __call__(self, step: int) -> Batch:
        """See `Windows`."""
        return next_tokens(self.windows(step))


class OrderedWindows:
    """Windows of a stream that lies in parts, drawn in a given order.

    Each time that a window is drawn again, its part is cut at another offset.

    Args:
        ends: where each part ends in `stream`; the next one begins there.
    Raises: UserError for a part that is shorter than one window.
    """

    order: Order

    def __init__(
        self,
        stream: np.ndarray,
        ends: Sequence[int],
        *,
        names: Sequence[str],
        context_length: int,
        seed: int,
    ) -> None:
        self._stream, self._length, self._seed = stream, context_length, seed
        self.parts = list(zip([0, *ends[:-1]], ends))
        for name, (start, stop) in zip(names, self.parts, strict=True):
            if stop - start < context_length + 1:
                raise UserError(
                    f"{name} has {stop - start} tokens, fewer than one window of "
                    f"{context_length + 1}: add text, or lower --context-length"
                )
        self._slack = [min(context_length, b - a - context_length - 1) for a, b in self.parts]
        self.counts = [
            (b - a - 1 - slack) // context_length
            for (a, b), slack in zip(self.parts, self._slack, strict=True)
        ]

    def windows(self, step: int) -> np.ndarray:
        """See `Windows`."""
        starts = [self._start(*place) for place in self.order.rows(step)]
        return np.stack([self._stream[at : at + self._length + 1] for at in starts])

    def __call__(self, step: int) -> Batch:
        """See `Windows`."""
        return next_tokens(self.windows(step))

    def _start(self, part: int, window: int, use: int) -> int:
        offset = np.random.default_rng([self._seed, 3, part, use]).integers(
            0, self._slack[part] + 1
        )
        return self.parts[part][0] + int(offset) + window * self._length


def paced(pacing: PacingConfig, num_steps: int) -> Callable[[int], float]:
    """step -> the part that is open, from `start` to 1.

    Source of the root: Platanios et al. 2019, arXiv 1903.09848, equation 8.
    """

    def opened(step: int) -> float:
        gone = min(1.0, step / (pacing.share * num_steps)) if pacing.share else 1.0
        if pacing.shape == "root":
            return math.sqrt(gone * (1 - pacing.start**2) + pacing.start**2)
        return pacing.start + gone * (1 - pacing.start)

    return opened


def _check(config: PretrainConfig) -> None:
    """Raises: UserError for what is out of range, or set and read by nothing."""
    pacing, kind = config.pacing, config.curriculum
    if not 0 < pacing.start <= 1 or not 0 <= pacing.share <= 1:
        raise UserError(
            f"pacing.start = {pacing.start} and pacing.share = {pacing.share}: parts of the text "
            "and of the run, from 0 to 1, and a start above 0"
        )
    if config.curriculum_reference and kind not in ("quality", "perplexity"):
        raise UserError(f"--curriculum-reference says nothing to --curriculum {kind}: leave it out")
    if (config.mixture.weights or config.mixture.final_weights) and kind != "mixture":
        raise UserError("mixture.weights say nothing without --curriculum mixture")
    if kind == "length" and pacing.reverse:
        raise UserError("pacing.reverse: lengths only grow; leave it out with --curriculum length")


def _lengths(context_length: int, pacing: PacingConfig) -> list[int]:
    least = max(_SHORTEST, pacing.start * context_length)
    fitting = [n for n in range(1, context_length + 1) if context_length % n == 0 and n >= least]
    return fitting or [context_length]


def _documents_of(tokens: np.ndarray, separator: int, count: int) -> list[np.ndarray]:
    """Each document's tokens, its separator first."""
    starts = np.flatnonzero(tokens == separator)
    if len(starts) != count + 1:
        raise UserError(
            f"the corpus has {count} documents and {len(starts) - 1} separators in its tokens: "
            "a curriculum can't tell the documents apart"
        )
    return [tokens[a:b] for a, b in itertools.pairwise(starts)]


def _sorted(
    config: PretrainConfig,
    documents: Sequence[Document],
    encoded: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    reference: Path | None,
) -> list[int]:
    from lmworks.training.curriculum.difficulty import perplexity, quality

    if config.curriculum == "quality":
        scores = quality(documents, reference)
    else:
        scores = perplexity(documents, encoded, tokenizer, reference)
    order = np.argsort(scores, kind="stable")
    numbers: list[int] = (order[::-1] if config.pacing.reverse else order).tolist()
    return numbers


def _rearranged(
    encoded: Sequence[np.ndarray], parts: Iterable[Sequence[int]], separator: int
) -> tuple[np.ndarray, list[int]]:
    """The documents of each part in a row, each part with a separator at its end."""
    pieces: list[np.ndarray] = []
    ends: list[int] = []
    total = 0
    for numbers in parts:
        part = [*(encoded[number] for number in numbers), np.array([separator])]
        total += sum(map(len, part))
        pieces += part
        ends.append(total)
    return np.concatenate(pieces).astype(np.int32), ends


def _keep(path: Path, **arrays: np.ndarray) -> None:
    from lmworks.core.files import atomic_open

    with atomic_open(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
