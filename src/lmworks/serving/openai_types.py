"""What the requests of the OpenAI API share, and how they are checked.

Fields that we don't know are ignored, as clients send many. Types are strict, as there: `"5"` is
not a number. Messages hold text only: an image or a sound in `content` is refused, not dropped.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from lmworks.inference.base import ChatModel
from lmworks.serving.errors import ApiError
from lmworks.serving.generation import Opener
from lmworks.serving.openai_answers import Answer

MAX_CHOICES = 32
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "logit_bias", "seed", "stop")
_PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
_FORM = ("response_format", "tools", "tool_choice", "parallel_tool_calls")
R = TypeVar("R", bound=pydantic.BaseModel)


def _valid_text(text: str) -> str:
    text.encode()  # a lone surrogate is valid JSON and no text
    return text


Text = Annotated[str, pydantic.AfterValidator(_valid_text)]


def _valid_json(value: Any) -> Any:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


Json = Annotated[dict[str, Any], pydantic.AfterValidator(_valid_json)]


class Strict(BaseModel):
    """Types as written, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class CalledFunction(Strict):
    """Name and arguments (JSON text) of a call."""

    name: Text
    arguments: Text


class CalledTool(Strict):
    """A call that the model made in an earlier turn."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One turn; `content` may come in parts, which are joined."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: Text | None = None

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("needs a content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant has tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("needs the tool_call_id of the call that it answers")
        return self

    def plain(self) -> dict[str, Any]:
        """As templates know it: `developer` is the newer word for `system`."""
        parts = self.content
        if isinstance(parts, list):
            parts = "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": parts}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        beside = {"name": self.name, "tool_call_id": self.tool_call_id}
        return message | {key: value for key, value in beside.items() if value is not None}


# Bounds as there. Nothing here reads it but the responses that are kept.
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64), pydantic.AfterValidator(_valid_text)],
        Annotated[str, Field(max_length=512), pydantic.AfterValidator(_valid_text)],
    ],
    Field(max_length=16),
]


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    resumable: bool | None = None  # ours: the answer waits for a client that lost the connection


class GenerationRequest(Strict):
    """What both kinds of request share. Ranges are checked by `Sampling`."""

    operation: ClassVar[str]
    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    response_format: Json | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    priority: int | None = None  # ours: higher goes first

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def resumable(self) -> bool:
        return bool(self.stream_options and self.stream_options.resumable)

    @property
    def num_drawn(self) -> int:
        """How many answers are drawn for each prompt; the best `n` of them are given."""
        return self.best_of or self.n or 1

    @property
    @abstractmethod
    def top_logprobs_wanted(self) -> int | None:
        """How many likeliest tokens to name beside each; None: no log-probabilities."""

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """The most tokens of an answer, whatever the API calls it."""

    @abstractmethod
    def openers(self, model: ChatModel, options: Mapping[str, Any]) -> list[Opener]:
        """See `turns.Turn`."""

    @abstractmethod
    def reply(self) -> Answer:
        """See `turns.Turn`."""

    def traced(self) -> dict[str, Any]:
        """See `turns.Turn`."""
        named = {
            "gen_ai.request.max_tokens": self.token_limit,
            "gen_ai.request.temperature": self.temperature,
            "gen_ai.request.top_p": self.top_p,
            "gen_ai.request.top_k": self.top_k,
            "gen_ai.request.frequency_penalty": self.frequency_penalty,
            "gen_ai.request.presence_penalty": self.presence_penalty,
            "gen_ai.request.seed": self.seed,
            "gen_ai.request.choice.count": self.n if self.n != 1 else None,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return {"gen_ai.operation.name": self.operation, **given}

    @pydantic.model_validator(mode="after")
    def _best_of_holds_n(self) -> GenerationRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError(f"best_of: must be at least n, which is {self.n or 1}")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ValueError(
                "best_of: which answers are best is known at the end: leave stream out"
            )
        return self

    def own_name(self, param: str) -> str:
        """See `turns.Turn`."""
        return param

    def sampling(self, choice: int = 0) -> dict[str, Any]:
        """The settings given, for `ChatModel`. Further choices of a seeded request differ."""
        names = (*_SETTINGS, *_PENALTIES, *_FORM)
        given = {name: getattr(self, name, None) for name in names}
        given |= {"max_tokens": self.token_limit, "logprobs": self.top_logprobs_wanted}
        if self.num_drawn > (self.n or 1) and given["logprobs"] is None:
            given["logprobs"] = 0  # the best are told by them
        if self.seed is not None:
            given["seed"] = self.seed + choice
        if isinstance(self.stop, list):
            given["stop"] = tuple(self.stop)
        return {name: value for name, value in given.items() if value is not None}


def parse(kind: type[R], values: Any) -> R:
    """A checked request. Raises: ApiError (400) naming the first parameter at fault."""
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as failure:
        first = _clearest(failure.errors())
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # told by the request as a whole, which names the parameter itself
        raise ApiError(400, message, param=message.partition(":")[0], code="invalid_value")
    param = _param(first["loc"])
    if first["type"] == "missing":
        message = "is missing"
    elif "surrogates" in message:
        message = "holds a lone surrogate, which is no valid Unicode text"
    raise ApiError(400, f"{param}: {message}", param=param, code="invalid_type")


def _clearest(errors: Sequence[Any]) -> Any:
    """The first error; where a value fits no member of a union, that of the member it is nearest
    to, whose place is inside the first's and the deepest."""
    place = _param(errors[0]["loc"] or ("",))
    inside = (place + ".", place + "[")
    nearer = [e for e in errors if e["loc"] and _param(e["loc"]).startswith(inside)]
    return max(nearer, key=lambda e: len(e["loc"])) if nearer else errors[0]


# Names that pydantic adds for the members of a union are not the client's.
_FIELDS = {"role", "content", "type", "text", "include_usage", "tool_calls", "function", "name"}
_FIELDS |= {"arguments", "id", "tool_call_id"}


def _param(loc: Sequence[int | str]) -> str:
    param = str(loc[0])
    for part in loc[1:]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part in _FIELDS:
            param += f".{part}"
    return param
