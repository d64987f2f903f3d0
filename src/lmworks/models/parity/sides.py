"""The two models of a comparison behind one interface, whatever they are.

A side runs token ids and records its operations by our names. What else is known of it (its config
in our words, its weights by our names) is what causes are tested with; a module of which neither
is known can still be compared, if its parts have names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Layout, architecture
from lmworks.models.architectures.rules import Bound, Rule, bind, for_kinds
from lmworks.models.config import ModelConfig
from lmworks.models.context import Encoded
from lmworks.models.load import load_single_model, open_weights
from lmworks.models.model import Model
from lmworks.models.parity.attention_calls import attention_calls
from lmworks.models.parity.operations import (
    Record,
    foreign_readings,
    hooked,
    normal_form,
    own_readings,
)
from lmworks.models.skeleton import skeleton

THEIRS, PACKED = "transformers:", ":packed"
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Port:
    """A torch module of somebody's own that should compute what a model of ours computes.

    Attributes:
        module: called with input_ids (1, T); returns logits (1, T, V), or an object or tuple
            that holds them.
        names: where our parts are in it: their paths by our paths, `{}` for numbers
            (`{"layers.{}.mixer.q_proj": "blocks.{}.attn.wq", ...}`), or rules of
            `models.architectures.rules` where matrices are fused or transposed, or the name of an
            architecture whose checkpoints have the module's names.
    """

    module: nn.Module
    names: Mapping[str, str] | Sequence[Rule] | str


@dataclass(kw_only=True)
class Side:
    """One of the two models.

    Attributes:
        name: what it is called in the report.
        module: what runs.
        config: in our words; None where it is not known.
        own: whether the module is a model of ours.
        bounds: the name map to a module of others.
        source: where its weights came from, if they can be read by our names there.
    """

    name: str
    module: nn.Module
    config: ModelConfig | None
    own: bool
    bounds: list[Bound]
    source: str = ""

    @torch.no_grad()
    def run(self, ids: torch.Tensor, record: Record) -> None:
        """Compute the logits of ids (1, T), and record each operation as it comes.

        Tensors are recorded in their normal form; see `operations`.
        """

        def keep(name: str, value: torch.Tensor) -> None:
            value = normal_form(value, ids.shape[1])  # type: ignore[assignment]
            if value is not None:
                record(name, value)

        with _evaluating(self.module):
            logits = self._run_own(ids, keep) if self.own else self._run_other(ids, keep)
        keep("logits", logits)

    def _run_own(self, ids: torch.Tensor, record: Record) -> torch.Tensor:
        model = cast(Model, self.module)
        with hooked(model, own_readings(model), record):
            return model.logits(
                model.hidden_states(ids, record=record, encoded=_encoded(model, ids, record))
            )

    def _run_other(self, ids: torch.Tensor, record: Record) -> torch.Tensor:
        config = cast(ModelConfig, self.bounds[0].config)
        readings = foreign_readings(self.bounds, config, self.module)
        with (
            hooked(self.module, readings, record),
            attention_calls(self.module, self.bounds, record),
        ):
            return _logits(
                self.module(ids, **({"decoder_input_ids": ids} if config.encoder else {}))
            )

    def state(self) -> State:
        """The weights by our names, as far as they are known, float32."""
        if self.source:
            return _own_state(load_single_model(self.source))
        if self.own:
            return {name: value.detach() for name, value in _own_state(self.module).items()}
        held = {name: value.detach().float() for name, value in self.module.named_parameters()}
        state: State = {}
        for bound in self.bounds:
            if all(name in held for name in bound.foreign):
                state |= bound.to_own([held[name] for name in bound.foreign])
        return state


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout while it lasts."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def _encoded(model: Model, ids: torch.Tensor, record: Record) -> Encoded | None:
    """What the encoder makes of the ids, its operations recorded under `encoder.`."""
    if model.encoder is None:
        return None
    encoder = model.encoder
    rows = model.embed_tokens(ids) if encoder.config.embedding.shared else ids
    return Encoded(
        encoder.hidden_states(rows, record=lambda name, value: record(f"encoder.{name}", value))
    )


def _own_state(model: nn.Module) -> State:
    """The parameters; packed matrices as the numbers that they stand for."""
    state: State = dict(model.named_parameters())
    for path, module in model.named_modules():
        matrix = getattr(module, "matrix", None)
        if matrix is not None and hasattr(matrix, "dequantized"):
            state[f"{path}.weight"] = torch.from_numpy(matrix.dequantized())
    return state


def _logits(output: Any) -> torch.Tensor:
    """The logits, or the last states, of whatever a module returns."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), torch.Tensor):
            return cast(torch.Tensor, getattr(output, name))
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the port returned {type(output).__name__}, which holds no logits")
    return output


