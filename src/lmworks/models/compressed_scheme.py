"""How a module's weights and inputs are coded in files of the compressed-tensors format.

A `quantization_config` in config.json names groups of modules and how each is coded; the same
words are read and written here. What we can't honour is refused by name: a scheme that is half
honoured gives numbers that nobody measured.

The format: github.com/vllm-project/compressed-tensors, which vLLM and transformers load.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.activation_rounding import InputRounding

METHOD = "compressed-tensors"
_INERT = ("kv_cache_scheme", "transform_config", "sparsity_config", "moe_sparsity_config")
_UNSET: tuple[Any, ...] = (None, {}, [], False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """Of the weights of a linear module, (rows, columns), and of what it is given.

    Attributes:
        num_bits: of a code, 2 to 8.
        kind: "int", or "float" for the 8-bit type e4m3.
        group_size: columns that share a scale; None: all of a row; 0: all of the matrix.
        symmetric: whether code 0 stands for 0; else each scale has a zero point.
        inputs: how the inputs are rounded: "int8", "fp8", or "".
        dynamic: whether each token has a scale of its own; else the module has one.
    """

    num_bits: int
    kind: str = "int"
    group_size: int | None = None
    symmetric: bool = True
    inputs: str = ""
    dynamic: bool = True

    @property
    def lowest(self) -> int:
        """The least code of an int."""
        return -(1 << (self.num_bits - 1))

    @property
    def highest(self) -> float:
        """The largest code: of the type e4m3 the largest number."""
        return 448.0 if self.kind == "float" else float((1 << (self.num_bits - 1)) - 1)

    @property
    def packed(self) -> bool:
        """Whether codes share words of 32 bits in the file."""
        return self.kind == "int" and not self.inputs

    @property
    def format(self) -> str:
        """The name of the layout."""
        if self.packed:
            return "pack-quantized"
        if self.inputs:
            return f"{self.kind}-quantized"
        return "naive-quantized"

    def rounding(self, scale: float | None = None) -> InputRounding | None:
        """What is done to the inputs, given the module's static scale, if it has one."""
        return InputRounding(kind=self.inputs, scale=scale) if self.inputs else None

    def to_config(self) -> dict[str, Any]:
        """`config_groups` entry of all linear modules."""
        weights = _arguments(self.num_bits, self.kind, symmetric=self.symmetric)
        if self.group_size is None:
            weights["strategy"] = "channel"
        elif self.group_size:
            weights |= {"strategy": "group", "group_size": self.group_size}
        inputs = None
        if self.inputs:
            kind = "float" if self.inputs == "fp8" else "int"
            inputs = _arguments(8, kind, symmetric=True)
            inputs |= {"strategy": "token" if self.dynamic else "tensor", "dynamic": self.dynamic}
        return {
            "targets": ["Linear"], "weights": weights, "input_activations": inputs,
            "output_activations": None, "format": self.format,
        }  # fmt: skip


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """What config.json says of a model whose linear modules but `ignore` have this scheme."""
    return {
        "quant_method": METHOD,
        "format": scheme.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme.to_config()},
        "ignore": sorted(ignore),
    }


class Schemes:
    """Which module has which scheme, as a `quantization_config` says.

    Raises: UserError for another method, or settings that are not honoured here.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        method = values.get("quant_method")
        if method != METHOD:
            raise UserError(
                f"quantization_config: weights quantised by {method!r} are not supported (known: "
                f"{METHOD}): load the original"
            )
        for name in _INERT:
            if values.get(name) not in _UNSET:
                raise UserError(f"quantization_config: {name} is not supported")
        groups = values.get("config_groups")
        if not isinstance(groups, Mapping) or not all(
            isinstance(g, Mapping) for g in groups.values()
        ):
            raise UserError("quantization_config: config_groups is no table of schemes")
        self._groups = [(_targets(g), _scheme(g)) for g in groups.values()]

    def of(self, path: str) -> Scheme:
        """The scheme of a coded module. Raises: UserError if no group speaks of it."""
        named = [s for targets, s in self._groups if any(_names(t, path) for t in targets)]
        plain = [s for targets, s in self._groups if "Linear" in targets]
        if found := [*named, *plain]:
            return found[0]
        raise UserError(f"quantization_config: no scheme speaks of {path}")


def _targets(group: Mapping[str, Any]) -> list[str]:
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise UserError("quantization_config: targets is no list of names")
    return targets


def _names(target: str, path: str) -> bool:
    if not target.startswith("re:"):
        return target == path
    try:
        return re.match(target[3:], path) is not None
    except re.error as error:
        raise UserError(f"quantization_config: target {target!r} is no expression") from error


def _arguments(num_bits: int, kind: str, *, symmetric: bool) -> dict[str, Any]:
    return {
        "num_bits": num_bits, "type": kind, "symmetric": symmetric, "strategy": "tensor",
        "group_size": None, "dynamic": False, "observer": None,
    }  # fmt: skip


def _scheme(group: Mapping[str, Any]) -> Scheme:
    """Raises: UserError for what is not honoured."""
    if group.get("output_activations") is not None:
        raise UserError("quantization_config: output_activations are not supported")
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise UserError("quantization_config: a group without weights is not supported")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    known = (kind == "int" and bits in range(2, 9)) or (kind == "float" and bits == 8)
    if not isinstance(bits, int) or not known or strategy not in ("tensor", "channel", "group"):
        raise UserError(
            f"quantization_config: weights of {bits} bits, {kind}, per {strategy} are not supported"
        )
    if strategy == "group" and not (isinstance(size, int) and size > 0):
        raise UserError(f"quantization_config: a group of {size!r} columns")
    inputs, dynamic = _inputs(group.get("input_activations"))
    return Scheme(
        num_bits=bits, kind=str(kind), symmetric=bool(weights.get("symmetric", True)),
        group_size={"tensor": 0, "channel": None}.get(strategy, size), inputs=inputs,
        dynamic=dynamic,
    )  # fmt: skip


def _inputs(given: Any) -> tuple[str, bool]:
    if given is None:
        return "", True
    if not isinstance(given, Mapping):
        raise UserError("quantization_config: input_activations is no table of settings")
    bits, kind = given.get("num_bits", 8), given.get("type", "int")
    dynamic, strategy = given.get("dynamic", False), given.get("strategy")
    fits = strategy == "token" if dynamic is True else strategy in (None, "tensor")
    if bits != 8 or kind not in ("int", "float") or not fits or not given.get("symmetric", True):
        raise UserError(
            f"quantization_config: inputs of {bits} bits, {kind}, per {strategy}, "
            f"{'dynamic' if dynamic else 'static'} are not supported"
        )
    return ("fp8" if kind == "float" else "int8"), dynamic is True
