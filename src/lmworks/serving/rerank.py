"""`POST /v1/rerank`: a query and texts in, the texts' numbers by how well they answer it out.

The shape is that of Cohere's and Jina's endpoints. `method` says how the scores came about: by a
cross-encoder, or as the cosine of two vectors.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from lmworks.inference.text_rows import TextTooLong
from lmworks.serving.bodies import read_json
from lmworks.serving.encoders import Work, encoded, lent_reranker
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_types import Strict, Text, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service

MAX_DOCUMENTS = 1000


class Document(Strict):
    """A text as an object, as both endpoints take it."""

    text: Text


class RerankRequest(Strict):
    """`POST /v1/rerank`. `raw_scores` is ours."""

    model: str
    query: Annotated[Text, Field(min_length=1)]
    documents: Annotated[list[Text | Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    truncate: bool | None = None  # False refuses texts that are too long
    raw_scores: bool | None = None  # a cross-encoder's numbers before the sigmoid

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


def rerank(request: RerankRequest, model: Any, work: Work) -> tuple[np.ndarray, str, int]:
    """Scores (N,), how they came about, and the tokens that were read. Raises: ApiError (400)."""
    with lent_reranker(model) as reranker:
        cut = request.truncate is not False
        try:
            rows = reranker.rows(request.query, request.texts, truncate=cut)
        except TextTooLong as error:
            message = f"documents: {error}"
            code = "context_length_exceeded"
            raise ApiError(400, message, param="documents", code=code) from None
        scores = reranker.finish(work.wait(reranker.submit(rows)), raw=bool(request.raw_scores))
        return scores, reranker.method, sum(map(len, rows))


def _answer(request: RerankRequest, found: tuple[np.ndarray, str, int]) -> dict[str, Any]:
    scores, method, tokens = found
    order = np.argsort(-scores, kind="stable")[: request.top_n]
    texts = request.texts
    results = []
    for index in order.tolist():
        result: dict[str, Any] = {"index": index, "relevance_score": float(scores[index])}
        if request.return_documents:
            result["document"] = {"text": texts[index]}
        results.append(result)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": request.model,
        "method": method,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    async def rank(http: Request) -> Response:
        request = parse(RerankRequest, await read_json(http, service.max_body_bytes))
        work, answer = partial(rerank, request), partial(_answer, request)
        return await encoded(http, service, request.model, work, answer)

    # Cohere's client asks at /v2 since its newer one; Jina's at /v1.
    app.post("/v1/rerank", **takes(app, RerankRequest))(rank)
    app.post("/v2/rerank", include_in_schema=False)(rank)
