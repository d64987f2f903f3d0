"""Reading the values of a foreign config with their types checked, one clear line per fault."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmworks.core.errors import UserError

_MISSING: Any = object()
_LARGEST = 3.4e38  # of a float32


class Values:
    """The values of a `config.json`, or of GGUF metadata under a prefix.

    A default stands for a key that is missing or null. Raises: UserError, in every getter, for a
    key that is missing without a default and for a value of another type.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values, self._prefix = values, prefix

    def __contains__(self, name: str) -> bool:
        return self._values.get(self._prefix + name) is not None

    def raw(self, name: str, default: Any = _MISSING) -> Any:
        """Whatever is there."""
        value = self._values.get(self._prefix + name)
        if value is not None:
            return value
        if default is _MISSING:
            raise UserError(f"{self._prefix}{name} is missing")
        return default

    def count(self, name: str, default: Any = _MISSING) -> int:
        """A whole number."""
        value = self.raw(name, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise self._fault(name, value, "a whole number")
        return value  # type: ignore[no-any-return]

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number that a float32 holds; None only if that is the default."""
        value = self.raw(name, default)
        if value is default:
            return value  # type: ignore[no-any-return]
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not abs(value) < _LARGEST:
            raise self._fault(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise self._fault(name, value, "true or false")
        return value

    def text(self, name: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.raw(name, default)
        if value is not default and not isinstance(value, str):
            raise self._fault(name, value, "a text")
        return value  # type: ignore[no-any-return]

    def items(self, name: str, default: Any = _MISSING) -> list[Any]:
        """A list."""
        value = self.raw(name, default)
        if value is not default and not isinstance(value, list | tuple):
            raise self._fault(name, value, "a list")
        return value  # type: ignore[no-any-return]

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self.items(name)
        for value in values:
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not abs(value) < _LARGEST:
                raise self._fault(name, value, "a list of numbers")
        return tuple(map(float, values))

    def only(self, name: str, allowed: Collection[Any], default: Any = _MISSING) -> Any:
        """A value that is one of `allowed`; others are not supported."""
        value = self.raw(name, next(iter(allowed)) if default is _MISSING else default)
        if not any(type(value) is type(choice) and value == choice for choice in allowed):
            known = ", ".join(map(repr, allowed))
            raise UserError(f"{self._prefix}{name} {value!r} is not supported: known: {known}")
        return value

    def _fault(self, name: str, value: Any, wanted: str) -> UserError:
        return UserError(f"{self._prefix}{name} must be {wanted}, not {value!r}")


# What transformers calls an activation -> what we call it.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu_squared",
    "tanh": "tanh",
}
# ... and back; each of these is read as the one it came from.
HF_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "gelu_quick": "quick_gelu",
    "relu": "relu",
    "relu_squared": "relu2",
    "tanh": "tanh",
}


def activation(values: Values, name: str, default: str) -> str:
    """Our name of the activation that `values` names. Raises: UserError for an unknown one."""
    return ACTIVATIONS[values.only(name, ACTIVATIONS, default)]


def head_dim(hidden_size: int, num_attention_heads: int) -> int:
    """The size of a head where it is not given. Raises: UserError if it is no whole number."""
    if num_attention_heads < 1 or hidden_size % num_attention_heads:
        raise UserError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads "
            f"{num_attention_heads}, and head_dim is not given"
        )
    return hidden_size // num_attention_heads


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
