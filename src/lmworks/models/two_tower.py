"""Two encoders whose vectors meet in one space: CLIP and SigLIP.

Source: Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023 (SigLIP), arXiv 2303.15343.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import ModelConfig, TwoTowerConfig
from lmworks.models.model import Model

# CLIP begins with a temperature of 0.07 (section 2.5), SigLIP with 10 and -10 (section 3.2).
_FIRST_SCALE, _FIRST_SIGMOID_SCALE, _FIRST_BIAS = math.log(1 / 0.07), math.log(10.0), -10.0


class TwoTower(nn.Module):
    """Token ids and pixels -> the score of each text with each image, (texts, images) float32."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.text, self.vision = Model(config.text), Model(config.vision)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.logit_bias else None

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cosines times exp(scale), and the bias where there is one.

        Args:
            input_ids: (texts, T) int64; `attention_mask` as in `Model`.
            pixel_values: (images, C, size, size) as the makers' preprocessor gives them.
        """
        texts, images = self.embed_texts(input_ids, attention_mask), self.embed_images(pixel_values)
        scores = texts @ images.T * self.logit_scale.exp()
        return scores if self.logit_bias is None else scores + self.logit_bias

    def embed_texts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T) -> (B, E), of length one."""
        return F.normalize(self.text(input_ids, attention_mask=attention_mask), dim=-1)

    def embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, size, size) -> (B, E), of length one."""
        return F.normalize(self.vision(pixel_values), dim=-1)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights; the temperature that training begins with."""
        self.text.reset_parameters(generator)
        self.vision.reset_parameters(generator)
        sigmoid = self.logit_bias is not None
        nn.init.constant_(self.logit_scale, _FIRST_SIGMOID_SCALE if sigmoid else _FIRST_SCALE)
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, _FIRST_BIAS)


def build_model(config: ModelConfig | TwoTowerConfig) -> Model | TwoTower:
    """The module that a config tells of, with arbitrary weights."""
    return TwoTower(config) if isinstance(config, TwoTowerConfig) else Model(config)
