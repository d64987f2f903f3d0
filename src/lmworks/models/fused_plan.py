"""What a fused step needs to know of a model: addresses and settings, and what it can't do."""

from __future__ import annotations

import operator
import struct
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from lmworks.models import fused_slots as f
from lmworks.models import packed_slots as p
from lmworks.models.attention import Attention
from lmworks.models.config import (
    AttentionConfig,
    LayerConfig,
    LMHeadConfig,
    MLPConfig,
    SlidingWindow,
)
from lmworks.models.feed_forward import MLP
from lmworks.models.layer import Layer
from lmworks.models.norms import LayerNorm, RMSNorm
from lmworks.models.packed import PackedLinear
from lmworks.models.positions import Rotary, shared_rotary

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView, KVCache
    from lmworks.models.cache_step import CacheStep
    from lmworks.models.model import Model

_ACTIVATIONS = {
    "silu": f.SILU, "gelu": f.GELU, "gelu_tanh": f.GELU_TANH, "gelu_quick": f.GELU_QUICK,
    "relu": f.RELU, "relu_squared": f.RELU_SQUARED, "tanh": f.TANH,
}  # fmt: skip
_PLACEMENTS = ("pre", "sandwich", "output")


class NotFused(Exception):
    """A reason why."""


class Plan:
    """Of one model; `reason` says why not, and all else is empty then."""

    def __init__(self) -> None:
        self.reason = ""
        self.num_layers = self.num_weights = 0
        self.widest = 1  # columns of records
        self.widths: dict[int, int] = {}  # of the buffers
        self.layers = self.end_norm = self.head = np.zeros(0, dtype=np.int64)
        self.rotaries: list[Rotary | None] = []
        self.heads: list[int] = []  # of each layer: query heads to a key head
        self.has_head, self.logit_scale = False, 1.0
        # What the plan stands on: entries of modules' tables, parameters and where they lie, and
        # the tables of hooks, which have to be empty.
        self._tables: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._parts: list[Any] = []
        self._owners: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._parameters: list[torch.Tensor] = []
        self._addresses: list[int] = []
        self._hooks: list[Any] = []
        self._places: tuple[Any, list[Any], np.ndarray] = (lambda: None, [], np.zeros(0))

    def _note(self, table: dict[str, Any], name: str) -> None:
        self._tables.append(table)
        self._names.append(name)
        self._parts.append(table[name])

    def watch(self, module: nn.Module) -> None:
        """Remember what a module consists of."""
        for table in (module._modules, module._parameters):
            self._owners.append(table)
            self._sizes.append(len(table))
            for name in table:
                self._note(table, name)
        if isinstance(module, PackedLinear):
            self._note(vars(module), "matrix")
        for parameter in module._parameters.values():
            if parameter is not None:
                self._parameters.append(parameter)
                self._addresses.append(parameter.data_ptr())
        self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        for child in module._modules.values():
            if child is not None:
                self.watch(child)

    def _check(self, cache: KVCache) -> None:
        """Raises: ValueError for a cache that is not laid out as the kernel takes it to be."""
        layers = cast(list[list[int]], self.layers.tolist())
        wrong = len(cache.growing) != self.num_layers
        for held, ring, layer in zip(cache.growing, cache.rings, layers):
            shape = (layer[f.KV_HEADS], ring or f.PAGE, layer[f.HEAD_DIM])
            count = cache.pool.num_pages if ring is None else cache.num_slots
            wrong = wrong or any(
                name not in held
                or held[name].shape != (count, *shape)
                or held[name].dtype != torch.float32
                or not held[name].is_contiguous()
                for name in _HELD
            )
        if wrong:
            raise ValueError("the cache was made for another model")

    def watch_all(self) -> None:
        """Hooks that stand on every module there is."""
        everywhere = torch.nn.modules.module
        self._hooks += [everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks]

    @property
    def hooked(self) -> bool:
        """Whether anybody wants to see what a module gets or gives."""
        return any(self._hooks)

    def holds(self) -> bool:
        """Whether the model is still what the plan was made of."""
        # A few hundred look-ups for each step: in C.
        parts = map(dict.get, self._tables, self._names)
        return (
            all(map(operator.is_, parts, self._parts))
            and list(map(len, self._owners)) == self._sizes
            and list(map(torch.Tensor.data_ptr, self._parameters)) == self._addresses
            and self.hooked == (self.reason == _HOOKED)
        )

    def fits(self, view: CacheView, num_new: int) -> bool:
        """Whether this step can be fused: all rows are turned alike, and rings are not written
        over what the step needs."""
        if len(set(view.regimes(num_new))) > 1:
            return False
        if view.cache.cache_type != "f32":
            return False
        rings = [ring for ring in view.cache.rings if ring is not None]
        if not rings or view.cache.device.type != "cpu":
            return view.cache.device.type == "cpu"
        if any(ring % f.PAGE for ring in rings):
            return False
        return num_new == 1 or max(view.lengths) + num_new <= min(rings)

    def scores(self, total: int) -> int:
        """float32 numbers that a thread needs to attend to so many positions."""
        padded = total + 2 * f.PAGE
        return max(self.heads) * (padded + p.TILE)

    def places(self, step: CacheStep) -> tuple[np.ndarray, list[torch.Tensor]]:
        """Where keys, values and rotary tables lie, (layers, PLACES_SLOTS) int64; and the tables.

        The caller holds the tables meanwhile: another thread's step may need longer ones.

        Raises: ValueError for the cache of another model.
        """
        cache = step.view.cache
        cpu = torch.device("cpu")
        different = dict.fromkeys(self.rotaries)
        by_rotary = {
            r: r.tables(step.lengths[0], cpu, num_positions=step.total)
            for r in different
            if r is not None
        }
        tables = [found for pair in by_rotary.values() for found in pair]
        known, held_tables, places = self._places
        if known() is cache and all(map(operator.is_, tables, held_tables)):
            return places, tables
        places = np.zeros((self.num_layers, f.PLACES_SLOTS), dtype=np.int64)
        layers = zip(places, cache.growing, cache.rings, self.rotaries)
        self._check(cache)
        for place, held, ring, rotary in layers:
            place[f.KEYS_AT], place[f.VALUES_AT] = (held[n].data_ptr() for n in _HELD)
            place[f.RING] = ring or 0
            if rotary is not None:
                addresses = (table.data_ptr() for table in by_rotary[rotary])
                place[f.COSINES_AT], place[f.SINES_AT] = addresses
        self._places = (weakref.ref(cache), tables, places)
        return places, tables


