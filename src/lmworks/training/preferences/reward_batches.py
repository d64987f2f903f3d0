"""Pairs for a reward model: whole texts, and in which regard which one is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.training.batches import Rows, Texts
from lmworks.training.preferences.batches import Fit, encode_pair, nothing_fits
from lmworks.training.row_order import RowOrder

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.preferences.rows import Pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardBatch(Rows):
    """Pairs of texts; targets are pairs times the regards that they were judged in.

    Attributes:
        chosen, rejected: B texts each.
        better: (B, heads), 1 where the chosen text is better, -1 where the other is, 0 where the
            pair was not judged.
        margin: (B, heads) by how much.
    """

    chosen: Texts
    rejected: Texts
    better: torch.Tensor
    margin: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Judgements."""
        return int((self.better != 0).sum())


class RewardPairs:
    """Training batches for a reward model.

    Args:
        heads: fields that judge in one regard each: above zero the chosen text is better in it,
            below zero the other; none: a pair is one judgement.
        margin: ask for a difference as large as the judgement's number (`margin` without heads).
    Raises: UserError where nothing fits, or a head that no row was judged in.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        fit: Fit,
        *,
        batch_size: int,
        seed: int,
        heads: Sequence[str] = (),
        margin: bool = False,
    ) -> None:
        self.fit, self.heads, self._padding = fit, [*heads], tokenizer.pad_token_id or 0
        self.pairs: list[Pair] = []
        self._ids: list[tuple[np.ndarray, np.ndarray]] = []
        self.num_unjudged = 0
        for pair in pairs:
            if self.heads and not any(pair.scores.get(name) for name in self.heads):
                self.num_unjudged += 1
                continue
            fitting = fit(encode_pair(tokenizer, pair, "all"))
            if fitting is not None:
                self.pairs.append(pair)
                self._ids.append((fitting[0].ids, fitting[1].ids))
        if pairs and not self.pairs:
            if self.num_unjudged == len(pairs):
                raise UserError(f"no row was judged in any of {', '.join(self.heads)}")
            raise nothing_fits(fit, len(pairs))
        self.better, self.margin = _judgements(self.pairs, self.heads, margin)
        lengths = [max(map(len, two)) for two in self._ids]
        self.order = RowOrder(lengths, batch_size=batch_size, seed=seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def check_heads(self) -> None:
        """Raises: UserError for a head that no row was judged in: it would stay as it began."""
        for name, column in zip(self.heads, self.better.T):
            if not column.any():
                raise UserError(f"no row was judged in {name!r}: leave it out of --heads")

    def answer_lengths(self) -> np.ndarray:
        """(N, 2) tokens of the chosen and the rejected texts; of one pair their prompt is one."""
        return np.array([[len(chosen), len(rejected)] for chosen, rejected in self._ids])

    def __call__(self, step: int) -> RewardBatch:
        """Batch number `step`, counted from 0, through all epochs."""
        return self.collate(self.order(step))

    def collate(self, rows: Sequence[int] | np.ndarray) -> RewardBatch:
        """The rows of these numbers."""
        import torch

        chosen, rejected = (
            padded([self._ids[i][which] for i in rows], self._padding) for which in (0, 1)
        )
        picked = np.asarray(rows)
        return RewardBatch(
            chosen=chosen,
            rejected=rejected,
            better=torch.from_numpy(self.better[picked]),
            margin=torch.from_numpy(self.margin[picked]),
        )


def padded(rows: Sequence[np.ndarray], padding: int) -> Texts:
    """Rows side by side, padded on the right."""
    import torch

    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), padding, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return Texts(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))


def _judgements(
    pairs: Sequence[Pair], heads: Sequence[str], margin: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(N, heads) signs and margins, float32."""
    if not heads:
        wanted = [[pair.scores.get("margin", 0.0) if margin else 0.0] for pair in pairs]
        signs = np.ones((len(pairs), 1), dtype=np.float32)
        return signs, np.array(wanted, dtype=np.float32).reshape(-1, 1)
    scores = np.array(
        [[pair.scores.get(name, 0.0) for name in heads] for pair in pairs], dtype=np.float32
    ).reshape(-1, len(heads))
    return np.sign(scores), np.abs(scores) if margin else np.zeros_like(scores)
