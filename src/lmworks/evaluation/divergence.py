"""How far a model went from another: KL divergence, agreement of the likeliest token, loss.

A model with fewer bits, a merged or a shortened one is judged by what it was made from: at each
place of a text, KL(reference || candidate) of the whole distribution of the next token. Perplexity
can stay the same while answers change; this can't. Both models read the same windows of the same
rows, and the head is computed for a slice of places at a time, so no more than a few megabytes of
logits are ever there.

What is kept of a reference (`remember`) are its last states and not its logits: 2.3 kB per token
for SmolLM2 where 16-bit logits are 98 kB, and nothing is lost, since the head makes the very same
logits of them again, slice by slice.

Precision: with d = log q - log p, a token's part is q - p - p d, which is p d^2 / 2 for a small d
and never below zero but by rounding. Errors of the two normalisations cancel to first order: over a
vocabulary of 49,152, float32 leaves 4e-9 nats; of the plain sum of p (log p - log q), 3e-7.

Sources: Kullback & Leibler 1951; llama.cpp's perplexity tool, whose figures are the same (mean
KLD, same top p), is what the field quotes them from.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open, write_text
from lmworks.core.progress import track
from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval
from lmworks.inference.logprobs import (
    Window,
    batches_of,
    cached_states,
    num_inputs,
    put_back,
    scored_states,
)

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model

_LOGIT_CELLS = 2_000_000  # of each model at once, 8 MB, and a few times that meanwhile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergences:
    """A candidate against its reference on N texts; sums over the tokens of each.

    Attributes:
        kl: (N,) float64 nats, KL(reference || candidate).
        agreements: (N,) int64, places where both find the same token likeliest.
        nats, reference_nats: (N,) float64, what the text cost each model.
        num_tokens: (N,) int64, places that were scored.
        groups: (N,) str: texts of one group are alike and are resampled together.
        token_kl: (num_tokens.sum(),) float32, of each place, texts one behind the other.
    """

    kl: np.ndarray
    agreements: np.ndarray
    nats: np.ndarray
    reference_nats: np.ndarray
    num_tokens: np.ndarray
    groups: np.ndarray
    token_kl: np.ndarray

    def mean_kl(self, *, seed: int = 0) -> Interval:
        """Nats per token."""
        return ratio_interval(self.kl, self.num_tokens, self.groups, seed=seed)

    def agreement(self, *, seed: int = 0) -> Interval:
        """The share of places where both find the same token likeliest."""
        return ratio_interval(self.agreements, self.num_tokens, self.groups, seed=seed)

    def added_nats(self, *, seed: int = 0) -> Interval:
        """Nats per token that the candidate needs more than the reference."""
        return paired_interval(
            self.nats, self.reference_nats, self.num_tokens, self.groups, seed=seed
        )

    def loss_growth(self, *, seed: int = 0) -> Interval:
        """Nats of the candidate over those of the reference, minus 1: 0.01 is a loss 1 % higher."""
        found = ratio_interval(self.nats, self.reference_nats, self.groups, seed=seed)
        return Interval(found.estimate - 1, found.low - 1, found.high - 1)

    def perplexity(self, *, of_reference: bool = False) -> float:
        """exp of the nats per token."""
        nats = self.reference_nats if of_reference else self.nats
        return float(np.exp(nats.sum() / self.num_tokens.sum()))

    def kl_above(self, other: Divergences, *, seed: int = 0) -> Interval:
        """Mean KL minus that of another candidate on the same texts; below zero: this is nearer."""
        self._check_same(other)
        return paired_interval(self.kl, other.kl, self.num_tokens, self.groups, seed=seed)

    def kl_ratio(self, other: Divergences, *, seed: int = 0) -> Interval:
        """Mean KL as a multiple of that of another candidate on the same texts."""
        self._check_same(other)
        return ratio_interval(self.kl, other.kl, self.groups, seed=seed)

    def quantile(self, share: float) -> float:
        """Nats that the KL of this share of all places stays below."""
        return float(np.quantile(self.token_kl, share))

    def _check_same(self, other: Divergences) -> None:
        same = np.array_equal(self.num_tokens, other.num_tokens)
        if not same or not np.array_equal(self.groups, other.groups):
            raise ValueError("two candidates can be compared on the same texts only")


class Remembered:
    """What a reference said about some rows, on disk; made by `remember`.

    Attributes:
        config: of the reference.
        states: (places, H) float32, mapped from the file, in the order in which batches come.
        window: tokens read at once.
    """

    def __init__(self, head: Model, states: np.ndarray, rows: Sequence[np.ndarray], window: int):
        self.config, self.states, self.window = head.config, states, window
        self._head, self._key = head, _key(rows, window)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(M, H) -> (M, V), the reference's own head."""
        return self._head.logits(states)

    def check_rows(self, rows: Sequence[np.ndarray], window: int) -> None:
        """Raises: ValueError unless these are the rows that were remembered."""
        if self._key != _key(rows, window):
            raise ValueError("the reference was remembered on other rows")


