"""What stands behind a name of the pool once it is loaded, and how it is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError
from lmworks.core.machine import give_back_memory
from lmworks.core.references import resolve
from lmworks.inference.base import ChatModel
from lmworks.serving.model_specs import ModelSpec

if TYPE_CHECKING:
    from lmworks.inference.embedding import Embedder
    from lmworks.inference.reranking import CosineReranker, CrossEncoder
    from lmworks.models.adapters.shared import SharedAdapters
    from lmworks.models.size import ModelSize

Kind = Literal["chat", "embedding", "reranker", "remote"]


class Plan:
    """What is known of a model before it is loaded.

    Attributes:
        kind: what it can be asked for.
        num_bytes: weights and, of a chat model, the cache of its engine.
        context: tokens that a request may have.
    """

    def __init__(self, spec: ModelSpec) -> None:
        from lmworks.inference.engine import DEFAULT_MOST_POSITIONS
        from lmworks.inference.reranking import is_cross_encoder
        from lmworks.models.sentence_transformers import sentence_settings
        from lmworks.models.size import model_size

        self.kind: Kind = "remote"
        self.num_bytes, self.context = 0, 0
        path = resolve(spec.model).path
        if path is None:
            return
        size: ModelSize = model_size(spec.model, packed=True, base=spec.base)
        config: Any = size.config
        self.num_bytes = size.weight_bytes
        context = min(getattr(config, "max_position_embeddings", 0), DEFAULT_MOST_POSITIONS)
        self.context = spec.max_positions or context
        if is_language_model(config):
            self.kind = "chat"
            self.num_bytes += size.cache_bytes(
                spec.max_batch, self.context, spec.cache_tokens, spec.cache_type
            )
            self.num_bytes += _speculation_bytes(spec, size, self.context)
        else:
            self.kind = "reranker" if is_cross_encoder(config) else "embedding"
            length = spec.max_positions or sentence_settings(path).max_length
            self.context = min(length or context, context)


class LoadedModel:
    """A model in memory. What it can't be asked for raises UserError, which says what it is."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        from lmworks.compression.measure import weight_bytes
        from lmworks.models.load import load_single_model
        from lmworks.tokenizers.load import load_tokenizer

        plan = Plan(spec)
        self.name, self.spec, self.kind = name, spec, plan.kind
        self._chat: ChatModel | None = None
        self._adapters: SharedAdapters | None = None
        self._embedders: dict[str, Embedder] = {}
        self._reranker: CrossEncoder | None = None
        self._lock = threading.Lock()
        self.num_bytes = 0
        if plan.kind in ("chat", "remote"):
            self._open_chat()
            return
        path = resolve(spec.model).path
        assert path is not None  # a remote one is none of these kinds
        model = load_single_model(path, packed=True, base=spec.base)
        self.num_bytes = weight_bytes(model)
        if plan.kind == "reranker":
            self._reranker = _cross_encoder(name, spec, model, load_tokenizer(path), path)
        else:
            self._embedders[""] = _embedder(name, spec, model, load_tokenizer(path), path)

    def _open_chat(self) -> None:
        from lmworks.compression.measure import weight_bytes
        from lmworks.inference.chat import load_chat
        from lmworks.inference.local import LocalChat

        spec = self.spec
        self._chat = load_chat(
            spec.model,
            base=spec.base,
            max_batch=spec.max_batch,
            max_positions=spec.max_positions,
            cache_tokens=spec.cache_tokens,
            prefix_tokens=spec.prefix_tokens,
            turn_tokens=spec.turn_tokens,
            speculate=spec.speculate,
            cache_type=spec.cache_type,
        )
        for member in getattr(self._chat, "members", [self._chat]):  # of a router, all
            if isinstance(member, LocalChat):
                engine = member.engine
                self.num_bytes += weight_bytes(engine.model) + engine.cache_bytes
                if engine.proposer is not None:
                    self.num_bytes += engine.proposer.num_bytes

    @property
    def context(self) -> int:
        """Tokens of a request."""
        if self._reranker is not None:
            return self._reranker.max_length
        if self._chat is None:
            return self._embedders[""].max_length
        return getattr(getattr(self._chat, "engine", None), "max_positions", 0)

    @property
    def chat(self) -> ChatModel:
        """What answers. Raises: UserError for a model that does not."""
        if self._chat is None:
            word = "scores texts" if self.kind == "reranker" else "makes vectors"
            place = "/v1/rerank" if self.kind == "reranker" else "/v1/embeddings"
            raise UserError(f"{self.name} {word} and does not answer: ask it at {place}")
        return self._chat

    @property
    def engine(self) -> Any:
        """The engine behind a local chat model, or None."""
        return getattr(self._chat, "engine", None)

    @property
    def adapters(self) -> SharedAdapters:
        """The adapters on this base. Raises: UserError for a model that takes none."""
        from lmworks.models.adapters.shared import SharedAdapters

        with self._lock:
            if self._adapters is None:
                if not hasattr(getattr(self.engine, "model", None), "layers"):
                    raise UserError(f"{self.name} is no model that adapters can be put on")
                self._adapters = SharedAdapters(self.engine.model)
                self.engine.model_adapters = self._adapters
            return self._adapters

    def embedder(self, adapter: str = "") -> Embedder:
        """What makes vectors. Raises: UserError for a model that makes none."""
        single = self.kind == "embedding" or hasattr(getattr(self.engine, "model", None), "layers")
        if self.kind in ("remote", "reranker") or not single:
            raise UserError(f"{self.name} makes no vectors here")
        with self._lock:
            if adapter not in self._embedders:
                engine = self.engine
                model = engine.model if not adapter else self._adapted(adapter)
                path = resolve(self.spec.model).path
                assert path is not None  # a remote one was refused above
                self._embedders[adapter] = _embedder(
                    self.name, self.spec, model, engine.tokenizer, path
                )
            return self._embedders[adapter]

    def _adapted(self, adapter: str) -> Any:
        assert self._adapters is not None  # the adapter was loaded on it
        with self._adapters.active([adapter]) as model:
            return model

    def reranker(self, adapter: str = "") -> CrossEncoder | CosineReranker:
        """What scores texts. Raises: UserError for a model that can't."""
        from lmworks.inference.reranking import CosineReranker

        if self._reranker is not None:
            return self._reranker
        return CosineReranker(self.embedder(adapter))

    def drop_adapter(self, key: str) -> None:
        """Take an adapter away; nobody uses it any more."""
        with self._lock:
            embedder = self._embedders.pop(key, None)
        if embedder is not None:
            embedder.close()
        if self._adapters is not None:
            self._adapters.unload(key)

    def close(self) -> None:
        """End what runs, and give the memory back."""
        with self._lock:
            held = [*self._embedders.values(), self._reranker, self._chat]
            self._embedders, self._reranker, self._chat = {}, None, None
            self._adapters = None
        for each in held:
            if close := getattr(each, "close", None):
                with contextlib.suppress(UserError):
                    close()
        del held, each
        give_back_memory()


