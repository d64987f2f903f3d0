"""Distillation between different tokenizers: both models say what the next byte is.

Tokens of two vocabularies can't be compared, bytes can. At each byte of a text, what a model holds
likely is the sum over all tokens that agree with the text so far, be they begun here or before
(`tokenizers.byte_trie`); one forward over the text's own tokens knows all of them. The student is
taught by the divergence at every byte, summed over a token's bytes, so that it is of one size with
what `distillation` says per token. By the chain rule, over texts that the teacher wrote the sum is
an unbiased estimate of the divergence between two distributions of whole texts, whatever the
tokenizers.

Exact is: each token counts with every byte that it stands for; a byte at which both vocabularies
begin a token, and any byte of a model whose tokens are single bytes. Not known is what would follow
tokens that end within one of the text's own (writing the same bytes in other tokens); their
probability is spread evenly over the symbols and told as `rest`. At the first byte of a token it is
as a rule zero.

Source: Phan et al. 2024, arXiv 2410.09303, section 4, for the bytes; Hinton et al. 2015 for the
    rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.tokenizers.byte_trie import NUM_SYMBOLS
from lmworks.training.batches import IGNORED, Batch, Rows
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.causal import causal
from lmworks.training.objectives.distillation import diverge, with_rest

_LOGIT_CELLS = 4_000_000  # held at once; their running sums are float64, 32 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtBytes(Rows):
    """Tokens of the student's, what they say about bytes, and what the teacher said about them.

    Attributes:
        covers: (B, 5, E) int64: position of the states, place, symbol, low, high; rows are filled
            up with empty ranges. See `tokenizers.byte_trie.Covers`.
        counted: (B, P) bool: places that have a byte.
        top_symbols: (B, P, K) int64; `top_logprobs` (B, P, K) nats.
    """

    batch: Batch
    covers: torch.Tensor
    counted: torch.Tensor
    top_symbols: torch.Tensor
    top_logprobs: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Tokens of the student's that count in the loss."""
        return self.batch.num_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteDistillation:
    """Make the student's distribution over the next byte the teacher's, whose tokens are others."""

    divergence: Literal["forward_kl", "reverse_kl", "js"] = option(
        "forward_kl", help="towards all that the teacher might say, its likeliest, or between"
    )
    label_weight: float = option(0.5, help="share of the plain loss on the text, 0 to 1")
    order: Any = option(None, help="set by the stage: the student's ids by their bytes", flag=False)

    def __post_init__(self) -> None:
        if not 0 <= self.label_weight <= 1:
            raise UserError(f"distillation: label_weight = {self.label_weight}: from 0 to 1")

    def __call__(self, model: Any, batch: TaughtBytes) -> Loss:
        """Mean over the student's tokens. Metrics: nll and divergence, nats per token; rest, the
        share of probability whose next byte is not known."""
        plain = batch.batch
        if self.label_weight == 1:  # nobody asks the teacher
            loss = causal(model, plain)
            return dataclasses.replace(loss, metrics={"nll": loss.value.item()} | {**loss.metrics})
        hidden = model.hidden_states(plain.input_ids, **plain.inputs)
        weight = self.label_weight if plain.source != "student" else 0.0
        nll = divergence = rest = hidden.new_zeros((), dtype=torch.float64)
        for row in range(plain.num_rows):
            labels = plain.labels[row]
            found = byte_logprobs(
                model, hidden[row], labels, batch.covers[row], self.order, len(batch.counted[row])
            )
            counted = batch.counted[row]
            ours = found.logprobs[counted].gather(-1, batch.top_symbols[row][counted])
            theirs = batch.top_logprobs[row][counted].double()
            apart = diverge(self.divergence, with_rest(theirs), with_rest(ours))
            divergence = divergence + apart.sum()
            nll = nll - found.label_logprobs.sum()
            rest = rest + found.rest[counted].mean() / plain.num_rows
        count = max(1, plain.num_targets)
        value = (weight * nll + (1 - weight) * divergence) / count
        return Loss(
            value=value.to(hidden.dtype),
            num_targets=plain.num_targets,
            auxiliary=model.auxiliary_loss(),
            metrics={
                "nll": nll.item() / count,
                "divergence": divergence.item() / count,
                "rest": rest.item(),
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes:
    """What a model says about the bytes of a text.

    Attributes:
        logprobs: (P, 257) float64, nats; each place sums to 1.
        rest: (P,) share that was spread evenly, its next byte not being known.
        label_logprobs: (N,) nats of the text's own tokens.
    """

    logprobs: torch.Tensor
    rest: torch.Tensor
    label_logprobs: torch.Tensor


def byte_logprobs(
    model: Any,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    covers: torch.Tensor,
    order: torch.Tensor,
    num_places: int,
) -> Bytes:
    """The next byte at every place of one text.

    Args:
        hidden: (T, H) after the final norm.
        labels: (T,) the token at each position, IGNORED outside of the text.
        covers: (5, E): position, place, symbol, low, high; positions ascend.
        order: (V,) ids in the order that low and high are of.
    """
    covers = covers[:, covers[4] > covers[3]]  # without what rows were filled up with
    where = (labels != IGNORED).nonzero()[:, 0]
    positions = torch.unique(torch.cat([where, covers[0]]))
    masses, own = [], []
    for part in _slices(positions, len(order)):
        inside = (covers[0] >= part[0]) & (covers[0] <= part[-1])
        ranges = covers[3:, inside]
        lines = torch.searchsorted(part, covers[0, inside])

        def ask(states: torch.Tensor, part=part, ranges=ranges, lines=lines) -> Any:  # type: ignore[no-untyped-def]
            return _masses(model, states, order, labels[part], lines, ranges)

        states = hidden[part]
        found = (
            checkpoint(ask, states, use_reentrant=False) if states.requires_grad else ask(states)
        )
        masses.append(found[0])
        own.append(found[1])
    mass, label_logprobs = torch.cat(masses), torch.cat(own)
    # The log-probability of the text's own tokens before each position.
    reached = torch.cat([label_logprobs.new_zeros(1), label_logprobs.cumsum(0)[:-1]])
    before = reached[torch.searchsorted(positions, covers[0])]
    place, symbol = covers[1], covers[2]
    most = torch.full((num_places,), -torch.inf, dtype=torch.float64, device=hidden.device)
    most.scatter_reduce_(0, place, before.detach(), "amax")
    mass = mass * (before - most[place]).exp()
    known = symbol >= 0
    flat = torch.zeros(num_places * NUM_SYMBOLS, dtype=torch.float64, device=hidden.device)
    cells = (place * NUM_SYMBOLS + symbol)[known]
    sums = flat.index_add(0, cells, mass[known]).view(num_places, NUM_SYMBOLS)
    lost = torch.zeros(num_places, dtype=torch.float64, device=hidden.device)
    lost = lost.index_add(0, place[~known], mass[~known])
    total = (sums.sum(-1) + lost).clamp(min=_SMALLEST)
    spread = (sums + (lost / NUM_SYMBOLS)[:, None]) / total[:, None]
    counted = labels[positions] != IGNORED
    return Bytes(
        logprobs=spread.clamp(min=_SMALLEST).log(),
        rest=(lost / total).detach(),
        label_logprobs=label_logprobs[counted],
    )


_SMALLEST = 1e-30


def _slices(positions: torch.Tensor, vocab_size: int) -> Iterator[torch.Tensor]:
    yield from positions.split(max(1, _LOGIT_CELLS // vocab_size))


def _masses(
    model: Any,
    states: torch.Tensor,
    order: torch.Tensor,
    labels: torch.Tensor,
    lines: torch.Tensor,
    ranges: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(E,) probability of each range, and (N,) log-probability of each label, 0 for none."""
    logits = model.logits(states).float()
    logits = F.pad(logits, (0, max(0, len(order) - logits.shape[-1])), value=-torch.inf)
    logprobs = logits.log_softmax(-1)
    # A running sum makes every range a difference; float64 keeps ranges of 1e-9 right.
    sums = logprobs[:, order].double().exp().cumsum(-1)
    sums = F.pad(sums, (1, 0))
    mass = sums[lines, ranges[1]] - sums[lines, ranges[0]]
    own = logprobs.gather(-1, labels.clamp(min=0)[:, None])[:, 0].double()
    return mass.clamp(min=0), torch.where(labels == IGNORED, 0.0, own)
