"""`POST /v1/embeddings`: texts or token ids in, vectors out."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from lmworks.core.errors import UserError
from lmworks.inference.embedding import Embedder
from lmworks.inference.text_rows import Row, TextTooLong
from lmworks.serving.bodies import read_json
from lmworks.serving.encoders import Work, encoded, lent_embedder
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_types import Strict, Text, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service

MAX_INPUTS = 2048  # as there


class EmbeddingsRequest(Strict):
    """`POST /v1/embeddings`. `truncate` and `prompt` are ours."""

    model: str
    input: Text | list[Text] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Text | None = None
    truncate: bool | None = None  # cut what is too long instead of refusing it
    prompt: Text | None = None  # the name of one of the model's prompts

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, or the ids of each."""
        given: Any = self.input
        single = isinstance(given, str) or (given and isinstance(given[0], int))
        return [given] if single else given


def embed(request: EmbeddingsRequest, model: Any, work: Work) -> tuple[np.ndarray, int]:
    """The vectors, and the tokens that were read. Raises: ApiError (400)."""
    inputs = request.inputs
    if not 1 <= len(inputs) <= MAX_INPUTS:
        message = f"input: {len(inputs)} texts are given, 1 to {MAX_INPUTS} can be"
        raise ApiError(400, message, param="input", code="invalid_value")
    with lent_embedder(model) as embedder:
        if request.dimensions is not None and request.dimensions > embedder.dimensions:
            message = f"dimensions: this model's vectors have {embedder.dimensions}"
            raise ApiError(400, message, param="dimensions", code="invalid_value")
        rows = _rows(embedder, request, inputs)
        vectors = work.wait(embedder.submit(rows))
        return embedder.finish(vectors, request.dimensions), sum(map(len, rows))


def _rows(embedder: Embedder, request: EmbeddingsRequest, inputs: Any) -> list[Row]:
    cut = bool(request.truncate)
    try:
        if isinstance(inputs[0], str):
            return embedder.text_rows(inputs, request.prompt, truncate=cut)
        size = embedder.model.config.vocab_size
        return embedder.rows.of_ids(inputs, vocab_size=size, truncate=cut)
    except TextTooLong as error:
        raise ApiError(400, str(error), param="input", code="context_length_exceeded") from None
    except UserError as error:
        param = "prompt" if "prompt" in str(error) else "input"
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from None


def _answer(request: EmbeddingsRequest, found: tuple[np.ndarray, int]) -> dict[str, Any]:
    vectors, tokens = found
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(request, vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _encoded(request: EmbeddingsRequest, vector: np.ndarray) -> Any:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/embeddings", **takes(app, EmbeddingsRequest))
    async def embeddings(http: Request) -> Response:
        request = parse(EmbeddingsRequest, await read_json(http, service.max_body_bytes))
        work, answer = partial(embed, request), partial(_answer, request)
        return await encoded(http, service, request.model, work, answer)
