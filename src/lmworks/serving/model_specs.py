"""Which models a server has: from references on a command line, or from a `models.yaml`.

memory_budget: 4GB
keep_alive: 10m
threads: 4
models:
  chat:
    model: smollm2-135m
    pinned: true
    max_batch: 16
    system: You answer in one sentence.
    sampling: {temperature: 0.2}
    adapters:
      legal: runs/legal-adapter
  minilm: minilm-l6
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError, nearest
from lmworks.core.quantities import parse_bytes, parse_seconds
from lmworks.models.adapters.base import is_adapter

_WORDS = ("models", "memory_budget", "keep_alive", "threads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model that a server has, and how it is run.

    Attributes:
        model: the reference; of an adapter on a shared base its folder.
        base: the model under an adapter that is served alone.
        max_batch: answers at the same time. max_positions: prompt and answer together, in tokens.
        cache_tokens, prefix_tokens, turn_tokens: see `inference.engine.Engine`.
        speculate: how tokens are guessed: lookup, draft=REF, early-exit=K; "": not at all.
        cache_type: how keys and values are held: f32, f16, q8_0; see `models.cache_types`.
        pinned: never unloaded to make room.
        keep_alive: idle time after which it is unloaded, such as 5m; "" takes the server's.
        system: the system prompt of conversations that bring none.
        sampling: settings of requests that name none.
        pooling: of vectors: auto, mean, first or last.
        adapters: folders of adapters on it, by name; they share its weights.
    """

    model: str
    base: str = ""
    max_batch: int = 8
    max_positions: int | None = None
    cache_tokens: int | None = None
    prefix_tokens: int | None = None
    turn_tokens: int | None = None
    speculate: str = ""
    cache_type: str = "f32"
    pinned: bool = False
    keep_alive: str = ""
    system: str = ""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    pooling: str = "auto"
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        from lmworks.inference.sampling import Sampling

        if not self.model:
            raise UserError("a model needs a reference")
        if self.pooling not in ("auto", "mean", "first", "last"):
            raise UserError(f"pooling {self.pooling!r}: choose from auto, mean, first, last")
        if self.cache_type not in ("f32", "f16", "q8_0"):
            raise UserError(f"cache_type {self.cache_type!r}: choose from f32, f16, q8_0")
        Sampling.of(self.sampling)
        if self.keep_alive:
            parse_seconds(self.keep_alive, "keep_alive")

    @property
    def keep_alive_s(self) -> float | None:
        """`keep_alive` in seconds, if it is given."""
        return parse_seconds(self.keep_alive, "keep_alive") if self.keep_alive else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """All models of a server.

    Attributes:
        memory_budget: bytes for weights, adapters and caches together; None: no limit.
        keep_alive_s: see `ModelSpec.keep_alive`; None: for ever.
        threads: that models compute with; 0: what torch takes.
    """

    models: dict[str, ModelSpec]
    memory_budget: int | None = None
    keep_alive_s: float | None = None
    threads: int = 0


def read_pool_spec(path: str | Path) -> PoolSpec:
    """The models of a YAML file; relative paths in it are seen from its folder.

    Raises: UserError naming the file, the model, and the nearest known word.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: name a YAML file with `models:`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise UserError(f"{path} is no YAML: {place}") from error
    if not isinstance(values, Mapping) or not isinstance(values.get("models"), Mapping):
        raise UserError(f"{path}: needs `models:` with a name and a reference for each")
    for word in values:
        if word not in _WORDS:
            close = nearest(str(word), _WORDS)
            hint = f"did you mean {close!r}? " if close else ""
            raise UserError(f"{path}: unknown word {word!r}: {hint}known: {', '.join(_WORDS)}")
    models = {}
    for name, given in values["models"].items():
        where = f"{path}, model {name}"
        try:
            values_of = {"model": given} if isinstance(given, str) else given
            spec = _from_folder(from_mapping(ModelSpec, values_of, where=where), path.parent)
            models[check_name(str(name))] = spec
        except UserError as error:
            raise UserError(str(error) if where in str(error) else f"{where}: {error}") from None
    budget, keep_alive = values.get("memory_budget"), values.get("keep_alive")
    threads = values.get("threads", 0)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 0:
        raise UserError(f"{path}: threads: a number from 0 (what torch takes) up, not {threads!r}")
    return PoolSpec(
        models=models,
        memory_budget=None
        if budget is None
        else parse_bytes(str(budget), f"{path}: memory_budget"),
        keep_alive_s=None
        if keep_alive is None
        else parse_seconds(str(keep_alive), f"{path}: keep_alive"),
        threads=threads,
    )


def _from_folder(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Paths that are there as seen from the file's folder are meant so."""

    def seen(reference: str) -> str:
        beside = folder / reference
        return str(beside) if reference and beside.exists() else reference

    return dataclasses.replace(
        spec,
        model=seen(spec.model),
        base=seen(spec.base),
        adapters={check_name(name): seen(path) for name, path in spec.adapters.items()},
    )


def specs_of_references(
    references: Iterable[tuple[str, str]], *, base: str = "", **settings: Any
) -> dict[str, ModelSpec]:
    """Models given as (name, reference).

    Adapters whose base is one of the others, by its name or reference, share that; so do several
    adapters of one base, which is then served as well. An adapter alone on its base is served as
    one model.

    Args:
        base: the model under the adapters, instead of the one that each names.
        settings: of all of them, see `ModelSpec`.
    Raises: UserError for two of one name.
    """
    found: dict[str, ModelSpec] = {}
    adapters: dict[str, list[tuple[str, str]]] = {}
    for name, reference in references:
        if name in found or any(name == other for held in adapters.values() for other, _ in held):
            raise UserError(f"two models are called {name!r}: give one as other-name={reference}")
        check_name(name)
        if is_adapter(Path(reference)):
            adapters.setdefault(_base_of(reference, base), []).append((name, reference))
        else:
            found[name] = ModelSpec(model=reference, **settings)
    for under, several in adapters.items():
        shared = next((n for n, spec in found.items() if under in (n, spec.model)), "")
        if not shared and len(several) == 1:
            name, reference = several[0]
            found[name] = ModelSpec(model=reference, base=base, **settings)
            continue
        if not shared:
            shared = _free_name(under, {*found, *(name for name, _ in several)})
            found[shared] = ModelSpec(model=under, **settings)
        held = {**found[shared].adapters, **dict(several)}
        found[shared] = dataclasses.replace(found[shared], adapters=held)
    return found


def _base_of(adapter: str, base: str) -> str:
    from lmworks.models.adapters.files import base_reference

    return base_reference(Path(adapter), base)


def _free_name(reference: str, taken: set[str]) -> str:
    path = Path(reference)
    name = (path.stem if path.suffix == ".gguf" else path.name) or reference
    return name if name not in taken else name + "-base"


def check_name(name: str) -> str:
    """A name that fits paths and the API. Raises: UserError for another."""
    if not name or len(name) > 200 or any(c in name for c in '\\\n\r\t"') or name.strip() != name:
        raise UserError(f"{name!r} is no name of a model: letters, digits, - and _ are")
    return name
