"""Configs of what a model ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import check_choice, check_count, check_positive
from lmworks.models.config.feed_forward import ACTIVATIONS, MLPConfig
from lmworks.models.config.norms import NormConfig


@dataclass(frozen=True, kw_only=True)
class LMHeadConfig:
    """Logits over the vocabulary.

    Attributes:
        bias: whether the head adds one per token.
        scale: what the last states are multiplied by first (T5: 1 / sqrt(hidden size)).
        softcap: logits become softcap * tanh(logit / softcap) (Gemma 2).
        transform: activation of a square layer before the head, as masked models have it.
        transform_norm: the norm after that layer.
    """

    kind: ClassVar[str] = "lm"
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    transform: str | None = None
    transform_norm: NormConfig | None = None

    def __post_init__(self) -> None:
        check_positive(self, "scale", *(("softcap",) if self.softcap is not None else ()))
        if self.transform is not None:
            check_choice(self, "transform", ACTIVATIONS)


@dataclass(frozen=True, kw_only=True)
class FirstPooling:
    """The state of the first position, which stands for the whole in BERT: [CLS]."""

    kind: ClassVar[str] = "first"


@dataclass(frozen=True, kw_only=True)
class LastPooling:
    """The state of the last token: of a decoder the one that has seen all.

    With `padding` it is the last position, whatever stands there (SigLIP).
    """

    kind: ClassVar[str] = "last"
    padding: bool = False


@dataclass(frozen=True, kw_only=True)
class MeanPooling:
    """The mean over all tokens that are no padding."""

    kind: ClassVar[str] = "mean"


@dataclass(frozen=True, kw_only=True)
class TokenPooling:
    """The state where the token `token_id` first stands, or else the first; None: the largest id.

    CLIP pools its end token; the first CLIPs had it as the last of the vocabulary.
    """

    kind: ClassVar[str] = "token"
    token_id: int | None = None

    def __post_init__(self) -> None:
        if self.token_id is not None:
            check_count(self, "token_id", least=0)


@dataclass(frozen=True, kw_only=True)
class AttentionPooling:
    """One learned query looks at all states; then x + MLP(norm(x)) (SigLIP)."""

    kind: ClassVar[str] = "attention"
    num_attention_heads: int
    feed_forward: MLPConfig
    norm: NormConfig

    def __post_init__(self) -> None:
        check_count(self, "num_attention_heads")


# How the states of a sequence become one.
Pooling = FirstPooling | LastPooling | MeanPooling | TokenPooling | AttentionPooling


@dataclass(frozen=True, kw_only=True)
class ClassHeadConfig:
    """Scores of classes: of each sequence, or of each position without a pooling.

    Attributes:
        transform: activation of a square layer before the classes (tanh in BERT's pooler).
        bias: of the classes.
    """

    kind: ClassVar[str] = "class"
    num_classes: int
    pooling: Pooling | None = None
    transform: str | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        check_count(self, "num_classes")
        if self.transform is not None:
            check_choice(self, "transform", ACTIVATIONS)


@dataclass(frozen=True, kw_only=True)
class ValueHeadConfig:
    """One number for each sequence (a reward), or for each position without a pooling (a value)."""

    kind: ClassVar[str] = "value"
    pooling: Pooling | None = None
    transform: str | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        if self.transform is not None:
            check_choice(self, "transform", ACTIVATIONS)


@dataclass(frozen=True, kw_only=True)
class EmbeddingHeadConfig:
    """One vector for each sequence.

    Attributes:
        size: of the vector, by a projection; None takes the pooled state as it is.
        bias: of the projection.
        normalize: divide by the vector's length.
    """

    kind: ClassVar[str] = "embedding"
    pooling: Pooling
    size: int | None = None
    bias: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            check_count(self, "size")
        if self.bias and self.size is None:
            raise UserError("embedding head: a bias needs a projection: give its size")


# Heads that are told by what they pool; a model of language ends in `LMHeadConfig`.
PooledHeadConfig = ClassHeadConfig | ValueHeadConfig | EmbeddingHeadConfig
HeadConfig = LMHeadConfig | ClassHeadConfig | ValueHeadConfig | EmbeddingHeadConfig
