"""What stands in place of a table of tokens: patches of images, convolutions over sound.

Left out: what comes before (an image's size, mean and spread, a sound's spectrogram). Models take
what their makers' preprocessors give.
"""

from __future__ import annotations

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import AudioEmbeddingConfig, ModelConfig, PatchEmbeddingConfig
from lmworks.models.feed_forward import activation
from lmworks.models.initialization import INIT_STD


class _Conv1d(nn.Conv1d):
    vectors = ("weight",)  # see training/optimizers: what reads the input is no hidden matrix


class _Conv2d(nn.Conv2d):
    vectors = ("weight",)


class PatchEmbedding(nn.Module):
    """Images (B, C, size, size) -> (B, patches + class token, H)."""

    def __init__(self, config: PatchEmbeddingConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, patch = model.embedding_size, config.patch_size
        self.projection = _Conv2d(
            config.num_channels, hidden, kernel_size=patch, stride=patch, bias=config.bias
        )
        self.class_token = nn.Parameter(torch.zeros(hidden)) if config.class_token else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class. Raises: UserError for images of another size."""
        size = self.config.image_size
        wanted = (self.config.num_channels, size, size)
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != wanted:
            raise UserError(
                f"images of shape {tuple(pixels.shape)} do not fit: the model reads "
                f"(any number, {', '.join(map(str, wanted))})"
            )
        x = self.projection(pixels).flatten(2).transpose(1, 2)
        if self.class_token is None:
            return x
        return torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, a zero bias."""
        _reset(self.projection, generator)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=INIT_STD, generator=generator)


class AudioEmbedding(nn.Module):
    """Log-mel spectrograms (B, mels, frames) -> (B, (frames + 1) // 2, H)."""

    def __init__(self, config: AudioEmbeddingConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = model.embedding_size
        self.conv1 = _Conv1d(config.num_mel_bins, hidden, kernel_size=3, padding=1)
        self.conv2 = _Conv1d(hidden, hidden, kernel_size=3, stride=2, padding=1)
        self.activation = activation(config.activation)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """See the class. Raises: UserError for another number of mels."""
        if features.dim() != 3 or features.shape[1] != self.config.num_mel_bins:
            raise UserError(
                f"features of shape {tuple(features.shape)} do not fit: the model reads "
                f"(any number, {self.config.num_mel_bins} mels, frames)"
            )
        x = self.activation(self.conv2(self.activation(self.conv1(features))))
        return x.transpose(1, 2)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Normal weights, zero biases."""
        _reset(self.conv1, generator)
        _reset(self.conv2, generator)


def _reset(convolution: nn.Conv1d | nn.Conv2d, generator: torch.Generator | None) -> None:
    nn.init.normal_(convolution.weight, std=INIT_STD, generator=generator)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
