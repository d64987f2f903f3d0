"""`load_chat`: from a reference to something one can talk to, whatever stands behind it.

| reference | gives |
|---|---|
| a path, `hf:`, `pypi:`, an alias | `LocalChat`: weights behind an engine; a GGUF stays packed |
| the folder of an adapter | the same, with the adapter on its base |
| an `ensemble.yaml`, or its folder | the same, of several models: see `models.ensemble_spec`; or a
  `RoutedChat`, of which one answers |
| `https://host/v1#model` | `RemoteChat` |

`ScriptedChat` stands in for either in tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.progress import say
from lmworks.core.references import Resolved, resolve
from lmworks.inference.base import ChatModel, Completion, Delta, TokenLogprob, Usage
from lmworks.inference.local import LocalChat
from lmworks.inference.remote import RemoteChat, RemoteError
from lmworks.inference.scripted import ScriptedChat

__all__ = [
    "ChatModel",
    "Completion",
    "Delta",
    "LocalChat",
    "RemoteChat",
    "RemoteError",
    "ScriptedChat",
    "TokenLogprob",
    "Usage",
    "load_chat",
]


def load_chat(
    ref: str | Path,
    *,
    base: str = "",
    max_batch: int = 8,
    max_positions: int | None = None,
    cache_tokens: int | None = None,
    prefix_tokens: int | None = None,
    turn_tokens: int | None = None,
    speculate: str = "",
    cache_type: str = "f32",
) -> ChatModel:
    """The model that `ref` stands for, ready to answer.

    Args:
        base: the model under an adapter, instead of the one that its folder names.
        max_batch: conversations that run at the same time.
        max_positions: prompt and answer together, in tokens; by default the model's context, at
            most 8192.
        cache_tokens: of all conversations together, by default enough for each to be full.
        prefix_tokens: of known beginnings that are kept for later requests.
        turn_tokens: of prompts that are read between two steps. All five are for local weights, see
            `engine.Engine`: an endpoint has its own limits.
        speculate: guess tokens and check several at once: `lookup`, `draft=REF`, `early-exit=K`;
            see `speculative`.
        cache_type: how keys and values are held: f32, f16, q8_0; see `models.cache_types`.
    Raises: UserError when the reference leads nowhere or the files can't be used.
    """
    found = resolve(str(ref))
    if found.path is None:
        if base:
            raise UserError(f"{ref} is no adapter: it needs no base")
        if speculate:
            raise UserError(f"{ref} is an endpoint: whether it speculates is its own affair")
        return RemoteChat(found.url, found.model)
    from lmworks.inference.engine import Engine
    from lmworks.models.ensemble_spec import ensemble_file, read_ensemble

    file = ensemble_file(found.path)
    if file is not None and (spec := read_ensemble(file)).routes:
        if base:
            raise UserError(f"{ref} is a router: it needs no base")
        settings = {
            "max_batch": max_batch,
            "max_positions": max_positions,
            "cache_tokens": cache_tokens,
            "prefix_tokens": prefix_tokens,
            "turn_tokens": turn_tokens,
            "speculate": speculate,
            "cache_type": cache_type,
        }
        return _router(spec, file, _name(found), settings)
    model, tokenizer, path = _weights(found, base)
    if cache_type != "f32":
        say(
            f"{_name(found)} runs operation by operation, slower for short steps: its cache is "
            f"{cache_type}"
        )
    engine = Engine(
        model,
        tokenizer,
        max_batch=max_batch,
        max_positions=max_positions,
        cache_tokens=cache_tokens,
        prefix_tokens=prefix_tokens,
        turn_tokens=turn_tokens,
        eos_token_ids=_eos_token_ids(path),
        cache_type=cache_type,
    )
    if speculate:
        from lmworks.inference.speculative import speculation_for

        try:
            engine.proposer = speculation_for(engine, speculate)
        except BaseException:
            engine.close()
            raise
    return LocalChat(engine, _name(found))


def _router(spec: Any, file: Path, name: str, settings: dict[str, Any]) -> ChatModel:
    """Load the members; what was loaded is closed again if one of them can't be."""
    from lmworks.inference.routing import RoutedChat
    from lmworks.models.ensemble_spec import member_paths

    chat = RoutedChat([], spec, name)
    try:
        for member, path in zip(spec.models, member_paths(file, spec), strict=True):
            how = settings if path is not None else {}
            loaded = load_chat(member.model, **how)
            chat.members.append(loaded)
            reads = isinstance(loaded, LocalChat) and hasattr(loaded.engine.model, "layers")
            if spec.combine == "perplexity" and not reads:
                raise UserError(
                    f"{file}: {member.model} tells no perplexity: take `combine: route`"
                )
    except BaseException:
        chat.close()
        raise
    return chat


def _weights(found: Resolved, base: str) -> tuple[Any, Any, Path]:
    """The model, its tokenizer, and where its generation settings are."""
    from lmworks.models.ensemble_spec import ensemble_file
    from lmworks.models.fused_step import why_not_fused
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    assert found.path is not None
    file = ensemble_file(found.path)
    if file is not None:
        from lmworks.inference.ensemble import load_ensemble

        if base:
            raise UserError(f"{found.reference} is an ensemble: it needs no base")
        ensemble, tokenizer, path = load_ensemble(file)
        for member, told in zip(ensemble.members, ensemble.spec.models):
            _tell(why_not_fused(member), told.model)  # type: ignore[arg-type]
        return ensemble, tokenizer, path
    model = load_language_model(found.path, packed=True, base=base)
    _tell(why_not_fused(model), _name(found))
    return model, load_tokenizer(found.path), found.path


def _tell(reason: str, name: str) -> None:
    if reason:
        say(f"{name} runs operation by operation, slower for short steps: {reason}")


def _name(found: Resolved) -> str:
    if found.kind == "path" and found.path:
        path = found.path.resolve()
        return path.stem if path.is_file() else path.name
    return found.reference


def _eos_token_ids(path: Path) -> list[int]:
    """What the model's own generation settings say ends an answer: one id, or a list."""
    file = path / "generation_config.json"
    if not file.is_file():
        return []
    settings: Any = read_json(file, "generation config")
    value = settings.get("eos_token_id") if isinstance(settings, dict) else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{file}: eos_token_id must be a token id or a list of them, not {value!r}")
    return ids