def make_plan(model: Model) -> Plan:
    """The plan of a model as it is now."""
    plan = Plan()
    plan.watch(model)
    plan.watch_all()
    try:
        if plan.hooked:
            raise NotFused(_HOOKED)
        _Maker(plan, model).make()
    except NotFused as reason:
        plan.reason = str(reason)
    return plan


class _Maker:
    """Reads a model into a plan."""

    def __init__(self, plan: Plan, model: Model) -> None:
        self.plan, self.model = plan, model

    def make(self) -> None:
        """Raises: NotFused."""
        model, config, plan = self.model, self.model.config, self.plan
        need(config.encoder is None, "it has an encoder")
        need(model.relative_bias is None, "its attention has a bias of distances")
        need(model.embed_inputs is None, "it does not read token ids")
        need(config.hidden_size % p.TILE == 0, f"hidden size {config.hidden_size}")
        plan.num_layers = len(model.layers)
        plan.widths = {f.NORMED: config.hidden_size, f.UPDATE: config.hidden_size}
        layers = [self.layer(*pair) for pair in zip(model.layers, config.layers)]
        plan.layers = np.array(layers, dtype=np.int64)
        plan.end_norm = np.array(self.norm(model.norm, config.hidden_size), dtype=np.int64)
        head, transform = config.head, model.head
        plain = isinstance(head, LMHeadConfig) and transform is None and model.lm_head is not None
        tied = isinstance(head, LMHeadConfig) and transform is None and model.lm_head is None
        plan.has_head = plain or tied
        plan.logit_scale = head.scale if isinstance(head, LMHeadConfig) else 1.0
        if plain:
            numbers = self.matrix(model.lm_head, config.hidden_size)
            plan.head = np.array(numbers, dtype=np.int64)
        elif tied:
            numbers = self.floats(model.embed_tokens.weight, None, config.hidden_size)
            plan.head = np.array(numbers, dtype=np.int64)

    def layer(self, layer: nn.Module, config: LayerConfig) -> list[int]:
        """The numbers of one layer. Raises: NotFused."""
        mixer, mlp = getattr(layer, "mixer", None), getattr(layer, "feed_forward", None)
        need(type(layer) is Layer, f"a {_name(layer)}")
        need(type(mixer) is Attention, f"a {_name(mixer)} as its mixer")
        need(type(mlp) is MLP, f"a {_name(mlp)} feed-forward" if mlp else "no feed-forward")
        need(not hasattr(layer, "cross_attention"), "cross attention")
        need(layer.placement in _PLACEMENTS, f"norms placed {layer.placement!r}")
        assert isinstance(layer, Layer) and isinstance(mixer, Attention) and isinstance(mlp, MLP)
        hidden = self.model.config.hidden_size
        numbers = self.settings(mixer.config, mixer, mlp)
        assert isinstance(config.feed_forward, MLPConfig)
        numbers[f.ACTIVATION] = _ACTIVATIONS[config.feed_forward.activation]
        before = layer.placement in ("pre", "sandwich")
        for name in ("mixer", "feed_forward"):
            own = getattr(layer, f"{name}_norm")
            after = getattr(layer, f"{name}_output_norm", None)
            numbers += self.norm(own if before else None, hidden)
            numbers += self.norm(after if before else own, hidden)
            if name == "mixer":
                for norm in (mixer.q_norm, mixer.k_norm):
                    numbers += self.norm(norm, mixer.config.head_dim)
        wide, narrow = (numbers[n] * numbers[f.HEAD_DIM] for n in (f.HEADS, f.KV_HEADS))
        inner = numbers[f.INTERMEDIATE]
        for matrix, columns, rows in (
            (mixer.q_proj, hidden, wide), (mixer.k_proj, hidden, narrow),
            (mixer.v_proj, hidden, narrow), (mixer.o_proj, wide, hidden),
            (mlp.gate_proj, hidden, inner), (mlp.up_proj, hidden, inner),
            (mlp.down_proj, inner, hidden),
        ):  # fmt: skip
            numbers += self.matrix(matrix, columns, rows)
        assert len(numbers) == f.LAYER_SLOTS
        return numbers

    def settings(self, config: AttentionConfig, mixer: Attention, mlp: MLP) -> list[int]:
        """The first sixteen numbers of a layer."""
        need(config.causal, "attention that is not causal")
        need(not config.alibi, "attention with ALiBi")
        need(mixer.prefix is None, "a prefix of an adapter")
        pattern = config.pattern
        need(pattern is None or isinstance(pattern, SlidingWindow), "attention in a pattern")
        need(config.head_dim in f.HEAD_DIMS, f"heads of {config.head_dim}")
        whole = config.qk_norm is not None and config.qk_norm_over != "head"
        need(not whole, "a norm over all heads")
        rotary_dim = 0
        rotary = None
        if config.rope is not None:
            need(not config.rope.grows, "rotary angles that depend on the length")
            rotary_dim = config.rope.rotary_dim(config.head_dim)
            rotary = shared_rotary(config.rope, rotary_dim)
        self.plan.rotaries.append(rotary)
        inner = mlp.up_proj.out_features
        need(inner % p.TILE == 0, f"intermediate size {inner}")
        wide = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        for slot, width in (
            (f.QUERIES, wide), (f.GATHERED, wide), (f.KEYS, narrow), (f.VALUES, narrow),
            (f.GATES, inner), (f.INNER, inner),
        ):  # fmt: skip
            self.plan.widths[slot] = max(width, self.plan.widths.get(slot, 0))
        group = config.num_attention_heads // config.num_key_value_heads
        self.plan.heads.append(group)
        window = pattern.window if isinstance(pattern, SlidingWindow) else 0
        numbers = [
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, rotary_dim,
            window, _bits(config.scale or config.head_dim**-0.5), _bits(config.softcap or 0.0),
            0, inner,
        ]  # fmt: skip
        return numbers + [0] * (f.MIXER_NORM - len(numbers))

    def norm(self, norm: nn.Module | None, size: int) -> list[int]:
        """The eight numbers of a norm. Raises: NotFused."""
        if norm is None:
            return [f.NO_NORM] + [0] * (f.NORM_SLOTS - 1)
        need(type(norm) in (RMSNorm, LayerNorm), f"a {_name(norm)}")
        assert isinstance(norm, RMSNorm | LayerNorm)
        weight, bias = norm.weight, getattr(norm, "bias", None)
        for part in (weight, bias):
            need(part is None or part.shape == (size,), f"a norm that is not over {size}")
        kind = f.RMS if isinstance(norm, RMSNorm) else f.LAYER
        offset = int(isinstance(norm, RMSNorm) and norm.unit_offset)
        addresses = [_address(weight), 0 if bias is None else _address(bias)]
        return [kind, *addresses, _bits(norm.eps), offset, 0, 0, 0]

    def matrix(self, module: nn.Module | None, columns: int, rows: int = 0) -> list[int]:
        """The eight numbers of a matrix, (rows, columns); 0 for any rows. Raises: NotFused."""
        if module is None:
            return [p.NONE] + [0] * (p.MATRIX_SLOTS - 1)
        if type(module) is nn.Linear:
            return self.floats(module.weight, module.bias, columns, rows)
        need(type(module) is PackedLinear, f"a {_name(module)}")
        assert isinstance(module, PackedLinear)
        matrix = module.matrix
        need(_matches(matrix.shape, rows, columns), f"a matrix of {matrix.shape}")
        self.plan.widest = max(self.plan.widest, matrix.shape[1])
        self.plan.num_weights += matrix.shape[0] * matrix.shape[1]
        return matrix.description(self.bias(module.bias, matrix.shape[0]))

    def floats(
        self, weight: torch.Tensor, bias: torch.Tensor | None, columns: int, rows: int = 0
    ) -> list[int]:
        """Of a float32 matrix."""
        shape = tuple(weight.shape)
        need(_matches(shape, rows, columns), f"a matrix of {shape}")
        rows = shape[0]
        need(columns % p.TILE == 0 and rows >= 4, f"a matrix of {rows} x {columns}")
        self.plan.num_weights += rows * columns
        bias_at = self.bias(bias, rows)
        return [p.FLOAT, rows, columns, _address(weight), 0, 0, bias_at, 0]

    def bias(self, bias: torch.Tensor | None, rows: int) -> int:
        """Where a bias lies; 0 for none."""
        if bias is None:
            return 0
        need(rows % p.TILE == 0 and bias.shape == (rows,), f"a bias of {tuple(bias.shape)}")
        return _address(bias)


def need(given: bool, otherwise: str) -> None:
    """Raises: NotFused unless a condition is given."""
    if not given:
        raise NotFused(otherwise)


def _matches(shape: tuple[int, ...], rows: int, columns: int) -> bool:
    # The kernel takes buffers to be as wide as the config says; what fits elsewhere, modules tell.
    return len(shape) == 2 and shape[1] == columns and rows in (0, shape[0])


def _address(tensor: torch.Tensor) -> int:
    need(tensor.device.type == "cpu", f"weights on {tensor.device.type}")
    need(tensor.dtype == torch.float32, f"weights of {tensor.dtype}")
    need(type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_contiguous(), "weights apart")
    return tensor.data_ptr()


def _bits(number: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def _name(module: Any) -> str:
    return type(module).__name__


_HELD = ("keys", "values")
_HOOKED = "a hook stands on a module"