def open_side(model: str | Path | nn.Module | Port, name: str = "") -> Side:
    """The side for a reference, `transformers:REF`, a model of ours or a module of transformers.

    A `Port` has no config of its own: `open_sides` gives it the other side's.
    Raises: UserError for what can't be loaded, and for a module that no architecture is known of.
    """
    if isinstance(model, Model):
        return Side(name=name or "ours", module=model, config=model.config, own=True, bounds=[])
    if isinstance(model, nn.Module):
        return _of_transformers(model, name or type(model).__name__)
    if isinstance(model, Port):
        raise UserError("a port has no config: compare it with a model whose config is known")
    text = str(model)
    if text.startswith(THEIRS):
        ref = text.removeprefix(THEIRS)
        side = _of_transformers(_load_theirs(ref), name or text)
        return dataclasses.replace(side, source=ref, config=_reads_tokens(ref))
    ref, packed = text.removesuffix(PACKED), text.endswith(PACKED)
    config = _reads_tokens(ref)
    ours = load_single_model(ref, packed=packed)
    return Side(name=name or text, module=ours, config=config, own=True, bounds=[])


def _reads_tokens(ref: str) -> ModelConfig:
    """The config of a checkpoint. Raises: UserError for a model that does not read token ids."""
    config = open_weights(ref).config
    if not isinstance(config, ModelConfig) or (config.encoder or config).inputs is not None:
        raise UserError(f"{ref} reads images or sound: only models that read tokens are compared")
    return config


def open_sides(a: Any, b: Any, names: tuple[str, str] = ("", "")) -> tuple[Side, Side]:
    """Both sides; one of them may be a `Port`. Raises: UserError as `open_side`."""
    if isinstance(a, Port) and not isinstance(b, Port):
        side_b = open_side(b, names[1])
        return _of_port(a, side_b, names[0] or "the port"), side_b
    side_a = open_side(a, names[0])
    if isinstance(b, Port):
        return side_a, _of_port(b, side_a, names[1] or "the port")
    return side_a, open_side(b, names[1])


def _of_port(port: Port, other: Side, name: str) -> Side:
    if other.config is None:
        raise UserError("a port has no config: compare it with a model whose config is known")
    rules = _rules(port.names)
    bounds = _bind(rules, other.config)
    if not bounds:
        known = ", ".join(sorted(_parameters(other.config))[:4])
        raise UserError(f"the names of the port speak of none of our parts, such as {known}")
    return Side(name=name, module=port.module, config=None, own=False, bounds=bounds)


def _rules(names: Mapping[str, str] | Sequence[Rule] | str) -> Sequence[Rule]:
    if isinstance(names, str):
        return architecture(names).layout("hf").rules
    if isinstance(names, Mapping):
        return [rule for own, theirs in names.items() for rule in for_kinds(own, theirs)]
    return names


def _parameters(config: ModelConfig) -> dict[str, torch.Tensor]:
    return dict(skeleton(config).named_parameters())


def _bind(rules: Sequence[Rule], config: ModelConfig) -> list[Bound]:
    """The rules for the parameters that they speak of; a port need not name all."""
    from lmworks.models.architectures.rules import template_of

    told = {own for rule in rules for own in rule.own}
    parameters = _parameters(config)
    return list(
        bind(rules, {n: t for n, t in parameters.items() if template_of(n)[0] in told}, config)
    )


def _of_transformers(module: nn.Module, name: str) -> Side:
    """A module of transformers, read by the architecture that its config names."""
    theirs = getattr(module, "config", None)
    kind = getattr(theirs, "model_type", None)
    if theirs is None or not isinstance(kind, str):
        raise UserError(
            f"{type(module).__name__} is no model of transformers: give it as a Port, with names"
        )
    layout = architecture(kind).layout("hf")
    config = layout.read_config(theirs.to_dict() | {"architectures": [type(module).__name__]})
    bounds = _without_prefix(layout.bind(_parameters(config), config), layout, module)
    return Side(name=name, module=module, config=config, own=False, bounds=bounds)


def _without_prefix(bounds: list[Bound], layout: Layout, module: nn.Module) -> list[Bound]:
    """The names of a base model, which lack the prefix that its checkpoints have."""
    if not layout.prefix or any(n.startswith(layout.prefix) for n, _ in module.named_parameters()):
        return bounds
    return [
        dataclasses.replace(b, foreign=tuple(n.removeprefix(layout.prefix) for n in b.foreign))
        for b in bounds
    ]


def _load_theirs(ref: str) -> nn.Module:
    """The model of transformers that a folder or GGUF file holds, float32."""
    from lmworks.core.errors import MissingExtra
    from lmworks.core.gguf import find_gguf
    from lmworks.core.references import resolve

    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "peers", f"comparing with {THEIRS}{ref}") from error
    path = resolve(ref).path
    if path is None:
        raise UserError(f"{ref} is a remote endpoint, which gives no weights")
    source: dict[str, Any] = {}
    gguf = path if path.suffix == ".gguf" else find_gguf(path) if path.is_dir() else None
    if gguf is not None and not any(path.glob("*.safetensors*")):
        path, source = gguf.parent, {"gguf_file": gguf.name}
    options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    try:
        kind = _class(transformers, path, source)
        with _without_bars(transformers):
            loaded: nn.Module = kind.from_pretrained(path, **options, **source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"transformers can't load {ref}: {reason}") from error
    return loaded.eval()


@contextlib.contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """No progress bars of transformers while it lasts."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _class(transformers: Any, path: Path, source: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, **source)
    named = (config.architectures or [""])[0]
    return getattr(transformers, named, None) or transformers.AutoModelForCausalLM
