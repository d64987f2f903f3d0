"""`POST /v1/completions`: raw text or token ids in, their continuation out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import pydantic
from fastapi import FastAPI, Request
from fastapi.responses import Response

from lmworks.inference.base import ChatModel, Completion, Delta
from lmworks.serving.bodies import read_json
from lmworks.serving.errors import ApiError
from lmworks.serving.generation import Opener
from lmworks.serving.openai_answers import Answer, text_logprobs
from lmworks.serving.openai_types import MAX_CHOICES, GenerationRequest, Text, parse
from lmworks.serving.openapi import takes
from lmworks.serving.service import Service


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. A prompt is text or token ids; a list of them, one choice each."""

    operation: ClassVar[str] = "text_completion"
    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = None
    suffix: None = None  # filling in the middle is not offered: better refused than ignored

    def own_name(self, param: str) -> str:
        return "prompt" if param == "messages" else param

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

    def openers(self, model: ChatModel, options: Mapping[str, Any]) -> list[Opener]:
        choices = [(prompt, i) for prompt in self.prompts for i in range(self.num_drawn)]
        if not 1 <= len(choices) <= MAX_CHOICES:
            message = f"prompt: {len(choices)} choices are asked for, 1 to {MAX_CHOICES} can be"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        return [
            functools.partial(model.stream_text, prompt, **self.sampling(i), **options)
            for prompt, i in choices
        ]

    def reply(self) -> TextAnswer:
        return TextAnswer("text_completion", "cmpl", self)

    @pydantic.model_validator(mode="after")
    def _echo_is_text(self) -> CompletionRequest:
        if self.echo and (self.logprobs is not None or not all_texts(self.prompts)):
            raise ValueError("echo: is there for prompts of text, and without logprobs")
        return self


def all_texts(prompts: list[str | list[int]]) -> TypeGuard[list[str]]:
    """Whether none of the prompts is made of ids."""
    return all(isinstance(prompt, str) for prompt in prompts)


class TextAnswer(Answer):
    """Choices that hold a text, or a piece of one."""

    _request: CompletionRequest

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """See `Answer`; with `echo` each text begins with its prompt."""
        answer = super().whole(completions)
        for index, choice in enumerate(answer["choices"]):
            choice["text"] = self._echo(index) + choice["text"]
        return answer

    def piece(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """See `Answer`."""
        chunk = super().piece(index, delta, first=first)
        if first:
            chunk["choices"][0]["text"] = self._echo(index) + delta.text
        return chunk

    def _echo(self, index: int) -> str:
        prompt = self._request.prompts[index // (self._request.n or 1)]
        return prompt if self._request.echo and isinstance(prompt, str) else ""

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        logprobs = text_logprobs(completion.logprobs)
        reason = completion.finish_reason
        return {"text": completion.text, "logprobs": logprobs, "finish_reason": reason}

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        return {"text": delta.text, "logprobs": text_logprobs(delta.logprobs or None)}


def add_routes(app: FastAPI, service: Service) -> None:
    """See `apis`."""

    @app.post("/v1/completions", **takes(app, CompletionRequest, streams=True))
    async def completions(http: Request) -> Response:
        values = await read_json(http, service.max_body_bytes)
        return await service.generate(http, parse(CompletionRequest, values))