def remember(
    reference: Model, rows: Sequence[np.ndarray], path: str | Path, *, window: int = 0
) -> Remembered:
    """Read the rows once and keep the reference's last states in a file.

    All of the model but its head can then be let go. A file that an earlier call left for the same
    rows is taken as it is; whoever names it sees to it that the model is the same.

    Args:
        rows: (length,) token ids each; the first token is only read.
        path: of the file, `.npy`; written whole or not at all.
        window: as in `divergences`.
    """
    import torch

    path, window = Path(path), window or reference.config.max_position_embeddings
    marker, key = path.with_suffix(".key"), _key(rows, window)
    if not (path.is_file() and marker.is_file() and marker.read_text() == key):
        batches = batches_of(rows, window)
        places = sum(end - first for batch in batches for _, _, end, first in batch)
        shape = (places, reference.config.hidden_size)
        marker.unlink(missing_ok=True)
        reference.eval()
        total = sum(num_inputs(batch) for batch in batches)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with (
            torch.inference_mode(),
            track("reference", total=total) as bar,
            atomic_open(path) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for batch in batches:
                states, _ = scored_states(reference, rows, batch)
                file.write(states.float().cpu().numpy().tobytes())
                bar.advance(num_inputs(batch))
        write_text(marker, key)
    head = copy.copy(reference)
    kept = reference._modules.items()
    head._modules = {name: part for name, part in kept if name not in ("layers", "encoder")}
    return Remembered(head, np.load(path, mmap_mode="r"), rows, window)


def divergences(
    reference: Model | Remembered,
    candidate: Model,
    rows: Sequence[np.ndarray],
    *,
    groups: Sequence[str] | None = None,
    window: int = 0,
    cache_type: str = "",
) -> Divergences:
    """Compare the distributions of two models at every place of some rows.

    Args:
        reference: the model that the candidate was made from, or what `remember` kept of it.
        rows: (length,) token ids each, with the separator that stands before a text first; at
            least two tokens.
        groups: (N,) names; texts of one group are alike and are resampled together. By default
            each text is its own.
        window: tokens read at once; 0 takes the smaller of the two models' contexts (what was
            remembered brings its own).
        cache_type: the candidate reads through a cache that holds keys and values so, as a server
            would; "": without one.
    Returns: see Divergences; the order is that of the rows.
    Raises: UserError if the vocabularies differ in size, or a row has fewer than two tokens.
    """
    import torch

    _check(reference, candidate, rows, groups)
    if isinstance(reference, Remembered):
        window = reference.window
        reference.check_rows(rows, window)
    if not window:
        both = (reference.config, candidate.config)
        window = min(config.max_position_embeddings for config in both)
    names = ("kl", "agreements", "nats", "reference_nats")
    columns = {name: [np.zeros(len(ids) - 1) for ids in rows] for name in names}
    batches = batches_of(rows, window)
    candidate.eval()
    at = 0
    total = sum(num_inputs(batch) for batch in batches)
    with torch.inference_mode(), track("comparing", total=total) as bar:
        for batch in batches:
            theirs, at = _reference_states(reference, rows, batch, at)
            mine, targets = _candidate_states(candidate, rows, batch, cache_type)
            found = _compared(reference, theirs, candidate, mine, targets)
            for name, values in zip(names, found, strict=True):
                put_back(columns[name], batch, values)
            bar.advance(num_inputs(batch))
    sums = {name: np.array([c.sum() for c in columns[name]]) for name in names}
    return Divergences(
        kl=sums["kl"],
        agreements=sums["agreements"].astype(np.int64),
        nats=sums["nats"],
        reference_nats=sums["reference_nats"],
        num_tokens=np.array([len(ids) - 1 for ids in rows]),
        groups=np.array(groups if groups is not None else range(len(rows)), dtype=str),
        token_kl=np.concatenate(columns["kl"]).astype(np.float32),
    )


def _check(
    reference: Model | Remembered,
    candidate: Model,
    rows: Sequence[np.ndarray],
    groups: Sequence[str] | None,
) -> None:
    sizes = (reference.config.vocab_size, candidate.config.vocab_size)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens: KL needs two models that share "
            "one; compare others in bits per byte"
        )
    short = next((index for index, ids in enumerate(rows) if len(ids) < 2), None)
    if not len(rows) or short is not None:
        where = "there is no row" if short is None else f"row {short} has fewer than two tokens"
        raise UserError(f"nothing to compare: {where}")
    if groups is not None and len(groups) != len(rows):
        raise ValueError(f"{len(groups)} groups for {len(rows)} rows")


