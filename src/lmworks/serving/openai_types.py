"""What the requests of the OpenAI API share, and how they are checked.

Fields that we don't know are ignored, as clients send many. Types are strict, as there: `"5"` is
not a number. Messages hold text only: an image or a sound in `content` is refused, not dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from lmworks.inference.base import ChatModel
from lmworks.serving.errors import ApiError
from lmworks.serving.openai_answers import Answer
from lmworks.serving.streaming import Opener

MAX_CHOICES = 32
_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "logit_bias", "seed", "stop")
_PENALTIES = ("frequency_penalty", "presence_penalty")
R = TypeVar("R", bound=pydantic.BaseModel)


def _valid_text(text: str) -> str:
    text.encode()  # a lone surrogate is valid JSON and no text
    return text


Text = Annotated[str, pydantic.AfterValidator(_valid_text)]


class Strict(BaseModel):
    """Types as written, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn; `content` may come in parts, which are joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As templates know it: `developer` is the newer word for `system`."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationRequest(Strict):
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

    def openers(self, model: ChatModel) -> list[Opener]:
        """What opens the stream of each choice. Raises: ApiError for too many or too few."""
        raise NotImplementedError

    def answer(self) -> Answer:
        """What builds the answer's objects."""
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
