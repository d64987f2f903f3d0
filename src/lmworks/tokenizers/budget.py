"""What a chat request costs in tokens, part by part, and exactly in the whole.

The whole is the rendered template through `encode_chat`, plus the pictures by their model's rule
(image_tokens.py). A picture's placeholder, where the template writes one, gives way to its tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.tokenizers import image_tokens
from lmworks.tokenizers.attribution import ANSWER, TOOLS, Share, attribute
from lmworks.tokenizers.image_size import Size
from lmworks.tokenizers.image_tokens import ImageRule
from lmworks.tokenizers.requests import Image, Request, for_template, images_of

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One row of a budget, in tokens. `kind` is message, tools or answer (what begins it)."""

    kind: str
    index: int | None = None
    role: str = ""
    content: int = 0
    template: int = 0
    images: int = 0

    @property
    def tokens(self) -> int:
        """All of it."""
        return self.content + self.template + self.images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """A request in tokens; the parts add up to `tokens`."""

    parts: tuple[Part, ...]
    tokens: int

    def of(self, name: str) -> int:
        """Tokens of `content`, `template` or `images` in all messages and tools."""
        return sum(getattr(part, name) for part in self.parts)


class Counter:
    """Counts requests for one tokenizer and one rule for pictures.

    Args:
        image_rule: a name in `IMAGE_RULES`; needed only where there are pictures.
        image_size: (width, height) taken for pictures that are only linked.
    Raises: UserError for an unknown rule.
    """

    def __init__(
        self,
        tokenizer: PipelineTokenizer,
        *,
        image_rule: str = "",
        image_size: Size | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._rule = image_tokens.image_rule(image_rule) if image_rule else None
        self._unknown = image_size

    def tokens(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> int:
        """The exact number of tokens of a request in OpenAI's shape."""
        ids = self.tokenizer.encode_chat(self._rendered(messages), tools=list(tools) or None)
        return len(ids) + sum(self._images(messages, ids))

    def budget(self, request: Request) -> Budget:
        """The number, and what it is made of."""
        tools = list(request.tools) or None
        ids, shares = attribute(self.tokenizer, self._rendered(request.messages), tools)
        images = self._images(request.messages, ids)
        parts = [
            _part("message", shares[index], index=index, role=message["role"], images=count)
            for index, (message, count) in enumerate(zip(request.messages, images))
        ]
        if tools:
            parts.insert(0, _part("tools", shares[TOOLS]))
        parts.append(_part("answer", shares[ANSWER]))
        return Budget(parts=tuple(parts), tokens=sum(part.tokens for part in parts))

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [for_template(dict(message), parts=self._takes_parts) for message in messages]

    @functools.cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads a list of parts as it reads a text."""
        probe = "PROBE"
        try:
            texts = [
                self.tokenizer.render_chat([{"role": "user", "content": content}])
                for content in (probe, [{"type": "text", "text": probe}])
            ]
        except UserError:
            return False
        return texts[0] == texts[1]

    def _images(self, messages: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> list[int]:
        """Tokens that each message's pictures add to those in `ids`."""
        found = [
            images_of(dict(message), f"messages[{index}]", self._unknown)
            for index, message in enumerate(messages)
        ]
        number = sum(map(len, found))
        if not number:
            return [0] * len(messages)
        if self._rule is None:
            raise UserError(
                "the request holds images: say by --images which rule counts their tokens, "
                "for example --images qwen2-vl"
            )
        written = self._is_written(self._rule, number, ids)
        return [sum(_tokens(image, self._rule, written) for image in some) for some in found]

    def _is_written(self, rule: ImageRule, number: int, ids: Sequence[int]) -> bool:
        """Whether the template wrote a placeholder for each picture."""
        placeholder = self.tokenizer.vocabulary.added_ids.get(rule.placeholder)
        return placeholder is not None and ids.count(placeholder) == number


def _tokens(image: Image, rule: ImageRule, written: bool) -> int:
    width, height = image.size
    tokens = rule.count(width, height, image.detail) + rule.around
    return tokens - 1 if written else tokens + rule.written


def _part(kind: str, share: Share, **rest: Any) -> Part:
    return Part(kind=kind, content=share.content, template=share.template, **rest)