def _reference_states(
    reference: Model | Remembered, rows: Sequence[np.ndarray], batch: Sequence[Window], at: int
) -> tuple[torch.Tensor, int]:
    """(M, H) states of a batch; and where in what was remembered the next one's begin."""
    import torch

    if not isinstance(reference, Remembered):
        return scored_states(reference.eval(), rows, batch)[0], at
    end = at + sum(end - first for _, _, end, first in batch)
    return torch.from_numpy(np.array(reference.states[at:end])), end


def _candidate_states(
    model: Model, rows: Sequence[np.ndarray], batch: Sequence[Window], cache_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `scored_states`, through a cache where its type is named."""
    import torch

    if not cache_type:
        return scored_states(model, rows, batch)
    targets = [np.asarray(rows[i][first + 1 : end + 1], np.int64) for i, _, end, first in batch]
    states = cached_states(model, rows, batch, cache_type)
    return states, torch.from_numpy(np.concatenate(targets)).to(states.device)


def _compared(
    reference: Model | Remembered,
    theirs: torch.Tensor,
    candidate: Model,
    mine: torch.Tensor,
    targets: torch.Tensor,
) -> list[np.ndarray]:
    """Four figures of each place, (M,) float64: KL, agreement, and nats of both."""
    import torch

    rows = max(1, _LOGIT_CELLS // candidate.config.vocab_size)
    pieces = []
    for states_p, states_q, target in zip(
        theirs.split(rows), mine.split(rows), targets.split(rows), strict=True
    ):
        p = reference.logits(states_p.to(mine.device)).float().log_softmax(-1)
        q = candidate.logits(states_q).float().log_softmax(-1)
        agrees = p.argmax(-1) == q.argmax(-1)
        nats = [-each.gather(-1, target[:, None])[:, 0] for each in (q, p)]
        pieces.append(torch.stack([_kl(p, q), agrees.float(), *nats]).double().cpu())
    return list(torch.cat(pieces, dim=1).numpy())


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(M, V) log-probabilities -> (M,) nats; see "Precision" above. Overwrites both."""
    difference = q - p
    likely = p.exp_()
    difference.mul_(likely)
    parts = q.exp_().sub_(likely).sub_(difference)
    return parts.sum(-1).clamp_(min=0)


def _key(rows: Sequence[np.ndarray], window: int) -> str:
    digest = hashlib.sha256(str(window).encode())
    for ids in rows:
        digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()
