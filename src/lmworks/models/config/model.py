"""The config of a whole model: its embedding, its layers one by one, its norm and its head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.attention import AttentionConfig
from lmworks.models.config.base import BlockConfig, Kept, check_choice, check_count, check_positive
from lmworks.models.config.heads import HeadConfig, LMHeadConfig
from lmworks.models.config.inputs import InputConfig
from lmworks.models.config.norms import NormConfig, RMSNormConfig
from lmworks.models.config.positions import (
    LearnedPositions,
    RelativePositions,
    SinusoidalPositions,
)

# Above any published model; keeps a hostile config from building blocks for ever.
_MOST_LAYERS = 1024
PLACEMENTS = ("pre", "post", "output", "sandwich", "parallel", "parallel_shared")


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A mixer, which moves information between positions, and a feed-forward for each position.

    `placement` says where the norms stand, f being the mixer or the feed-forward:

    - pre: x + f(norm(x)), the modern default
    - post: norm(x + f(x)), the first transformers and BERT
    - output: x + norm(f(x)), OLMo 2
    - sandwich: x + output_norm(f(norm(x))), Gemma 2 and 3
    - parallel: x + mixer(norm(x)) + feed_forward(norm'(x)), GPT-NeoX
    - parallel_shared: the same with one norm for both, Phi

    A layer without a feed-forward is its mixer alone (Mamba). `cross_attention` stands between
    the two and looks at the encoder's states.
    """

    mixer: BlockConfig
    feed_forward: BlockConfig | None = None
    cross_attention: AttentionConfig | None = None
    norm: NormConfig = field(default_factory=RMSNormConfig)
    placement: str = "pre"

    def __post_init__(self) -> None:
        check_choice(self, "placement", PLACEMENTS)
        if self.placement.startswith("parallel") and (
            not self.feed_forward or self.cross_attention
        ):
            raise UserError(
                f"layer: placement {self.placement} needs a feed-forward, and has no place for "
                "cross attention"
            )

    def kept(self, model: ModelConfig) -> Kept:
        """What mixer and feed-forward keep of a sequence, together."""
        parts = [part.kept(model) for part in (self.mixer, self.feed_forward) if part]
        names = [name for part in parts for name in (*part.per_position, *part.fixed)]
        if len(set(names)) != len(names):
            raise UserError(f"layer: mixer and feed-forward both keep states named {names}")
        return Kept(
            per_position={k: v for part in parts for k, v in part.per_position.items()},
            fixed={k: v for part in parts for k, v in part.fixed.items()},
            window=parts[0].window,
        )


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What is done to a token's row: scaled, a segment's row added (BERT), normed.

    Attributes:
        size: of the rows, which a projection then brings to the hidden size (ELECTRA); None is
            the hidden size.
        shared: of an encoder whose rows are its decoder's: it has no table of its own.
    """

    kind: ClassVar[str] = "tokens"
    scale: float = 1.0
    type_vocab_size: int = 0
    norm: NormConfig | None = None
    size: int | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "scale")
        check_count(self, "type_vocab_size", least=0)
        if self.size is not None:
            check_count(self, "size")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of layers between an embedding and a head.

    Attributes:
        layers: every layer, so that any pattern can be told.
        norm: after the last layer, or None.
        positions: what is added to the embedding; rotary and ALiBi belong to attention.
        relative_positions: what is added to the scores of every layer's attention.
        inputs: what is read in place of token ids, by an encoder of images or sound.
        head: what the states after the last norm become; None leaves them as they are.
        max_position_embeddings: the context that the weights were made for. The forward does not
            refuse more, unless positions are learned; a cache has its own limit.
        encoder: of an encoder-decoder; this config is then the decoder's.
    """

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    inputs: InputConfig | None = None
    positions: LearnedPositions | SinusoidalPositions | None = None
    relative_positions: RelativePositions | None = None
    norm: NormConfig | None = field(default_factory=RMSNormConfig)
    head: HeadConfig | None = field(default_factory=LMHeadConfig)
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    encoder: ModelConfig | None = None

    def __post_init__(self) -> None:
        check_count(self, "vocab_size", least=0 if self.inputs else 1)
        check_count(self, "hidden_size", "max_position_embeddings")
        if not self.layers or len(self.layers) > _MOST_LAYERS:
            raise UserError(
                f"model: {len(self.layers)} layers; there must be from 1 to {_MOST_LAYERS}"
            )
        looks_across = any(layer.cross_attention for layer in self.layers)
        if looks_across != (self.encoder is not None):
            raise UserError("model: cross attention and an encoder go together; one is missing")
        if self.inputs and isinstance(self.head, LMHeadConfig):
            raise UserError("model: without token ids there is no vocabulary for a head")
        if self.relative_positions and not isinstance(self.layers[0].mixer, AttentionConfig):
            raise UserError("model: relative positions need attention in the first layer")
        windows = any(getattr(layer.mixer, "pattern", None) for layer in self.layers)
        if self.relative_positions and windows:
            raise UserError("model: relative positions are for attention that sees all")

    @classmethod
    def uniform(
        cls,
        *,
        num_hidden_layers: int,
        mixer: BlockConfig,
        feed_forward: BlockConfig | None,
        norm: NormConfig | None = None,
        placement: str = "pre",
        **rest: Any,
    ) -> ModelConfig:
        """A model whose layers are all alike; one `norm` config serves layers and the end."""
        norm = norm or RMSNormConfig()
        layer = LayerConfig(mixer=mixer, feed_forward=feed_forward, norm=norm, placement=placement)
        return cls(layers=repeated(layer, num_hidden_layers), norm=norm, **rest)

    @property
    def embedding_size(self) -> int:
        """The size of a token's row."""
        return self.embedding.size or self.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def with_layers(self, **changes: Any) -> ModelConfig:
        """The same model with these fields changed in every layer."""
        layers = tuple(dataclasses.replace(layer, **changes) for layer in self.layers)
        return dataclasses.replace(self, layers=layers)


def repeated(layer: LayerConfig, count: Any) -> tuple[LayerConfig, ...]:
    """`layer`, `count` times. Raises: UserError for a count that is none."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MOST_LAYERS:
        raise UserError(
            f"model: num_hidden_layers must be a whole number from 1 to {_MOST_LAYERS}, "
            f"not {count!r}"
        )
    return (layer,) * count