def _speculation_bytes(spec: ModelSpec, size: ModelSize, positions: int) -> int:
    """Of what guesses tokens: a draft with its cache, or the cache of the first layers."""
    from lmworks.models.config import ModelConfig
    from lmworks.models.size import model_size

    how, _, value = spec.speculate.partition("=")
    config = size.config
    if how == "draft" and value:
        draft = model_size(value, packed=True)
        context = getattr(draft.config, "max_position_embeddings", positions)
        return draft.weight_bytes + draft.cache_bytes(spec.max_batch, min(positions, context))
    if how == "early-exit" and value.isdecimal() and isinstance(config, ModelConfig):
        first = dataclasses.replace(config, layers=config.layers[: int(value)])
        return dataclasses.replace(size, config=first).cache_bytes(spec.max_batch, positions)
    return 0


def is_language_model(config: Any) -> bool:
    """Whether a model of this config continues texts."""
    from lmworks.models.config import LMHeadConfig

    if getattr(config, "encoder", None) is not None:
        return False
    if not isinstance(getattr(config, "head", None), LMHeadConfig):
        return False
    return all(getattr(layer.mixer, "causal", True) for layer in config.layers)


def _embedder(name: str, spec: ModelSpec, model: Any, tokenizer: Any, path: Path) -> Embedder:
    from lmworks.inference.embedding import Embedder, check_embeds
    from lmworks.models.sentence_transformers import sentence_settings

    check_embeds(model.config, name)
    settings = sentence_settings(path)
    return Embedder(
        model,
        tokenizer,
        name,
        pooling=spec.pooling,  # type: ignore[arg-type]
        max_length=spec.max_positions or settings.max_length,
        lower=settings.lower,
        prompts=settings.prompts,
        default_prompt=settings.default_prompt,
    )


def _cross_encoder(
    name: str, spec: ModelSpec, model: Any, tokenizer: Any, path: Path
) -> CrossEncoder:
    from lmworks.inference.reranking import CrossEncoder
    from lmworks.models.sentence_transformers import sentence_settings

    length = spec.max_positions or sentence_settings(path).max_length
    return CrossEncoder(model, tokenizer, name, max_length=length)
