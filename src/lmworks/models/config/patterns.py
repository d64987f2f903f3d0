"""Models from a pattern of layers: `attention`, `mamba*3,attention`, `window*5,attention+moe`.

A pattern is a list of words, one per layer, gone through again and again to the depth. A word is
a mixer and, after a plus, the feed-forward beside it; without a plus it is the one that the mixer
is published with. `*3` repeats a word. All sizes follow from one, the width.

A pattern makes a decoder, an encoder whose layers read both ways, or both of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import cycle, islice

from lmworks.core.errors import UserError, unknown_name
from lmworks.models.config.attention import AttentionConfig, SlidingWindow
from lmworks.models.config.base import BlockConfig
from lmworks.models.config.feed_forward import MLPConfig, MoEConfig
from lmworks.models.config.heads import HeadConfig, LMHeadConfig
from lmworks.models.config.model import EmbeddingConfig, LayerConfig, ModelConfig
from lmworks.models.config.norms import RMSNormConfig
from lmworks.models.config.positions import RoPEConfig
from lmworks.models.config.recurrent import (
    ChannelMixConfig,
    GatedLinearAttentionConfig,
    Mamba2Config,
    MambaConfig,
    ShortConvolutionConfig,
    TimeMixConfig,
)

HEAD_DIM = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the words of a pattern are built with. Sizes left at 0 follow from `hidden_size`.

    The feed-forward is 8/3 of the width (Shazeer 2020, "GLU variants improve Transformer"), and
    there are half as many key-value heads as query heads (Ainslie et al. 2023, grouped-query).
    """

    hidden_size: int
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    intermediate_size: int = 0
    context_length: int = 256
    window: int = 0
    num_experts: int = 8
    num_experts_per_tok: int = 2
    place: float = 0.5  # of the layer: 0 is the first, 1 the last

    @property
    def heads(self) -> int:
        """Query heads: one for each 64 of the width."""
        return self.num_attention_heads or max(1, self.hidden_size // HEAD_DIM)

    @property
    def key_value_heads(self) -> int:
        """Key-value heads: half as many, where that is a whole number."""
        half = self.heads // 2 if self.heads % 2 == 0 else self.heads
        return self.num_key_value_heads or half

    @property
    def inner(self) -> int:
        """Width of the feed-forward, a multiple of 32."""
        return self.intermediate_size or -(-self.hidden_size * 8 // 3 // 32) * 32

    @property
    def expert_inner(self) -> int:
        """Width of an expert: those of a token are together as wide as the feed-forward."""
        return max(16, round(self.inner / max(1, self.num_experts_per_tok) / 16) * 16)

    @property
    def window_size(self) -> int:
        """Positions of a sliding window: a quarter of the context."""
        return self.window or max(1, self.context_length // 4)


def _attention(sizes: Sizes) -> BlockConfig:
    return AttentionConfig(
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.hidden_size // sizes.heads,
        rope=RoPEConfig(theta=10000.0),
    )


def _window(sizes: Sizes) -> BlockConfig:
    full = _attention(sizes)
    assert isinstance(full, AttentionConfig)
    return dataclasses.replace(full, pattern=SlidingWindow(window=sizes.window_size))


def _no_positions(sizes: Sizes) -> BlockConfig:
    full = _attention(sizes)
    assert isinstance(full, AttentionConfig)
    return dataclasses.replace(full, rope=None)


def _mamba(sizes: Sizes) -> BlockConfig:
    """Twice the width, as published (Gu and Dao 2023, section 3.4)."""
    inner = 2 * sizes.hidden_size
    return MambaConfig(intermediate_size=inner, time_step_rank=-(-sizes.hidden_size // 16))


def _mamba2(sizes: Sizes) -> BlockConfig:
    return Mamba2Config(num_heads=2 * sizes.hidden_size // HEAD_DIM, state_size=64)


def _rwkv(sizes: Sizes) -> BlockConfig:
    return TimeMixConfig(attention_size=sizes.hidden_size, depth=sizes.place)


def _gla(sizes: Sizes) -> BlockConfig:
    """Keys of half the width, as published (Yang et al. 2023, section 4.4)."""
    heads = max(1, sizes.heads // 2)
    return GatedLinearAttentionConfig(
        num_heads=heads, key_size=sizes.hidden_size // 2, value_size=sizes.hidden_size
    )


def _convolution(sizes: Sizes) -> BlockConfig:
    return ShortConvolutionConfig()


def _mlp(sizes: Sizes) -> BlockConfig:
    return MLPConfig(intermediate_size=sizes.inner)


def _channel_mix(sizes: Sizes) -> BlockConfig:
    return ChannelMixConfig(intermediate_size=sizes.inner, depth=sizes.place)


def _moe(sizes: Sizes) -> BlockConfig:
    return MoEConfig(
        num_experts=sizes.num_experts,
        num_experts_per_tok=sizes.num_experts_per_tok,
        intermediate_size=sizes.expert_inner,
    )


# word: (its mixer, the word of the feed-forward it comes with)
MIXERS: Mapping[str, tuple[Callable[[Sizes], BlockConfig], str]] = {
    "attention": (_attention, "mlp"),
    "window": (_window, "mlp"),
    "nope": (_no_positions, "mlp"),
    "mamba": (_mamba, "none"),
    "mamba2": (_mamba2, "none"),
    "rwkv": (_rwkv, "channel_mix"),
    "gla": (_gla, "mlp"),
    "convolution": (_convolution, "mlp"),
}
FEED_FORWARDS: Mapping[str, Callable[[Sizes], BlockConfig | None]] = {
    "mlp": _mlp,
    "moe": _moe,
    "channel_mix": _channel_mix,
    "none": lambda sizes: None,
}


def words_of(pattern: str) -> list[str]:
    """The words of a pattern, repeats written out. Raises: UserError for what is no pattern."""
    words: list[str] = []
    for part in pattern.replace(" ", "").split(","):
        word, star, times = part.partition("*")
        if star and not (times.isdigit() and 1 <= int(times) <= 1024):
            raise UserError(f"pattern {pattern!r}: {part!r} repeats a word how often?")
        _check(word, pattern)
        words += [word] * (int(times) if star else 1)
    return words


def _check(word: str, pattern: str) -> None:
    mixer, plus, feed_forward = word.partition("+")
    if mixer not in MIXERS:
        raise unknown_name(f"layer in the pattern {pattern!r}", mixer, MIXERS)
    if plus and feed_forward not in FEED_FORWARDS:
        raise unknown_name(f"feed-forward in the pattern {pattern!r}", feed_forward, FEED_FORWARDS)


def layer_of(word: str, sizes: Sizes) -> LayerConfig:
    """The layer that a word stands for, its norm before each part."""
    mixer, _, feed_forward = word.partition("+")
    build, usual = MIXERS[mixer]
    return LayerConfig(
        mixer=build(sizes),
        feed_forward=FEED_FORWARDS[feed_forward or usual](sizes),
        norm=RMSNormConfig(),
    )


def places(sizes: Sizes, depth: int) -> list[Sizes]:
    """The sizes for each of `depth` layers, which know where they stand."""
    return [dataclasses.replace(sizes, place=i / max(1, depth - 1)) for i in range(depth)]


def layers_of(pattern: str, depth: int, sizes: Sizes) -> tuple[LayerConfig, ...]:
    """`depth` layers that follow the pattern. Raises: UserError for a pattern that is none."""
    if depth < 1:
        raise UserError(f"depth = {depth}: a model needs at least one layer")
    words = list(islice(cycle(words_of(pattern)), depth))
    return tuple(layer_of(word, at) for word, at in zip(words, places(sizes, depth)))


def both_ways(layers: tuple[LayerConfig, ...]) -> tuple[LayerConfig, ...]:
    """The layers, reading both ways. Raises: UserError for a mixer that carries a state forward."""
    for layer in layers:
        if not isinstance(layer.mixer, AttentionConfig):
            raise UserError(
                f"an encoder reads both ways, which {layer.mixer.kind} can't: choose layers among "
                "attention, window and nope"
            )
    return tuple(
        dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, causal=False))  # type: ignore[type-var]
        for layer in layers
    )


def encoder_config(
    pattern: str,
    *,
    depth: int,
    vocab_size: int,
    sizes: Sizes,
    head: HeadConfig | None = None,
    embedding: EmbeddingConfig | None = None,
) -> ModelConfig:
    """An encoder of `depth` layers; by default it ends as masked models do.

    Its head is then a square layer with its norm before the tied embedding and a bias (BERT).
    Raises: UserError as `decoder_config`, or for layers that read one way only.
    """
    masked = LMHeadConfig(bias=True, transform="gelu", transform_norm=RMSNormConfig())
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden_size,
        layers=both_ways(layers_of(pattern, depth, sizes)),
        embedding=embedding or EmbeddingConfig(),
        head=head or masked,
        norm=RMSNormConfig(),
        tie_word_embeddings=True,
        max_position_embeddings=sizes.context_length,
    )


def encoder_decoder_config(
    pattern: str, *, depth: int, vocab_size: int, sizes: Sizes
) -> ModelConfig:
    """An encoder and a decoder of `depth` layers each, as T5 has them, and one table of tokens.

    Raises: UserError as `encoder_config`.
    """
    decoder = decoder_config(pattern, depth=depth, vocab_size=vocab_size, sizes=sizes)
    plain = _attention(sizes)
    assert isinstance(plain, AttentionConfig)
    across = dataclasses.replace(plain, rope=None, causal=False)
    encoder = dataclasses.replace(
        decoder,
        layers=both_ways(decoder.layers),
        embedding=EmbeddingConfig(shared=True),
        head=None,
    )
    layers = tuple(dataclasses.replace(x, cross_attention=across) for x in decoder.layers)
    return dataclasses.replace(decoder, layers=layers, encoder=encoder)


def decoder_config(pattern: str, *, depth: int, vocab_size: int, sizes: Sizes) -> ModelConfig:
    """A decoder of `depth` layers that follow the pattern, its head tied to the embedding.

    Raises: UserError for a pattern that is none, or sizes that do not fit each other.
    """
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden_size,
        layers=layers_of(pattern, depth, sizes),
        norm=RMSNormConfig(),
        tie_word_embeddings=True,
        max_position_embeddings=sizes.context_length,
    )
