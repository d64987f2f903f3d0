"""RWKV-4: time mix, which averages the past, and channel mix, its feed-forward.

Both see each position mixed with the one before it. transformers halves the states every few
layers in evaluation, against overflow in half precision; in float32 nothing overflows, so nothing
is halved here, and weights are those of training.

Source: Peng et al. 2023, arXiv 2305.13048, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import ChannelMixConfig, ModelConfig, TimeMixConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.wkv import wkv


class TimeMix(nn.Module):
    """out(sigmoid(r) * wkv(k, v)), the mixer."""

    vectors = ("time_mix_key", "time_mix_value", "time_mix_receptance")

    def __init__(self, config: TimeMixConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden, size = model.hidden_size, config.attention_size
        self.config, self.num_layers = config, model.num_hidden_layers
        self.time_decay = nn.Parameter(torch.empty(size))
        self.time_first = nn.Parameter(torch.empty(size))
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_value = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key = nn.Linear(hidden, size, bias=False)
        self.value = nn.Linear(hidden, size, bias=False)
        self.receptance = nn.Linear(hidden, size, bias=False)
        self.output = nn.Linear(size, hidden, bias=False)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        cache, before = context.cache, shifted(x, context, "time_shift")
        key = self.key(torch.lerp(before, x, self.time_mix_key))
        value = self.value(torch.lerp(before, x, self.time_mix_value))
        receptance = self.receptance(torch.lerp(before, x, self.time_mix_receptance))
        state = None if cache is None else cache.state("wkv")
        y, state = wkv(key, value, -torch.exp(self.time_decay), self.time_first, state=state)
        if cache is not None:
            cache.set_state("wkv", state)
        context.note("mixer.wkv", y)
        out: torch.Tensor = self.output(torch.sigmoid(receptance) * y)
        return out

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Decays from slow to fast over the channels; normal matrices. Source: appendix E."""
        for projection in (self.key, self.value, self.receptance):
            init_linear(projection, generator, INIT_STD)
        init_linear(self.output, generator, output_std)
        size, depth = self.config.attention_size, self.config.depth
        place = torch.arange(size) / max(size - 1, 1)
        self.time_decay.copy_(-5 + 8 * place ** (0.7 + 1.3 * depth))
        zigzag = (torch.arange(1, size + 1) % 3 - 1) * 0.5
        self.time_first.copy_(torch.tensor(0.3).log() + zigzag)
        mix = channel_places(self.time_mix_key)
        power = _to_almost_zero(depth, self.num_layers)
        self.time_mix_key.copy_(mix**power)
        self.time_mix_value.copy_(mix**power + 0.3 * depth)
        self.time_mix_receptance.copy_(mix ** (0.5 * power))


class ChannelMix(nn.Module):
    """sigmoid(r) * value(relu(k)^2), the feed-forward."""

    vectors = ("time_mix_key", "time_mix_receptance")

    def __init__(self, config: ChannelMixConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden, inner = model.hidden_size, config.intermediate_size
        self.config, self.num_layers = config, model.num_hidden_layers
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key = nn.Linear(hidden, inner, bias=False)
        self.receptance = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        before = shifted(x, context, "channel_shift")
        key = self.key(torch.lerp(before, x, self.time_mix_key))
        receptance = self.receptance(torch.lerp(before, x, self.time_mix_receptance))
        out: torch.Tensor = torch.sigmoid(receptance) * self.value(F.relu(key).square())
        return out

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """As in `TimeMix`."""
        init_linear(self.key, generator, INIT_STD)
        init_linear(self.receptance, generator, INIT_STD)
        init_linear(self.value, generator, output_std)
        power = _to_almost_zero(self.config.depth, self.num_layers)
        for mix in (self.time_mix_key, self.time_mix_receptance):
            mix.copy_(channel_places(mix) ** power)


def shifted(x: torch.Tensor, context: Context, name: str) -> torch.Tensor:
    """(B, T, H): the position before each one, zeros before the first; kept as state `name`."""
    cache = context.cache
    first = torch.zeros_like(x[:, :1]) if cache is None else cache.state(name)[:, None]
    if cache is not None:
        cache.set_state(name, x[:, -1])
    return torch.cat([first, x[:, :-1]], dim=1)


def channel_places(like: torch.Tensor) -> torch.Tensor:
    """From 0 to almost 1 over the last dimension."""
    size = like.shape[-1]
    return (torch.arange(size) / size).expand_as(like)


def _to_almost_zero(depth: float, num_layers: int) -> float:
    """1 in the first layer, 1 / layers in the last."""
    return 1 - depth * (num_layers - 1) / num_layers
