"""What the tokenizer page asks for.

| path | |
|---|---|
| `GET /api/tokenizers` | what is loaded, and aliases to try |
| `POST /api/tokenizers` | load a reference; events: what is going on, then the tokenizer |
| `POST /api/tokenizers/count` | events: tokens of each text under each tokenizer |
| `POST /api/tokenizers/compare` | events: the rows of `tokenizer compare`, one by one |
| `POST /api/tokenizers/changes` | the words that two tokenizers cut differently |
| `POST /api/tokenizers/view` | some rows of a text, token by token |
| `POST /api/tokenizers/merges` | how a word came together, merge by merge |
| `POST /api/tokenizers/export` | the page that `tokenizer compare --html` writes |
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lmworks.core.references import aliases
from lmworks.evaluation import tokenizer_comparison, tokenizer_page
from lmworks.evaluation.statistics import MIN_GROUPS, Interval
from lmworks.evaluation.tokenizer_comparison import Passage, TokenizerRow, passages_of
from lmworks.evaluation.tokenizer_fairness import FairnessRow, ParallelText, fairness
from lmworks.serving.bodies import read_json
from lmworks.serving.openai_types import parse
from lmworks.studio.app import Studio, stream
from lmworks.studio.tokenized import Tokenized, view
from lmworks.tokenizers.readable import readable, visible
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.trace import trace

_MOST_TOKENIZERS, _MOST_TEXTS, _MOST_ROWS, _MOST_COLUMNS = 12, 64, 400, 1000
_QUESTION = 64 << 10  # bytes of a request; texts are sent by their ids


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadRequest(_Request):
    """`POST /api/tokenizers`."""

    reference: str = Field(min_length=1, max_length=1000)


class NamedText(_Request):
    """A text by its id, and what its language is called."""

    id: str
    name: str = Field(max_length=200)


class CompareRequest(_Request):
    """Which texts under which tokenizers."""

    texts: list[NamedText] = Field(max_length=_MOST_TEXTS)
    tokenizers: list[str] = Field(max_length=_MOST_TOKENIZERS)
    allow_special: bool = False
    context: int | None = Field(default=None, ge=1)
    price: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class ChangesRequest(_Request):
    """From which tokenizer to which."""

    texts: list[NamedText] = Field(max_length=_MOST_TEXTS)
    before: str
    after: str
    most: int = Field(default=60, ge=0, le=1000)


class ViewRequest(_Request):
    """Which rows."""

    text: str
    tokenizer: str
    columns: int = Field(ge=4, le=_MOST_COLUMNS)
    first: int = Field(ge=0)
    count: int = Field(ge=1, le=_MOST_ROWS)
    allow_special: bool = False


class MergesRequest(_Request):
    """How a tokenizer puts a word together."""

    tokenizer: str
    word: str = Field(max_length=120)


class TokenizerRoutes:
    """The work behind the routes."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.tokenized = Tokenized()

    def tokenizers(self, names: list[str]) -> dict[str, PipelineTokenizer]:
        """Raises: ApiError (404) for one that is not loaded."""
        return {name: self.studio.tokenizers.get(name) for name in names}

    def passages(self, texts: list[NamedText]) -> list[Passage]:
        """Raises: ApiError (404) for a text that is gone."""
        return [
            Passage(text=part, source=named.id, language=named.name)
            for named in texts
            for part in passages_of(self.studio.texts.get(named.id).text)
        ]

    async def load(self, request: LoadRequest) -> AsyncIterator[dict[str, Any]]:
        """What is going on, and then the tokenizer."""
        shelf = self.studio.tokenizers
        async for step in self.studio.load(lambda say: shelf.add(request.reference, say)):
            if step.line:
                yield {"progress": step.line}
            else:
                yield {"tokenizer": shelf.about(step.result)}

    async def count(self, request: CompareRequest) -> AsyncIterator[dict[str, Any]]:
        """Text by text, so that figures are there early."""
        texts = [self.studio.texts.get(named.id) for named in request.texts]
        for name, tokenizer in self.tokenizers(request.tokenizers).items():
            for text in texts:
                special = request.allow_special
                found = await self.studio.work(self.tokenized.text, tokenizer, text, special)
                yield {"tokenizer": name, "text": text.id, "tokens": len(found.ids)}

    async def compare(self, request: CompareRequest) -> AsyncIterator[dict[str, Any]]:
        """The rows of a comparison, one tokenizer after the other."""
        tokenizers = self.tokenizers(request.tokenizers)
        passages = await self.studio.work(self.passages, request.texts)
        yield {"passages": len(passages)}
        if not passages:
            return
        rows = tokenizer_comparison.compared(
            *(tokenizers, passages),
            context=request.context,
            price=request.price,
            allow_special=request.allow_special,
        )
        while found := await self.studio.work(next, rows, None):
            row, languages = found
            yield {"row": _plain(row), "languages": [dataclasses.asdict(own) for own in languages]}
        if fair := await self.studio.work(self.fairness, request):
            yield {"fairness": [_plain(own) for own in fair]}

    def fairness(self, request: CompareRequest) -> list[FairnessRow]:
        """Parity with intervals, where the texts have equally many lines; else nothing."""
        sentences = {
            named.name: [
                line for line in self.studio.texts.get(named.id).text.splitlines() if line.strip()
            ]
            for named in request.texts
        }
        sizes = {len(lines) for lines in sentences.values()}
        if len(sentences) < 2 or len(sizes) > 1 or min(sizes) < MIN_GROUPS:
            return []
        groups = [str(number) for number in range(min(sizes))]
        parallel = ParallelText(sentences=sentences, groups=groups)
        return fairness(self.tokenizers(request.tokenizers), parallel)

    def changes(self, request: ChangesRequest) -> dict[str, Any]:
        """The words that weigh most, and the sums over all."""
        before, after = self.tokenizers([request.before, request.after]).values()
        texts = (self.studio.texts.get(named.id).text for named in request.texts)
        changed = tokenizer_comparison.changed_words(before, after, texts)
        return {
            "num_changed": len(changed),
            "saved": sum(word.saved for word in changed),
            "gained": sum(word.saved for word in changed if word.saved > 0),
            "words": [
                {
                    "word": visible(word.word),
                    "count": word.count,
                    "before": [visible(part) for part in word.before],
                    "after": [visible(part) for part in word.after],
                    "saved": word.saved,
                }
                for word in changed[: request.most]
            ],
        }

    def view(self, request: ViewRequest) -> dict[str, Any]:
        """Some rows under one tokenizer."""
        text = self.studio.texts.get(request.text)
        tokenizer = self.studio.tokenizers.get(request.tokenizer)
        found = self.tokenized.text(tokenizer, text, request.allow_special)
        return view(found, self.tokenized.rows(text, request.columns), request.first, request.count)

    def merges(self, request: MergesRequest) -> list[list[dict[str, Any]]]:
        """For each piece of the word its states: the symbols, and which merge made them."""
        tokenizer = self.studio.tokenizers.get(request.tokenizer)
        return [
            [
                {
                    "rank": step.rank if step else None,
                    "place": step.place if step else None,
                    "symbols": [readable(tokenizer.token_bytes(i)) for i in symbols],
                }
                for step, symbols in piece.states()
            ]
            for piece in trace(tokenizer, request.word)
        ]

    def export(self, request: CompareRequest) -> str:
        """The self-contained page."""
        tokenizers = self.tokenizers(request.tokenizers)
        passages = self.passages(request.texts)
        found = tokenizer_comparison.compare(
            tokenizers, passages, context=request.context, price=request.price
        )
        changed = []
        if len(tokenizers) == 2:
            before, after = tokenizers.values()
            texts = [passage.text for passage in passages]
            changed = tokenizer_comparison.changed_words(before, after, texts)
        return tokenizer_page.render(found, tokenizers, changed, self.fairness(request))


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Let `app` answer the page."""
    routes = TokenizerRoutes(studio)

    @app.get("/api/tokenizers")
    async def loaded() -> Response:
        known = [{"reference": name, "about": entry["about"]} for name, entry in aliases().items()]
        return JSONResponse({"tokenizers": studio.tokenizers.all(), "aliases": known})

    @app.post("/api/tokenizers")
    async def load(http: Request) -> Response:
        return stream(routes.load(parse(LoadRequest, await read_json(http, _QUESTION))))

    @app.post("/api/tokenizers/count")
    async def count(http: Request) -> Response:
        return stream(routes.count(parse(CompareRequest, await read_json(http, _QUESTION))))

    @app.post("/api/tokenizers/compare")
    async def compare(http: Request) -> Response:
        return stream(routes.compare(parse(CompareRequest, await read_json(http, _QUESTION))))

    @app.post("/api/tokenizers/changes")
    async def changes(http: Request) -> Response:
        request = parse(ChangesRequest, await read_json(http, _QUESTION))
        return JSONResponse(await studio.work(routes.changes, request))

    @app.post("/api/tokenizers/view")
    async def some_rows(http: Request) -> Response:
        request = parse(ViewRequest, await read_json(http, _QUESTION))
        return JSONResponse(await studio.work(routes.view, request))

    @app.post("/api/tokenizers/merges")
    async def merges(http: Request) -> Response:
        request = parse(MergesRequest, await read_json(http, _QUESTION))
        return JSONResponse(await studio.work(routes.merges, request))

    @app.post("/api/tokenizers/export")
    async def export(http: Request) -> Response:
        request = parse(CompareRequest, await read_json(http, _QUESTION))
        return HTMLResponse(await studio.work(routes.export, request))


def _plain(row: TokenizerRow | FairnessRow) -> dict[str, Any]:
    """A row for JSON, which has no infinity: the ends of an interval that is not known are null."""
    values = dataclasses.asdict(row)
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval) and not value.known:
            values[field.name] |= {"low": None, "high": None}
    return values
