"""The way of a request: key, model, cache, reservation, back end, bytes back, settlement."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lmworks.core.errors import MissingExtra
from lmworks.serving.bodies import read_json
from lmworks.serving.errors import CLIENT_LEFT, ApiError, as_api_error, model_not_found
from lmworks.serving.gateway import cache as caching
from lmworks.serving.gateway.account import Account, text_of
from lmworks.serving.gateway.backends import Backend
from lmworks.serving.gateway.config import Gateway, ModelConfig, PriceConfig, api_key
from lmworks.serving.gateway.credentials import given_key, request_id, unauthorized
from lmworks.serving.gateway.estimate import (
    answer_limit,
    fitting_limit,
    limit_name,
    num_choices,
    prompt_tokens,
)
from lmworks.serving.gateway.keys import Key, is_right, split_key
from lmworks.serving.gateway.ledger import Ledger, new_ticket
from lmworks.serving.gateway.limits import Cost, Limits, Refused, money
from lmworks.serving.gateway.metrics import GatewayMetrics
from lmworks.serving.gateway.redaction import redact_value
from lmworks.serving.gateway.relay import tokens_of
from lmworks.serving.gateway.routing import Call, RefusedByBackend, Router
from lmworks.serving.gateway.semantic_cache import Embed, Question, SemanticCache
from lmworks.serving.gateway.store import Statement, Store
from lmworks.serving.gateway.streamed import StreamedAnswer
from lmworks.serving.gateway.structured import answer_check
from lmworks.serving.streaming import unless_left

_LOG = logging.getLogger("lmworks.gateway")
_PROGRESS_EVERY_S = 1.0
_UPKEEP_EVERY_S = 3600.0
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/rerank", "/responses")


class Door:
    """Everything behind the routes; `app.state.door`. Used on one event loop.

    Args:
        embed: for the semantic cache; see `semantic_cache`.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: Store,
        ledger: Ledger,
        pepper: bytes,
        *,
        embed: Embed | None = None,
    ) -> None:
        settings = gateway.settings
        self.gateway, self.store, self.ledger, self.pepper = gateway, store, ledger, pepper
        self.defaults = Limits.of(settings.defaults)
        self.metrics = GatewayMetrics()
        self.backends = {
            name: Backend(name, config, settings.breaker, api_key(config, f"backends.{name}"))
            for name, config in gateway.backends.items()
        }
        self.router = Router(gateway.models, self.backends, settings.retries)
        self.exact: caching.ExactCache | None = None
        self.semantic: SemanticCache | None = None
        if settings.cache.exact or settings.cache.semantic:
            self.exact = caching.ExactCache(
                int(settings.cache.max_mb * 2**20), settings.cache.ttl_s
            )
        if settings.cache.semantic and embed:
            cache = settings.cache
            self.semantic = SemanticCache(embed, cache.threshold, cache.ttl_s)
        self.started = int(time.time())
        self.draining = False
        self._max_body_bytes = int(settings.max_body_mb * 2**20)
        self._open: set[Account] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._settling: set[asyncio.Task[None]] = set()

    # --- its life ---

    async def start(self) -> None:
        """Settle what a killed gateway left, and begin the work beside requests."""
        if lost := await self.ledger.settle_lost():
            _LOG.warning("%d requests of a gateway that was killed were settled", lost)
        self._tasks = [
            asyncio.create_task(_every(_PROGRESS_EVERY_S, self._keep_progress)),
            asyncio.create_task(_every(_UPKEEP_EVERY_S, self._upkeep)),
        ]
        for backend in self.backends.values():
            if backend.config.health_path:
                every = _every(backend.config.health_every_s, backend.check_health)
                self._tasks.append(asyncio.create_task(every))

    async def close(self) -> None:
        """Wait for settlements, end the rest."""
        if self._settling:
            await asyncio.wait(self._settling)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in self.backends.values():
            await backend.close()
        await self.ledger.close()

    async def _keep_progress(self) -> None:
        tickets = [a.ticket for a in self._open if a.ticket]
        moved = [t for t in tickets if t.written_tokens != t.told_tokens]
        for ticket in moved:
            ticket.told_tokens = ticket.written_tokens
        if moved:
            await self.ledger.progress(moved)

    async def _upkeep(self) -> None:
        self.store.remove_before(time.time() - 86400 * self.gateway.settings.log.keep_days)
        forget: Callable[[], None] = getattr(self.ledger, "forget_ended", lambda: None)
        forget()

    # --- who asks ---

    async def key(self, http: Request) -> Key:
        """The key that the request carries. Raises: ApiError (401)."""
        key_id, secret = split_key(given_key(http.scope["headers"])) or ("", "")
        key = await self.ledger.find_key(key_id) if key_id else None
        if not is_right(self.pepper, key_id, secret, key) or key is None:
            raise unauthorized("this key is not known here")
        state = key.state(time.time())
        if state != "active":
            raise unauthorized(f"this key is {state}")
        return key

    def models_of(self, key: Key) -> list[str]:
        """The models that a key may use."""
        return [name for name in self.gateway.models if key.may_use(name)]

    # --- a request ---

    async def handle(self, http: Request, path: str) -> Response:
        """Answer a POST to `/v1` + path. Raises: ApiError."""
        account = Account(request_id(http), path, time.monotonic())
        self.metrics.in_flight += 1
        streaming = False
        try:
            key = await self.key(http)
            body = await read_json(http, self._max_body_bytes)
            response = await self._answer(http, account, key, path, body)
            streaming = isinstance(response, StreamedAnswer)
            return response
        except Exception as error:
            told = as_api_error(error)
            account.status, account.error = told.status, told.message
            if isinstance(told, Refused) or told.status == 401:
                self.metrics.refused[told.code or "refused"] += 1
            if isinstance(told, RefusedByBackend):
                account.backend = told.backend
            raise told from error
        finally:
            if not streaming:
                await self._finish(account)

    async def _answer(
        self, http: Request, account: Account, key: Key, path: str, body: Any
    ) -> Response:
        name, model = self._model(key, body)
        account.key_id, account.model = key.id, name
        limits = key.limits.over(self.defaults)
        prompt = prompt_tokens(path, body, self.gateway.settings.bytes_per_token)
        asked, reserved = await self._prepared(key, limits, model, path, body, prompt)
        stream = body.get("stream") is True and path not in ("/embeddings", "/rerank")
        wants_usage = _wants_usage(body)
        if stream and path != "/responses":
            asked["stream_options"] = {**(_mapping(body, "stream_options")), "include_usage": True}
        if self.gateway.settings.log.contents:
            question = {n: body[n] for n in ("messages", "prompt", "input") if n in body}
            account.question = json.dumps(question, ensure_ascii=False)
        digest, question_seen = await self._look_up(http, account, key, path, body)
        ticket = new_ticket(account.id, key, name, reserved, prompt, limits)
        if account.cache in ("hit", "semantic") and self.exact and digest:
            ticket.reserved, ticket.prompt_tokens = Cost(1), 0
            await self._admit(account, ticket)
            found = self.exact.get(digest)
            account.answer = text_of(found) if self.gateway.settings.log.contents else None
            return self._cached(http, account, found, stream=stream, wants_usage=wants_usage)
        ticket.nano = money(model.price, prompt, 0)
        await self._admit(account, ticket)
        self.metrics.overhead_s.observe(time.monotonic() - account.started_s)
        call = Call(
            path=path,
            client=key.id,
            model=name,
            body=asked,
            stream=stream,
            redact=redact_value,
            check=None if stream else _check(path, body),
        )
        keep = self._keeper(account, digest, question_seen)
        account.was_sent = True
        answer = await unless_left(http, self.router.answer(call))
        if answer is None:
            account.status, account.error = CLIENT_LEFT, "the client left"
            return Response(status_code=CLIENT_LEFT)
        account.backend, account.tries = answer.backend.name, answer.tries
        account.price = answer.route.price or self.gateway.models[answer.model].price
        self.metrics.retries += answer.tries - 1
        headers = self._headers(account)
        if stream:
            return StreamedAnswer(
                http,
                account,
                answer,
                headers,
                wants_usage=wants_usage,
                keep=keep if digest or self.gateway.settings.log.contents else None,
                end=self._finish,
            )
        await answer.close()
        account.tokens = tokens_of(answer.value)
        account.first_byte()
        keep(answer.value)
        return Response(answer.body, media_type="application/json", headers=headers)

    def _model(self, key: Key, body: Any) -> tuple[str, ModelConfig]:
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object", code="invalid_type")
        name = body.get("model")
        if not isinstance(name, str):
            raise ApiError(400, "model: is missing", param="model", code="invalid_type")
        if name not in self.gateway.models or not key.may_use(name):
            raise model_not_found(name[:200], self.models_of(key))
        return name, self.gateway.models[name]

    async def _prepared(
        self,
        key: Key,
        limits: Limits,
        model: ModelConfig,
        path: str,
        body: Mapping[str, Any],
        prompt: int,
    ) -> tuple[dict[str, Any], Cost]:
        """The body to send on, and what to reserve for it."""
        asked = {name: value for name, value in body.items() if name != "model"}
        limit, choices = answer_limit(path, body), num_choices(path, body)
        prices = self._prices(model)
        is_bounded = any(name.startswith(("tokens", "budget")) for name in limits.plain())
        if limit is None and choices and is_bounded:
            left = await self.ledger.left(key, limits)
            limit = fitting_limit(model.max_output_tokens, prompt, choices, left, limits, prices)
            asked[limit_name(path)] = limit
        completion = (limit or 0) * choices
        most = max(money(price, prompt, completion) for price in prices)
        return asked, Cost(1, prompt + completion, most)

    def _prices(self, model: ModelConfig) -> list[PriceConfig]:
        """Of every route that may come to answer."""
        models = [model, *(self.gateway.models[name] for name in model.fallbacks)]
        return [route.price or m.price for m in models for route in m.routes]

    async def _admit(self, account: Account, ticket: Any) -> None:
        await self.ledger.admit(ticket)
        account.ticket = ticket
        self._open.add(account)

    # --- caches ---

    async def _look_up(
        self, http: Request, account: Account, key: Key, path: str, body: Mapping[str, Any]
    ) -> tuple[str, Question | None]:
        """The digest of an answer that is known (`account.cache` says so) or is to be kept."""
        settings, control = self.gateway.settings.cache, http.headers.get("cache-control", "")
        if self.exact is None or not caching.may_cache(path, body, settings.when):
            return "", None
        if "no-store" in control:
            return "", None
        digest = caching.digest(key.id, path, body)
        account.cache = "miss"
        if "no-cache" in control:
            return digest, None
        if settings.exact and self.exact.get(digest) is not None:
            account.cache = "hit"
            return digest, None
        question = await self.semantic.find(key.id, path, body) if self.semantic else None
        if question and question.found and self.exact.get(question.found) is not None:
            account.cache = "semantic"
            return question.found, question
        return digest, question

    def _keeper(
        self, account: Account, digest: str, question: Question | None
    ) -> Callable[[Any], None]:
        """What to do with a whole answer once it is there."""

        def keep(answer: Any) -> None:
            if self.gateway.settings.log.contents:
                account.answer = text_of(answer)
            if answer is None or not digest or self.exact is None:
                return
            self.exact.put(digest, answer)
            if question and self.semantic:
                self.semantic.keep(question, digest)

        return keep

    def _cached(
        self, http: Request, account: Account, found: Any, *, stream: bool, wants_usage: bool
    ) -> Response:
        headers = self._headers(account)
        account.first_byte()
        if not stream:
            return Response(json.dumps(found), media_type="application/json", headers=headers)
        events = caching.as_events(found, include_usage=wants_usage)
        return Response(b"".join(events), media_type="text/event-stream", headers=headers)

    # --- the end ---

    def _headers(self, account: Account) -> dict[str, str]:
        headers = {"x-request-id": account.id}
        if account.backend:
            headers["x-lmworks-backend"] = account.backend
        if account.cache:
            headers["x-lmworks-cache"] = account.cache
        left = account.ticket.left if account.ticket else {}
        return headers | {f"x-ratelimit-remaining-{name}": str(n) for name, n in left.items()}

    async def _finish(self, account: Account) -> None:
        """Settle and log, whatever happens to the request's own task meanwhile."""
        task = asyncio.create_task(self._settle(account))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _settle(self, account: Account) -> None:
        metrics, tokens = self.metrics, account.counted
        metrics.in_flight -= 1
        metrics.requests[account.model, account.status] += 1
        metrics.seconds.observe(time.monotonic() - account.started_s)
        if account.ttft_s is not None:
            metrics.ttft_s.observe(account.ttft_s)
        if account.cache:
            metrics.cache[account.cache] += 1
        if account.model:
            metrics.tokens[account.model, "prompt"] += tokens.prompt
            metrics.tokens[account.model, "completion"] += tokens.completion
        self._open.discard(account)
        try:
            if account.ticket:
                log: Sequence[Statement] = [account.log()]
                await self.ledger.settle(account.ticket, account.cost(), account.used(), log)
            elif account.key_id:  # refused: in the log, not in the usage
                await self.store.commit(account.log())
        except Exception:
            _LOG.exception("the usage of request %s could not be kept", account.id)


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}


def _wants_usage(body: Mapping[str, Any]) -> bool:
    return _mapping(body, "stream_options").get("include_usage") is True


def _check(path: str, body: Mapping[str, Any]) -> Callable[[Any], None] | None:
    if path != "/chat/completions":
        return None
    try:
        return answer_check(body)
    except MissingExtra:
        return None  # answers pass unchecked, as they do when they are streamed


async def _every(seconds: float, work: Callable[[], Any]) -> None:
    """Do `work` now and again; a failure is logged and does not end it."""
    while True:
        try:
            await work()
        except Exception:
            _LOG.exception("work beside requests failed")
        await asyncio.sleep(seconds)
