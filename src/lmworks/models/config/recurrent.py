"""Configs of the recurrent blocks: what they keep of a sequence does not grow with its length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lmworks.core.errors import UserError
from lmworks.models.config.base import BlockConfig, Kept, check_count, check_positive

if TYPE_CHECKING:
    from lmworks.models.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MambaConfig(BlockConfig):
    """A selective state space: `state_size` numbers for each of `intermediate_size` channels.

    Attributes:
        conv_kernel: positions that the short convolution before it sees.
        time_step_rank: size of what the step of each channel is made from.
        bias: whether the projections in and out have one.
        conv_bias: whether the convolution has one.

    Source: Gu and Dao 2023, arXiv 2312.00752.
    """

    kind: ClassVar[str] = "mamba"
    reads_apart: ClassVar[bool] = True
    intermediate_size: int
    state_size: int = 16
    conv_kernel: int = 4
    time_step_rank: int
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        check_count(self, "intermediate_size", "state_size", "conv_kernel", "time_step_rank")

    def kept(self, model: ModelConfig) -> Kept:
        """The states, and the positions that the convolution looks back at."""
        before = (self.intermediate_size, self.conv_kernel - 1)
        return Kept(fixed={"conv": before, "ssm": (self.intermediate_size, self.state_size)})

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Of each number of the state: its decay, what is written, what is read."""
        return 9.0 * self.intermediate_size * self.state_size


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(BlockConfig):
    """A selective state space whose decay is one number for a head of `head_dim` channels.

    Attributes:
        state_size: numbers of state for each channel.
        num_groups: of heads that share what is written and read (B and C), and of the last norm.
        norm_eps: of the gated norm before the projection out.
        least_step, largest_step: limits of the time step; None for no upper one.
        conv_kernel, bias, conv_bias: as in `MambaConfig`.

    Source: Dao and Gu 2024, arXiv 2405.21060.
    """

    kind: ClassVar[str] = "mamba2"
    reads_apart: ClassVar[bool] = True
    num_heads: int
    head_dim: int = 64
    state_size: int = 128
    num_groups: int = 1
    conv_kernel: int = 4
    bias: bool = False
    conv_bias: bool = True
    norm_eps: float = 1e-5
    least_step: float = 0.0
    largest_step: float | None = None

    def __post_init__(self) -> None:
        check_count(self, "num_heads", "head_dim", "state_size", "num_groups", "conv_kernel")
        check_positive(self, "norm_eps", *(["largest_step"] if self.largest_step else []))
        if self.num_heads % self.num_groups:
            raise UserError(
                f"mamba2: num_heads {self.num_heads} is not a multiple of num_groups "
                f"{self.num_groups}"
            )
        largest = math.inf if self.largest_step is None else self.largest_step
        if not 0 <= self.least_step < largest:
            raise UserError(f"mamba2: steps from {self.least_step} to {largest} are no range")

    @property
    def intermediate_size(self) -> int:
        """Channels of all heads."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """What goes through the convolution: channels, B and C."""
        return self.intermediate_size + 2 * self.num_groups * self.state_size

    def kept(self, model: ModelConfig) -> Kept:
        """As in `MambaConfig`."""
        state = (self.num_heads, self.state_size, self.head_dim)
        return Kept(fixed={"conv": (self.conv_size, self.conv_kernel - 1), "ssm": state})

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Of each number of the state: the decay, what is written, what is read."""
        return 5.0 * self.intermediate_size * self.state_size


@dataclass(frozen=True, kw_only=True)
class TimeMixConfig(BlockConfig):
    """RWKV-4's mixer: an average of the past, each channel with a decay of its own.

    Attributes:
        attention_size: channels that are averaged.
        depth: where the layer stands, from 0 (the first) to 1 (the last); fresh weights depend
            on it.

    Source: Peng et al. 2023, arXiv 2305.13048.
    """

    kind: ClassVar[str] = "rwkv_time_mix"
    reads_apart: ClassVar[bool] = True
    attention_size: int
    depth: float = 0.5

    def __post_init__(self) -> None:
        check_count(self, "attention_size")
        _check_depth(self.kind, self.depth)

    def kept(self, model: ModelConfig) -> Kept:
        """The last position, and the sums of the average."""
        return Kept(fixed={"time_shift": (model.hidden_size,), "wkv": (3, self.attention_size)})

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Two running sums of each channel, kept from overflowing."""
        return 20.0 * self.attention_size


@dataclass(frozen=True, kw_only=True)
class ChannelMixConfig(BlockConfig):
    """RWKV-4's feed-forward, which sees the position before as well; `depth` as in its mixer."""

    kind: ClassVar[str] = "rwkv_channel_mix"
    reads_apart: ClassVar[bool] = True
    intermediate_size: int
    depth: float = 0.5

    def __post_init__(self) -> None:
        check_count(self, "intermediate_size")
        _check_depth(self.kind, self.depth)

    def kept(self, model: ModelConfig) -> Kept:
        """The last position."""
        return Kept(fixed={"channel_shift": (model.hidden_size,)})


def _check_depth(kind: str, depth: float) -> None:
    if not isinstance(depth, int | float) or not 0 <= depth <= 1:
        raise UserError(f"{kind}: depth must be from 0 to 1, not {depth!r}")


@dataclass(frozen=True, kw_only=True)
class GatedLinearAttentionConfig(BlockConfig):
    """Linear attention whose memory forgets, by a gate for each number of a key.

    Attributes:
        key_size, value_size: of all heads together.
        gate_rank: size of what the gates are made from.
        gate_divisor: of the gates' logarithm; the larger, the longer the memory.
        norm_eps: of the norm of each head before the projection out.

    Source: Yang et al. 2023, arXiv 2312.06635.
    """

    kind: ClassVar[str] = "gated_linear_attention"
    reads_apart: ClassVar[bool] = True
    num_heads: int
    key_size: int
    value_size: int
    gate_rank: int = 16
    gate_divisor: float = 16.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_count(self, "num_heads", "key_size", "value_size", "gate_rank")
        check_positive(self, "gate_divisor", "norm_eps")
        for name in ("key_size", "value_size"):
            if getattr(self, name) % self.num_heads:
                raise UserError(
                    f"{self.kind}: {name} {getattr(self, name)} is not a multiple of num_heads "
                    f"{self.num_heads}"
                )

    def kept(self, model: ModelConfig) -> Kept:
        """The memory of each head."""
        sizes = (self.key_size // self.num_heads, self.value_size // self.num_heads)
        return Kept(fixed={"memory": (self.num_heads, *sizes)})

    def sequence_flops(self, model: ModelConfig, context_length: int) -> float:
        """Of each number of the memory: the decay, what is written, what is read."""
        return 5.0 * self.key_size * self.value_size / self.num_heads


@dataclass(frozen=True, kw_only=True)
class ShortConvolutionConfig(BlockConfig):
    """A gated convolution over the last `conv_kernel` positions, the mixer of LFM2 and of Hyena.

    `bias` puts one on both projections and on the convolution.
    """

    kind: ClassVar[str] = "short_convolution"
    reads_apart: ClassVar[bool] = True
    conv_kernel: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        check_count(self, "conv_kernel")

    def kept(self, model: ModelConfig) -> Kept:
        """The positions that the convolution looks back at."""
        return Kept(fixed={"conv": (model.hidden_size, self.conv_kernel - 1)})
