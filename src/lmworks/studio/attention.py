"""What the attention page asks for.

| path | |
|---|---|
| `GET /api/attention` | the models that are loaded, and aliases to try |
| `POST /api/attention/models` | load a reference; events: what is going on, then the model |
| `POST /api/attention/look` | events: the tokens, then each layer's heads as they are read |
| `POST /api/attention/head` | events: one head, or the rollout, as a picture |
| `POST /api/attention/row` | what one token looks at, exactly |
| `POST /api/attention/export` | the page that `explain attention --out x.html` writes |

Of a text whose heads fit into memory all are kept, and pictures and rows come at once. Of a longer
one the head that is asked for is read again.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lmworks.core.references import aliases
from lmworks.models.attention_summaries import KINDS
from lmworks.serving.bodies import read_json
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_types import parse
from lmworks.studio.app import Studio, stream
from lmworks.studio.kept import Kept
from lmworks.studio.shelf import LoadedModel

_QUESTION = 16 << 10
_KEPT_TEXTS, _MOST_ROW, _MOST_NAMED = 2, 1024, 12
_MOST_TOKENS = 32_768
_ROLLOUT = -1  # as the number of a head


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadRequest(_Request):
    """`POST /api/attention/models`."""

    reference: str = Field(min_length=1, max_length=1000)


class LookRequest(_Request):
    """Which text under which model."""

    model: str
    text: str


class HeadRequest(LookRequest):
    """Which head; -1 stands for the rollout after the layer."""

    layer: int = Field(ge=0)
    head: int = Field(ge=_ROLLOUT)


class RowRequest(HeadRequest):
    """Which token looks."""

    query: int = Field(ge=0)


@dataclasses.dataclass
class Looked:
    """A text under a model: its tokens, and what is kept of its attention."""

    ids: Any
    tokens: list[str]
    trace: Any = None
    rollouts: dict[int, Any] = dataclasses.field(default_factory=dict)


class AttentionRoutes:
    """The work behind the routes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._looked = Kept(_KEPT_TEXTS)

    def looked(self, request: LookRequest) -> Looked:
        """The text's tokens. Raises: ApiError for a model or text that is not here, or too long."""
        loaded = self.studio.models.get(request.model)
        text = self.studio.texts.get(request.text)

        def make() -> Looked:
            from lmworks.evaluation.attention_report import text_tokens

            ids, tokens = text_tokens(loaded.tokenizer, text.text)
            return Looked(ids=ids, tokens=tokens)

        found: Looked = self._looked.get((request.model, id(loaded), text.id), make)
        count = len(found.ids)
        if count < 2 or count > _MOST_TOKENS:
            raise ApiError(
                400, f"this text has {count:,} tokens: give from 2 to {_MOST_TOKENS:,}",
                code="bad_length",
            )  # fmt: skip
        return found

    async def load(self, request: LoadRequest) -> AsyncIterator[dict[str, Any]]:
        """What is going on, and then the model."""
        shelf = self.studio.models
        async for step in self.studio.load(lambda say: shelf.add(request.reference, say)):
            if step.line:
                yield {"progress": step.line}
            else:
                yield {"model": shelf.about(step.result)}

    async def look(self, request: LookRequest) -> AsyncIterator[dict[str, Any]]:
        """The tokens, then layer by layer the heads."""
        found = await self.studio.work(self.looked, request)
        loaded = self.studio.models.get(request.model)
        yield {"tokens": found.tokens}
        async for step in self.studio.load(lambda say: _look(loaded, found, say)):
            if step.line:
                yield step.line
            else:
                yield {"every": step.result, "kept": found.trace is not None}

    async def head(self, request: HeadRequest) -> AsyncIterator[dict[str, Any]]:
        """The picture of a head, after what is going on."""
        found = await self.studio.work(self.looked, request)
        loaded = self.studio.models.get(request.model)
        if found.trace is None:
            yield {"progress": "reading the text again for this head"}
        async for step in self.studio.load(lambda say: _head(loaded, found, request)):
            yield step.result

    def row(self, request: RowRequest) -> dict[str, Any]:
        """What one token looks at. Raises: ApiError for one that is not there."""
        found = self.looked(request)
        if request.query >= len(found.ids):
            raise ApiError(400, f"token {request.query} is not in the text", code="no_token")
        weights = _row(self.studio.models.get(request.model), found, request)
        values, places = weights.topk(min(_MOST_NAMED, len(weights)))
        first = max(0, min(request.query - _MOST_ROW // 2, len(weights) - _MOST_ROW))
        part = weights[first : first + _MOST_ROW]
        return {
            "first": first,
            "weights": [round(w, 5) for w in part.tolist()],
            "top": [[p, round(w, 5)] for w, p in zip(values.tolist(), places.tolist())],
        }

    def export(self, request: LookRequest) -> str:
        """The self-contained page."""
        from lmworks.evaluation import attention_page
        from lmworks.evaluation.attention_report import MOST_ROLLOUT, explain_attention

        found, loaded = self.looked(request), self.studio.models.get(request.model)
        text = self.studio.texts.get(request.text).text
        report = explain_attention(
            loaded.model, loaded.tokenizer, text, name=request.model,
            with_rollout=found.trace is not None and len(found.ids) <= MOST_ROLLOUT,
        )  # fmt: skip
        return attention_page.render(report)


def _look(loaded: LoadedModel, found: Looked, say: Callable[[Any], None]) -> int:
    """Read the text; say each layer's heads when the layer is read. Returns: see `Overview`."""
    from lmworks.evaluation.attention_report import SMALL
    from lmworks.models.attention_summaries import Overview
    from lmworks.models.attention_trace import MOST_BYTES, all_heads, kept_bytes, trace_attention

    config = (loaded.model.encoder or loaded.model).config
    overview = Overview(found.ids, SMALL)
    fits = kept_bytes(config, all_heads(config), len(found.ids)) <= MOST_BYTES
    last: list[int] = []

    def visit(tile: Any) -> None:
        if last and last[-1] != tile.layer:
            say(_layer(overview, last[-1]))
        last.append(tile.layer)
        overview(tile)

    trace = trace_attention(loaded.model, found.ids, keep=None if fits else {}, visit=visit)
    say(_layer(overview, last[-1]))
    found.trace = trace if fits else None
    return overview.every


def _layer(overview: Any, layer: int) -> dict[str, Any]:
    heads = [head for number, head in overview.images if number == layer]
    return {
        "layer": layer,
        "heads": [
            dataclasses.asdict(overview.summaries.of(layer, head))
            | _picture(overview.images[layer, head].image())
            for head in heads
        ],
    }


def _picture(image: Any) -> dict[str, Any]:
    """Square roots of shares as bytes: small weights stay apart."""
    import numpy as np

    data = np.rint(np.sqrt(np.clip(image, 0, 1)) * 255).astype(np.uint8)
    return {"cells": len(image), "image": base64.b64encode(data.tobytes()).decode()}


def _kept(loaded: LoadedModel, found: Looked, layer: int, head: int) -> Any:
    """The trace, or one that keeps this head alone."""
    from lmworks.models.attention_trace import trace_attention

    if found.trace is not None and found.trace.holds(layer, head):
        return found.trace
    trace = trace_attention(loaded.model, found.ids, keep={layer: [head]})
    if found.trace is None:
        found.trace = trace
    return trace


def _head(loaded: LoadedModel, found: Looked, request: HeadRequest) -> dict[str, Any]:
    import torch

    from lmworks.evaluation.attention_report import LARGE
    from lmworks.models.attention_summaries import PooledImage

    image = PooledImage(len(found.ids), LARGE)
    if request.head == _ROLLOUT:
        image.add(torch.arange(len(found.ids)), _rollout(found, request.layer))
    else:
        trace = _kept(loaded, found, request.layer, request.head)
        for start, weights in trace.tiles(request.layer, request.head):
            image.add(torch.arange(start, start + len(weights)), weights)
    return {"step": image.step, **_picture(image.image())}


def _rollout(found: Looked, layer: int) -> Any:
    from lmworks.evaluation.attention_report import MOST_ROLLOUT
    from lmworks.models.attention_rollout import rollout

    if found.trace is None or len(found.ids) > MOST_ROLLOUT:
        raise ApiError(
            400, f"rollout is made of texts of up to {MOST_ROLLOUT:,} tokens", code="too_long"
        )
    if layer not in found.rollouts:
        found.rollouts = {layer: rollout(found.trace, layer=layer)}  # the last one is enough
    return found.rollouts[layer]


def _row(loaded: LoadedModel, found: Looked, request: RowRequest) -> Any:
    if request.head == _ROLLOUT:
        return _rollout(found, request.layer)[request.query]
    trace = _kept(loaded, found, request.layer, request.head)
    return trace.rows(request.layer, request.head, request.query, request.query + 1)[0]


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Let `app` answer the page."""
    routes = AttentionRoutes(studio)
    kinds = [{"kind": kind, "label": label, "meaning": m} for kind, (label, m) in KINDS.items()]

    @app.get("/api/attention")
    async def loaded() -> Response:
        known = [{"reference": name, "about": entry["about"]} for name, entry in aliases().items()]
        return JSONResponse({"models": studio.models.all(), "aliases": known, "kinds": kinds})

    @app.post("/api/attention/models")
    async def load(http: Request) -> Response:
        return stream(routes.load(parse(LoadRequest, await read_json(http, _QUESTION))))

    @app.post("/api/attention/look")
    async def look(http: Request) -> Response:
        return stream(routes.look(parse(LookRequest, await read_json(http, _QUESTION))))

    @app.post("/api/attention/head")
    async def head(http: Request) -> Response:
        return stream(routes.head(parse(HeadRequest, await read_json(http, _QUESTION))))

    @app.post("/api/attention/row")
    async def row(http: Request) -> Response:
        request = parse(RowRequest, await read_json(http, _QUESTION))
        return JSONResponse(await studio.work(routes.row, request))

    @app.post("/api/attention/export")
    async def export(http: Request) -> Response:
        request = parse(LookRequest, await read_json(http, _QUESTION))
        return HTMLResponse(await studio.work(routes.export, request))
