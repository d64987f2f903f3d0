"""`gateway.yaml`: back ends, the models that clients see, and how failures are met.

Secrets are never in the file: it names environment variables. Every fault is one line that names
file, section and key.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from lmworks.core.config import from_mapping, option
from lmworks.core.errors import UserError, unknown_name

EXAMPLE = Path(__file__).with_name("example.yaml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
Strategy = Literal["weighted", "latency", "order"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """One place that answers: an endpoint, or a model that the gateway starts beside itself."""

    url: str = option("", help="up to and with /v1")
    serve: str = option("", help="instead of a url: a reference that the gateway serves itself")
    kind: Literal["openai", "anthropic"] = option("openai", help="the API that it speaks")
    api_key_env: str = option("", help="environment variable that holds its key")
    health_path: str = option("/models", help="asked now and then; empty: never")
    health_every_s: float = option(5.0, help="seconds between two such questions")
    connect_s: float = option(3.0, help="seconds to wait for a connection")
    first_byte_s: float = option(60.0, help="seconds to wait for the first piece of a stream")
    answer_s: float = option(300.0, help="seconds to wait for an answer that is not streamed")
    idle_s: float = option(60.0, help="seconds to wait between two pieces of a stream")
    max_parallel: int = option(0, help="requests at the same time; 0: any number")
    tell_client: bool = option(False, help="send the key's id as X-Client, for fairness there")
    redact: bool = option(False, help="take secrets and personal data out of what is sent there")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouteConfig:
    """A model of a back end that may answer for a model of the gateway."""

    backend: str = option(help="a name under backends")
    model: str = option(help="what the model is called there")
    weight: float = option(1.0, help="share of the requests, relative to the other routes")
    price: PriceConfig | None = option(None, help="instead of the model's price")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriceConfig:
    """Money per million tokens, in whatever currency budgets are in."""

    input: float = option(0.0, help="per million tokens read")
    output: float = option(0.0, help="per million tokens written")
    cached_input: float | None = option(None, help="per million read from a cache; none: as input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model as clients see it."""

    routes: list[RouteConfig] = option(help="who may answer")
    strategy: Strategy = option("weighted", help="which route is tried first")
    fallbacks: list[str] = option([], help="models that answer instead when every route fails")
    price: PriceConfig = option(PriceConfig(), help="what its tokens cost")
    max_output_tokens: int = option(4096, help="what is reserved, and asked for, at most")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """What happens when a route fails before anything was sent to the client."""

    rounds: int = option(2, help="further rounds over all routes, each after a pause")
    base_s: float = option(0.2, help="the longest pause before the first of them; then doubled")
    max_s: float = option(5.0, help="the longest pause of all")
    hedge_s: float = option(0.0, help="ask a second route when the first is silent so long; 0: no")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BreakerConfig:
    """When a back end is left alone for a while."""

    failures: int = option(5, help="failures in a row that open the breaker")
    open_s: float = option(10.0, help="seconds until one request may try again")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Answers that are given again. A key never sees what another key's requests were answered."""

    exact: bool = option(False, help="the same request gives the same answer")
    when: Literal["deterministic", "always"] = option(
        "deterministic", help="deterministic: only requests with temperature 0 or a seed"
    )
    ttl_s: float = option(3600.0, help="how long an answer is kept")
    max_mb: float = option(64.0, help="memory for answers; the oldest go first")
    semantic: bool = option(False, help="a last user message that means the same counts as same")
    embedder: str = option("minilm-l6", help="reference to the encoder that compares them")
    threshold: float = option(0.9, help="cosine from which two messages are the same")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The request log."""

    contents: bool = option(False, help="keep prompts and answers too, redacted")
    keep_days: int = option(30, help="then entries are removed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Everything that a gateway is told. `backends` and `models` are by name."""

    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(4000, help="port; 0 takes a free one")
    store: str = option("gateway.db", help="SQLite file, relative to the config")
    redis: str = option("", help="redis://HOST:PORT/N, when several gateways share keys and limits")
    secret_env: str = option(
        "LMWORKS_GATEWAY_SECRET", help="variable with the pepper; else a file beside the store"
    )
    drain_s: float = option(30.0, help="seconds that running requests get when it is told to end")
    max_body_mb: float = option(8.0, help="the largest request")
    bytes_per_token: float = option(4.0, help="for what is reserved before a prompt is counted")
    defaults: dict[str, Any] = option({}, help="limits of keys that have none of their own")
    retries: RetryConfig = option(RetryConfig(), help="see there")
    breaker: BreakerConfig = option(BreakerConfig(), help="see there")
    cache: CacheConfig = option(CacheConfig(), help="see there")
    log: LogConfig = option(LogConfig(), help="see there")
    backends: dict[str, Any] = option({}, help="by name")
    models: dict[str, Any] = option({}, help="by name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gateway:
    """A checked config: what `GatewayConfig` says, with its back ends and models made."""

    path: Path
    settings: GatewayConfig
    backends: dict[str, BackendConfig]
    models: dict[str, ModelConfig]

    @property
    def store(self) -> Path:
        """Where the SQLite file is."""
        return self.path.parent / Path(self.settings.store).expanduser()


def load_config(path: str | Path) -> Gateway:
    """Read and check a config. Raises: UserError with file, section, key, and what is wrong."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no gateway config {path}: `lmworks gateway init {path}` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{path} is not valid YAML{where}: {problem}") from error
    return check_config(values, path)


def check_config(values: Any, path: str | Path = "gateway.yaml") -> Gateway:
    """A config from plain values. Raises: UserError."""
    where = str(path)
    settings = from_mapping(GatewayConfig, values, where=where)
    if not settings.backends or not settings.models:
        raise UserError(f"{where}: needs at least one entry under backends and one under models")
    backends = _entries(BackendConfig, settings.backends, f"{where}: backends")
    models = _entries(ModelConfig, settings.models, f"{where}: models")
    for name, backend in backends.items():
        _check_backend(f"{where}: backends.{name}", backend)
    for name, model in models.items():
        _check_model(f"{where}: models.{name}", name, model, backends, models)
    _check_numbers(where, settings)
    from lmworks.serving.gateway.limits import Limits

    Limits.of(settings.defaults, where=f"{where}: defaults")
    return Gateway(path=Path(path), settings=settings, backends=backends, models=models)


def _entries(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, entry in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{where}: {name!r} is no name: letters, digits and . _ : / - may be")
        made[name] = from_mapping(cls, entry, where=f"{where}.{name}")
    return made


def _check_backend(where: str, backend: BackendConfig) -> None:
    if bool(backend.url) == bool(backend.serve):
        raise UserError(f"{where}: needs either url or serve")
    if backend.url:
        parts = urlsplit(backend.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{where}: url = {backend.url!r}: write it as http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise UserError(f"{where}: a url holds no password: put the key into api_key_env")
    api_key(backend, where)
    for name in ("health_every_s", "connect_s", "first_byte_s", "answer_s", "idle_s"):
        if not getattr(backend, name) > 0:
            raise UserError(f"{where}: {name} = {getattr(backend, name)}: must be above 0")


def api_key(backend: BackendConfig, where: str) -> str:
    """The back end's key out of the environment, or nothing. Raises: UserError."""
    if not backend.api_key_env:
        return ""
    value = os.environ.get(backend.api_key_env, "")
    if not value:
        raise UserError(f"{where}: the environment variable {backend.api_key_env} is not set")
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise UserError(
            f"{where}: {backend.api_key_env} holds blanks, line breaks or odd characters"
        )
    return value


def _check_model(
    where: str,
    name: str,
    model: ModelConfig,
    backends: Mapping[str, BackendConfig],
    models: Mapping[str, ModelConfig],
) -> None:
    if not model.routes:
        raise UserError(f"{where}: routes is empty: name at least one backend and model")
    for route in model.routes:
        if route.backend not in backends:
            raise UserError(f"{where}: {unknown_name('backend', route.backend, backends)}")
        if not route.weight > 0:
            raise UserError(f"{where}: weight = {route.weight}: must be above 0")
        _check_price(where, route.price)
    _check_price(where, model.price)
    if model.max_output_tokens < 1:
        raise UserError(f"{where}: max_output_tokens = {model.max_output_tokens}: at least 1")
    for other in model.fallbacks:
        if other not in models:
            raise UserError(f"{where}: fallbacks: {unknown_name('model', other, models)}")
        if other == name:
            raise UserError(f"{where}: fallbacks: a model can't stand in for itself")


def _check_price(where: str, price: PriceConfig | None) -> None:
    for value in dataclasses.astuple(price) if price else ():
        if value is not None and not 0 <= value < 1e6:
            raise UserError(f"{where}: price: {value} per million tokens is not valid")


def _check_numbers(where: str, settings: GatewayConfig) -> None:
    positive = {
        "bytes_per_token": settings.bytes_per_token,
        "max_body_mb": settings.max_body_mb,
        "cache.ttl_s": settings.cache.ttl_s,
        "cache.max_mb": settings.cache.max_mb,
        "breaker.failures": settings.breaker.failures,
        "breaker.open_s": settings.breaker.open_s,
        "log.keep_days": settings.log.keep_days,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{where}: {name} = {value}: must be above 0")
    if not 0 < settings.cache.threshold <= 1:
        raise UserError(f"{where}: cache.threshold = {settings.cache.threshold}: from 0 to 1")
    for name in ("rounds", "base_s", "max_s", "hedge_s"):
        if getattr(settings.retries, name) < 0:
            raise UserError(f"{where}: retries.{name} must not be negative")
    if not 0 <= settings.port <= 65535:
        raise UserError(f"{where}: port {settings.port} does not exist")
    if settings.redis and not settings.redis.startswith(
        ("redis://", "rediss://", "unix://", "env:")
    ):
        raise UserError(f"{where}: redis: write it as redis://HOST:PORT/0, or env:NAME")
