"""Log-probabilities of whole sequences, from any kind of model, behind one type.

A `LogprobFn` takes sequences of token ids and gives, for each, the log-probability of every token
but the first. What a task measures (bits per byte, answers) is built on that alone.

For a decoder, a sequence longer than its context is read in windows that overlap by half: every
token is scored once, and after the first window with at least half a window before it. Windows of
similar length share a batch, and the head is computed only where a token is scored, a slice at a
time, so memory does not grow with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.progress import track

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model
    from lmworks.scratch.ngram import KneserNey

# Sequences (N,) of ids -> for each (N - 1,) float64 nats: tokens 1.. given those before them.
LogprobFn = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

_LOGIT_CELLS = 8_000_000  # logits held at once, 32 MB
_TOKENS_PER_BATCH = 4096

# (sequence, first input, end of the inputs, first input whose next token is scored)
Window = tuple[int, int, int, int]


def ngram_logprobs(model: KneserNey) -> LogprobFn:
    """Score with an n-gram model."""
    return lambda sequences: [model.logprobs(ids)[1:] for ids in sequences]


def decoder_logprobs(model: Model, *, window: int = 0) -> LogprobFn:
    """Score with a decoder, in inference mode.

    Args:
        window: tokens read at once; 0 takes the model's `max_position_embeddings`.
    """
    size = window or model.config.max_position_embeddings

    def logprobs(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        model.eval()
        nats = [np.zeros(max(len(ids) - 1, 0)) for ids in sequences]
        batches = batches_of(sequences, size)
        total = sum(num_inputs(batch) for batch in batches)
        with torch.inference_mode(), track("scoring", total=total) as bar:
            for batch in batches:
                states, targets = scored_states(model, sequences, batch)
                put_back(nats, batch, _target_logprobs(model, states, targets))
                bar.advance(num_inputs(batch))
        return nats

    return logprobs


def windows_of(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a sequence of `length` tokens into windows of at most `size` inputs.

    Yields (start, end, first): inputs start..end - 1, of which those from `first` on predict.
    """
    num_inputs = length - 1  # the last token is only predicted
    first = 0
    while first < num_inputs:
        start = 0 if first == 0 else first - (size - max(1, size // 2))
        end = min(start + size, num_inputs)
        yield start, end, first
        first = end


def batches_of(sequences: Sequence[np.ndarray], size: int) -> list[list[Window]]:
    """Windows of all sequences, longest first, in batches of about _TOKENS_PER_BATCH tokens."""
    windows = [
        (index, *bounds)
        for index, ids in enumerate(sequences)
        for bounds in windows_of(len(ids), size)
    ]
    ordered = sorted(windows, key=lambda w: w[1] - w[2])
    batches, start = [], 0
    while start < len(ordered):
        _, begin, end, _ = ordered[start]
        rows = max(1, _TOKENS_PER_BATCH // (end - begin))
        batches.append(ordered[start : start + rows])
        start += rows
    return batches


def num_inputs(batch: Sequence[Window]) -> int:
    """Tokens that are read for a batch of windows."""
    return sum(end - start for _, start, end, _ in batch)


def scored_states(
    model: Model, sequences: Sequence[np.ndarray], batch: Sequence[Window]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, H) final states of the positions of a batch that predict, and (M,) what they predict."""
    import torch

    width = max(end - start for _, start, end, _ in batch)
    input_ids = np.zeros((len(batch), width), dtype=np.int64)  # causal: padding is never seen
    scored = np.zeros((len(batch), width), dtype=bool)
    targets = []
    for row, (index, start, end, first) in enumerate(batch):
        input_ids[row, : end - start] = sequences[index][start:end]
        scored[row, first - start : end - start] = True
        targets.append(np.asarray(sequences[index][first + 1 : end + 1], dtype=np.int64))
    device = next(model.parameters()).device  # a packed table has none to ask
    hidden = model.hidden_states(torch.from_numpy(input_ids).to(device))
    return (
        hidden[torch.from_numpy(scored).to(device)],
        torch.from_numpy(np.concatenate(targets)).to(device),
    )


def cached_states(
    model: Model, sequences: Sequence[np.ndarray], batch: Sequence[Window], cache_type: str
) -> torch.Tensor:
    """The states of `scored_states`, read through a cache, as a server reads a prompt.

    Args:
        cache_type: how keys and values are held, see `models.cache_types`.
    """
    import torch

    from lmworks.models.cache import KVCache

    found = []
    device = next(model.parameters()).device
    for index, start, end, first in batch:
        cache = KVCache(model.config, 1, end - start, device=device, cache_type=cache_type)
        ids = torch.from_numpy(np.asarray(sequences[index][start:end], dtype=np.int64))
        states = model.hidden_states(ids[None].to(device), cache.view([0]))
        found.append(states[0, first - start :])
    return torch.cat(found)


def put_back(columns: list[np.ndarray], batch: Sequence[Window], found: np.ndarray) -> None:
    """(M,) figures of a batch's positions into the (N - 1,) columns of their sequences."""
    at = 0
    for index, _, end, first in batch:
        columns[index][first:end] = found[at : at + end - first]
        at += end - first


def _target_logprobs(model: Model, hidden: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """(M, H), (M,) -> (M,) float64 nats."""
    import torch
    import torch.nn.functional as F

    rows = max(1, _LOGIT_CELLS // model.config.vocab_size)
    pieces = [
        -F.cross_entropy(model.logits(h), t, reduction="none")
        for h, t in zip(hidden.split(rows), targets.split(rows))
    ]
    return torch.cat(pieces).double().cpu().numpy()
