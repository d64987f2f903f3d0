"""Configs of what a model reads in place of token ids: images, sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import check_choice, check_count
from lmworks.models.config.feed_forward import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class PatchEmbeddingConfig:
    """A square image (C, size, size) cut into square patches, each projected to one position.

    `class_token` puts a learned position before them; `bias` is the projection's.
    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1.
    """

    kind: ClassVar[str] = "patches"
    image_size: int
    patch_size: int
    num_channels: int = 3
    class_token: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        check_count(self, "image_size", "patch_size", "num_channels")
        if self.patch_size > self.image_size:
            raise UserError(
                f"patches: patch_size {self.patch_size} is above image_size {self.image_size}"
            )

    @property
    def num_positions(self) -> int:
        """Patches, and the class token; what is left over at the edges belongs to none."""
        return (self.image_size // self.patch_size) ** 2 + self.class_token


@dataclass(frozen=True, kw_only=True)
class AudioEmbeddingConfig:
    """A log-mel spectrogram (mels, frames) through two convolutions; two frames a position.

    Source: Radford et al. 2022 (Whisper), arXiv 2212.04356, section 2.2.
    """

    kind: ClassVar[str] = "audio"
    num_mel_bins: int
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_count(self, "num_mel_bins")
        check_choice(self, "activation", ACTIVATIONS)


InputConfig = PatchEmbeddingConfig | AudioEmbeddingConfig
