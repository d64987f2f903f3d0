"""The requests of the OpenAI API, checked, and its answers.

Fields that we don't know are ignored, as clients send many. Types are strict, as there: `"5"` is
not a number. Messages hold text only: an image or a sound in `content` is refused, not dropped.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from lmworks.inference.base import Completion, Delta, TokenLogprob, Usage
from lmworks.serving.errors import ApiError

MAX_CHOICES = 32
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "logit_bias", "seed", "stop")
_PENALTIES = ("frequency_penalty", "presence_penalty")
R = TypeVar("R", bound=pydantic.BaseModel)


def _valid_text(text: str) -> str:
    text.encode()  # a lone surrogate is valid JSON and no text
    return text


Text = Annotated[str, pydantic.AfterValidator(_valid_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn; `content` may come in parts, which are joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As templates know it: `developer` is the newer word for `system`."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationRequest(_Strict):
    """What both kinds of request share. Ranges are checked by `Sampling`."""

    prompt_param: ClassVar[str]
    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def top_logprobs_wanted(self) -> int | None:
        raise NotImplementedError

    @property
    def token_limit(self) -> int | None:
        raise NotImplementedError

    def own_name(self, param: str) -> str:
        """What the client calls a setting of `Sampling`."""
        return param

    def sampling(self, choice: int = 0) -> dict[str, Any]:
        """The settings given, for `ChatModel`. Further choices of a seeded request differ."""
        given = {name: getattr(self, name) for name in (*_SETTINGS, *_PENALTIES)}
        given |= {"max_tokens": self.token_limit, "logprobs": self.top_logprobs_wanted}
        if self.seed is not None:
            given["seed"] = self.seed + choice
        if isinstance(self.stop, list):
            given["stop"] = tuple(self.stop)
        return {name: value for name, value in given.items() if value is not None}


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    prompt_param: ClassVar[str] = "messages"
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def token_limit(self) -> int | None:
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    def own_name(self, param: str) -> str:
        if param == "max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return "top_logprobs" if param == "logprobs" else param

    @property
    def top_logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


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


def parse(kind: type[R], values: Any) -> R:
    """A checked request. Raises: ApiError (400) naming the first parameter at fault."""
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as failure:
        first = failure.errors()[0]
    param = _param(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is missing"
    elif "surrogates" in message:
        message = "holds a lone surrogate, which is no valid Unicode text"
    raise ApiError(400, f"{param}: {message}", param=param, code="invalid_type")


# Names that pydantic adds for the members of a union are not the client's.
_FIELDS = {"role", "content", "type", "text", "include_usage"}


def _param(loc: Sequence[int | str]) -> str:
    param = str(loc[0])
    for part in loc[1:]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in _FIELDS:
            param += f".{part}"
    return param


class Answer:
    """Builds the answer objects of one request; the two kinds differ in the choice only."""

    def __init__(self, kind: str, id_prefix: str, model: str) -> None:
        self._kind, self._model = kind, model
        self._id = f"{id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @classmethod
    def to(cls, request: GenerationRequest) -> Answer:
        """The answer that fits a request."""
        if isinstance(request, ChatCompletionRequest):
            return ChatAnswer("chat.completion", "chatcmpl", request.model)
        return Answer("text_completion", "cmpl", request.model)

    def whole(self, completions: Sequence[Completion], usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [self._whole_choice(c) | {"index": i} for i, c in enumerate(completions)]
        return self._object(self._kind, choices) | {"usage": usage_object(usage)}

    def piece(self, index: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """One chunk of a streamed answer."""
        choice = self._piece_choice(delta, first) | {"index": index}
        choice["finish_reason"] = delta.finish_reason
        return self._object(self._chunk_kind, [choice])

    def usage_piece(self, usage: Usage) -> dict[str, Any]:
        """The last chunk, if it was asked for."""
        return self._object(self._chunk_kind, []) | {"usage": usage_object(usage)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head | {"choices": choices}

    @property
    def _chunk_kind(self) -> str:
        return self._kind

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        logprobs = _text_logprobs(completion.logprobs)
        reason = completion.finish_reason
        return {"text": completion.text, "logprobs": logprobs, "finish_reason": reason}

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        return {"text": delta.text, "logprobs": _text_logprobs(delta.logprobs or None)}


class ChatAnswer(Answer):
    """Choices that hold a message, or a delta of one."""

    @property
    def _chunk_kind(self) -> str:
        return self._kind + ".chunk"

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        return {
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": _chat_logprobs(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }

    def _piece_choice(self, delta: Delta, first: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"role": "assistant"} if first else {}
        if first or delta.text:
            content["content"] = delta.text
        return {"delta": content, "logprobs": _chat_logprobs(delta.logprobs or None)}


def usage_object(usage: Usage) -> dict[str, int]:
    """`usage` as clients read it."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _chat_logprobs(entries: Iterable[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = []
    for entry in entries:
        top = [_logprob_object(token, logprob) for token, logprob in entry.top]
        content.append(_logprob_object(entry.token, entry.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _logprob_object(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _text_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [dict(entry.top) for entry in entries],
    }
