"""The seam of pre-training: an objective that makes its own questions out of plain text.

Windows of a token stream come in, one token longer than a row; `corrupt` turns them into what the
model sees and what it is asked. All that is drawn comes from one generator, whose seed is (seed,
step): a resumed run, or one on other processes, is asked the same.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from typing import Self

    import torch

    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.training.batches import Rows
    from lmworks.training.objectives.base import Loss

Architecture = Literal["decoder", "encoder", "encoder-decoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What there is to know of a vocabulary to corrupt text in it.

    Attributes:
        special: (V,) bool, the tokens that stand for no text; they are never asked for.
        separator: the token before every document.
        mask_id: the token that stands for one that was taken out.
        sentinels: the tokens that stand for spans that were taken out, in order.
        word_begins, word_ends: (V,) bool, whether the first and the last character of a token is
            part of a word; two such in a row are of one word.
        apart: whether the documents of a window may not know of each other.
    """

    special: np.ndarray
    separator: int
    mask_id: int = -1
    sentinels: tuple[int, ...] = ()
    word_begins: np.ndarray
    word_ends: np.ndarray
    apart: bool = False

    def inputs(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        """What the model is told of windows (B, T) beside their ids."""
        import torch

        return {"documents": torch.from_numpy(self.documents(ids))} if self.apart else {}

    def documents(self, ids: np.ndarray) -> np.ndarray:
        """(B, T): the number of each token's document."""
        return np.cumsum(ids == self.separator, axis=1)

    def words(self, ids: np.ndarray) -> np.ndarray:
        """(B, T): the number of each token's word, from 0 in each row."""
        joined = self.word_begins[ids[:, 1:]] & self.word_ends[ids[:, :-1]]
        joined &= ~self.special[ids[:, 1:]] & ~self.special[ids[:, :-1]]
        first = np.zeros((len(ids), 1), dtype=np.int64)
        return np.concatenate([first, np.cumsum(~joined, axis=1)], axis=1)

    def drawn_ids(self, random: np.random.Generator, size: int) -> np.ndarray:
        """(size,) tokens that stand for text, each as likely as any other."""
        plain = np.flatnonzero(~self.special)
        return plain[random.integers(0, len(plain), size)]


def facts_of(tokenizer: PipelineTokenizer, *, apart: bool = False) -> TokenFacts:
    """Raises: UserError for a tokenizer that has no token to part documents with."""
    from lmworks.tokenizers.reserved import mask_token_id, sentinel_ids
    from lmworks.training.tokens import document_separator

    special = np.zeros(tokenizer.vocab_size, dtype=bool)
    special[list(tokenizer.special_tokens.values())] = True
    texts = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in range(len(special))]
    mask_id = mask_token_id(tokenizer)
    return TokenFacts(
        special=special,
        separator=document_separator(tokenizer),
        mask_id=-1 if mask_id is None else mask_id,
        sentinels=tuple(sentinel_ids(tokenizer)),
        word_begins=np.array([_of_word(text[:1]) for text in texts]),
        word_ends=np.array([_of_word(text[-1:]) for text in texts]),
        apart=apart,
    )


def _of_word(character: str) -> bool:
    # A token that ends within a character (U+FFFD) goes on in the next.
    return character.isalnum() or character in ("_", "\ufffd")


class TextObjective(Protocol):
    """An objective that `train pretrain` can be told to learn with.

    Attributes:
        architectures: the kinds of model that can learn it, the usual one first.
        told: what a decoder's layers must be able to honour beside order (`BlockConfig.honours`).
        needs_mask: whether it puts a mask token in.
    """

    architectures: ClassVar[tuple[Architecture, ...]]
    told: ClassVar[frozenset[str]]
    needs_mask: ClassVar[bool]

    def num_sentinels(self, context_length: int) -> int:
        """How many spans of a window may be taken out."""

    def for_architecture(self, architecture: Architecture) -> TextObjective:
        """The objective as a model of that kind, one of `architectures`, learns it."""

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Rows:
        """Windows (B, T + 1) int64 -> what the model sees and is asked."""

    def __call__(self, model: Any, batch: Any) -> Loss: ...


class PlainText:
    """What most objectives share: any number of them need no sentinels and no mask."""

    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder",)
    told: ClassVar[frozenset[str]] = frozenset()
    needs_mask: ClassVar[bool] = False

    def num_sentinels(self, context_length: int) -> int:
        """None."""
        return 0

    def for_architecture(self, architecture: Architecture) -> Self:
        """The same for all."""
        return self


def check_share(share: float, name: str = "share", *, most: float = 1.0) -> None:
    """Raises: UserError for what is no share, or none at all."""
    if not 0 < share <= most:
        raise UserError(f"{name} = {share}: a share above 0, up to {most:g}")


def tensors(**arrays: np.ndarray) -> dict[str, Any]:
    """Arrays as tensors of their own memory; whole numbers become int64."""
    import torch

    return {
        name: torch.from_numpy(
            np.ascontiguousarray(array, dtype=np.int64 if array.dtype.kind in "iu" else None)
        )
        for name, array in arrays.items()
    }
