"""What a model is made of, as nested frozen dataclasses that load without torch.

Every slot (a layer's `mixer` and `feed_forward`, the rotary `scaling`, the `norm`, the `head`)
holds a config object, and its type chooses the block: another mixer is another config type in the
same slot, never a flag. `kind` is the block's name in `lmworks.models.base.BLOCKS`.

A config that contradicts itself raises `UserError` when it is made, so a `ModelConfig` that exists
can be built. Left out: dropout, which no checkpoint needs to answer as its makers' code does.
"""

from lmworks.models.config.attention import (
    AttentionConfig,
    BigBirdPattern,
    LongformerPattern,
    SlidingWindow,
)
from lmworks.models.config.base import BlockConfig, Kept
from lmworks.models.config.feed_forward import MLPConfig, MoEConfig, RouterConfig
from lmworks.models.config.graph import GraphAttentionConfig
from lmworks.models.config.heads import (
    AttentionPooling,
    ClassHeadConfig,
    EmbeddingHeadConfig,
    FirstPooling,
    HeadConfig,
    LastPooling,
    LMHeadConfig,
    MeanPooling,
    PooledHeadConfig,
    Pooling,
    TokenPooling,
    ValueHeadConfig,
)
from lmworks.models.config.inputs import AudioEmbeddingConfig, InputConfig, PatchEmbeddingConfig
from lmworks.models.config.latent_attention import LatentAttentionConfig
from lmworks.models.config.model import EmbeddingConfig, LayerConfig, ModelConfig, repeated
from lmworks.models.config.norms import LayerNormConfig, NormConfig, RMSNormConfig
from lmworks.models.config.positions import (
    DynamicNTKScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NativeWindow,
    NTKScaling,
    RelativePositions,
    RoPEConfig,
    RoPEScaling,
    SinusoidalPositions,
    YaRNScaling,
)
from lmworks.models.config.recurrent import (
    ChannelMixConfig,
    GatedLinearAttentionConfig,
    Mamba2Config,
    MambaConfig,
    ShortConvolutionConfig,
    TimeMixConfig,
)
from lmworks.models.config.two_tower import AnyConfig, TwoTowerConfig

__all__ = [
    "AnyConfig",
    "AttentionConfig",
    "AttentionPooling",
    "AudioEmbeddingConfig",
    "BigBirdPattern",
    "BlockConfig",
    "ChannelMixConfig",
    "ClassHeadConfig",
    "DynamicNTKScaling",
    "EmbeddingConfig",
    "EmbeddingHeadConfig",
    "FirstPooling",
    "GatedLinearAttentionConfig",
    "GraphAttentionConfig",
    "HeadConfig",
    "InputConfig",
    "Kept",
    "LMHeadConfig",
    "LastPooling",
    "LatentAttentionConfig",
    "LayerConfig",
    "LayerNormConfig",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "LongformerPattern",
    "MLPConfig",
    "Mamba2Config",
    "MambaConfig",
    "MeanPooling",
    "MoEConfig",
    "ModelConfig",
    "NTKScaling",
    "NativeWindow",
    "NormConfig",
    "PatchEmbeddingConfig",
    "PooledHeadConfig",
    "Pooling",
    "RMSNormConfig",
    "RelativePositions",
    "RoPEConfig",
    "RoPEScaling",
    "RouterConfig",
    "ShortConvolutionConfig",
    "SinusoidalPositions",
    "SlidingWindow",
    "TimeMixConfig",
    "TokenPooling",
    "TwoTowerConfig",
    "ValueHeadConfig",
    "YaRNScaling",
    "repeated",
]
