"""`POST /v1/completions`: raw text or token ids in, their continuation out."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from lmworks.inference.base import ChatModel, Completion, Delta
from lmworks.serving.bodies import read_json
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_answers import Answer, text_logprobs
from lmworks.serving.openai_types import MAX_CHOICES, GenerationRequest, Text, parse
from lmworks.serving.service import Service
from lmworks.serving.streaming import Opener


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. A prompt is text or token ids; a list of them, one choice each."""

    prompt_param: ClassVar[str] = "prompt"
    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: int | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if single else list(prompt)

    def openers(self, model: ChatModel) -> list[Opener]:
        choices = [(prompt, i) for prompt in self.prompts for i in range(self.n or 1)]
        if not 1 <= len(choices) <= MAX_CHOICES:
            message = f"prompt: {len(choices)} choices are asked for, 1 to {MAX_CHOICES} can be"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        return [
            functools.partial(model.stream_text, prompt, **self.sampling(i))
            for prompt, i in choices
        ]

    def answer(self) -> TextAnswer:
        return TextAnswer("text_completion", "cmpl", self.model)


class TextAnswer(Answer):
    """Choices that hold a text, or a piece of one."""

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        logprobs = text_logprobs(completion.logprobs)
        reason = completion.finish_reason
        return {"text": completion.text, "logprobs": logprobs, "finish_reason": reason}

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        return {"text": delta.text, "logprobs": text_logprobs(delta.logprobs or None)}


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(CompletionRequest, values))
