"""What a request may cost, before any back end has counted it.

The prompt is estimated from its bytes; `bytes_per_token: 1` makes that a bound for tokenizers that
fall back to bytes. What is written is bounded by the limit that is sent along, so that is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.config import PriceConfig
from lmworks.serving.gateway.limits import Limits, money

_PER_REQUEST = 3  # how an answer begins
_PER_MESSAGE = 4  # role and marks around each, in common templates
_PER_IMAGE = 1000  # a picture or a sound, whatever its bytes
_LIMIT_NAMES = {
    "/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/completions": ("max_tokens",),
    "/responses": ("max_output_tokens",),
}
_MAX_CHOICES = 128


def prompt_tokens(path: str, body: Mapping[str, Any], bytes_per_token: float) -> int:
    """About how many tokens the prompt has. Arrays of token ids are counted."""
    texts = [body.get(name) for name in ("messages", "prompt", "input", "documents", "query")]
    texts += [body.get(name) for name in ("instructions", "tools", "response_format")]
    size, whole = _measure(texts, 0)
    messages = body.get("messages")
    extra = _PER_MESSAGE * len(messages) if isinstance(messages, list) else 0
    return math.ceil(size / bytes_per_token) + whole + extra + _PER_REQUEST


def _measure(value: Any, depth: int) -> tuple[float, int]:
    """(bytes of text, tokens that are counted otherwise)."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass")), 0
    if isinstance(value, int) and not isinstance(value, bool):
        return 0, 1
    if depth > 100:
        raise ApiError(400, "the request is nested too deeply", code="invalid_value")
    if isinstance(value, Mapping):
        if value.get("type") in ("image_url", "input_image", "image", "input_audio", "file"):
            return 0, _PER_IMAGE
        parts = [_measure(part, depth + 1) for part in value.values()]
    elif isinstance(value, list):
        parts = [_measure(part, depth + 1) for part in value]
    else:
        return 0, 0
    return sum(size for size, _ in parts), sum(count for _, count in parts)


def answer_limit(path: str, body: Mapping[str, Any]) -> int | None:
    """The limit that the client set on each choice. Raises: ApiError for one that is no limit."""
    for name in _LIMIT_NAMES.get(path, ()):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 10**9:
            message = f"{name}: must be a whole number from 1, not {str(value)[:40]!r}"
            raise ApiError(400, message, param=name, code="invalid_value")
        return value
    return None


def limit_name(path: str) -> str:
    """What the endpoint calls that limit; empty where nothing is written."""
    names = _LIMIT_NAMES.get(path, ())
    return names[0] if names else ""


def num_choices(path: str, body: Mapping[str, Any]) -> int:
    """How many answers are asked for. Raises: ApiError."""
    if not limit_name(path):
        return 0
    count = 1
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_CHOICES:
            message = f"{name}: must be a whole number from 1 to {_MAX_CHOICES}"
            raise ApiError(400, message, param=name, code="invalid_value")
        count = max(count, value)
    prompt = body.get("prompt")
    if path == "/completions" and isinstance(prompt, list) and prompt:
        count *= 1 if isinstance(prompt[0], int) else len(prompt)
    return count


def fitting_limit(
    most: int,
    prompt: int,
    choices: int,
    left: Mapping[str, int],
    limits: Limits,
    prices: Sequence[PriceConfig],
) -> int:
    """The longest answer, up to `most`, that what is left allows; 1 where nothing does."""
    bounds = [most]
    if "tokens" in left:
        bounds.append((left["tokens"] - prompt) // choices)
    if limits.tokens_per_minute is not None:
        bounds.append((int(limits.tokens_per_minute) - prompt) // choices)
    if "nano" in left:
        for price in prices:
            spare = left["nano"] - money(price, prompt, 0)
            if price.output > 0:
                bounds.append(int(spare / (price.output * 1000 * choices)))
    return max(1, min(bounds))
