"""Documents as one stream of token ids, and windows over it whose order depends only on the seed.

The sampler keeps no state: batch number `step` is a pure function of (seed, step), so a run that
was killed goes on with exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.training.batches import Batch

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer

_CHUNK_DOCUMENTS = 256


def document_separator(tokenizer: Tokenizer) -> int:
    """The id that stands before every document: the BOS token, else the EOS token."""
    token_id = tokenizer.bos_token_id
    if token_id is None:
        token_id = tokenizer.eos_token_id
    if token_id is None:
        raise UserError("this tokenizer has neither a BOS nor an EOS token to part documents with")
    return token_id


def token_stream(documents: Iterable[Document], tokenizer: Tokenizer) -> np.ndarray:
    """All documents in order, each preceded by the separator, and one separator at the end.

    Returns: int32 array (N,).
    """
    separator = document_separator(tokenizer)
    texts = [document.text for document in documents]
    pieces: list[np.ndarray] = []
    with track("tokenizing", total=len(texts)) as bar:
        for start in range(0, len(texts), _CHUNK_DOCUMENTS):
            chunk = texts[start : start + _CHUNK_DOCUMENTS]
            for ids in tokenizer.encode_batch(chunk):
                pieces.append(np.array([separator, *ids], dtype=np.int32))
            bar.advance(len(chunk))
    pieces.append(np.array([separator], dtype=np.int32))
    return np.concatenate(pieces)


class PackedWindows:
    """Training batches: windows of a token stream, every token seen once per epoch.

    Each epoch cuts the stream at another offset and shuffles the windows, so that no window is
    met twice. Documents follow each other in a window; the separator tells the model.

    Args:
        tokens: (N,) ids.
        context_length: T, tokens per row.
        batch_size: B, rows per batch.
    Raises: UserError when the stream is shorter than one window.
    """

    def __init__(
        self, tokens: np.ndarray, *, context_length: int, batch_size: int, seed: int
    ) -> None:
        if len(tokens) < context_length + 1:
            raise UserError(
                f"the corpus has {len(tokens)} tokens, fewer than one window of "
                f"{context_length + 1}: add text, or lower --context-length"
            )
        self._tokens, self._length, self._rows = tokens, context_length, batch_size
        self._seed = seed
        # The last offset must still leave this many whole windows.
        self._slack = min(context_length, len(tokens) - context_length - 1)
        self._windows = (len(tokens) - 1 - self._slack) // context_length
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def batches_per_epoch(self) -> float:
        return self._windows / self._rows

    def windows(self, step: int) -> np.ndarray:
        """The tokens of batch number `step`, counted from 0, through all epochs: (B, T + 1)."""
        first = step * self._rows
        rows = [self._start(index) for index in range(first, first + self._rows)]
        return np.stack([self._tokens[at : at + self._length + 1] for at in rows])

    def __call__(self, step: int) -> Batch:
        """`windows` as a batch whose labels are the next tokens."""
        return next_tokens(self.windows(step))

    def _start(self, index: int) -> int:
        epoch, within = divmod(index, self._windows)
        if self._epoch[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            offset = random.integers(0, self._slack + 1)
            self._epoch = (epoch, offset + random.permutation(self._windows) * self._length)
        return int(self._epoch[1][within])


def next_tokens(windows: np.ndarray) -> Batch:
    """A batch of (B, T + 1) tokens: each row is asked for its tokens but the first."""
    import torch

    ids = torch.from_numpy(windows.astype(np.int64))
    return Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())


def leading_ids(tokens: np.ndarray, *, context_length: int, count: int) -> np.ndarray:
    """The first `count` windows, or as many as there are, (n, T + 1) int64."""
    count = max(0, min(count, (len(tokens) - 1) // context_length))
    starts = np.arange(count)[:, None] * context_length
    return tokens[starts + np.arange(context_length + 1)].astype(np.int64)


def leading_windows(tokens: np.ndarray, *, context_length: int, count: int) -> list[Batch]:
    """The first `count` windows, one to a batch of up to 8: a fixed yardstick during training."""
    ids = leading_ids(tokens, context_length=context_length, count=count)
    return [next_tokens(ids[i : i + 8]) for i in range(0, len(ids), 8)]
