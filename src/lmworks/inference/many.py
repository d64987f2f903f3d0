"""Many prompts to one model: several are under way at once, and answers come in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.inference.base import collect

if TYPE_CHECKING:
    from lmworks.inference.base import Messages
    from lmworks.inference.local import LocalChat

_AT_ONCE = 8


def answers_to(
    chat: LocalChat, prompts: Sequence[str | Messages], **sampling: Any
) -> Iterator[str | None]:
    """The model's answer to each prompt, messages or plain text that is gone on with.

    Args:
        sampling: fields of `Sampling`.
    Yields: the text, None for a prompt that leaves no room for an answer.
    Raises: UserError for wrong settings.
    """
    for first in range(0, len(prompts), _AT_ONCE):
        under_way: list[Any] = []
        for prompt in prompts[first : first + _AT_ONCE]:
            ask = chat.stream_text if isinstance(prompt, str) else chat.stream
            try:
                under_way.append(ask(prompt, **sampling))  # type: ignore[arg-type]
            except UserError:  # it fills the context
                under_way.append(None)
        for stream in under_way:
            yield None if stream is None else collect(stream).text
