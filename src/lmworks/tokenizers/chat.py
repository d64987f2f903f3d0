"""Chat templates: Jinja in a sandbox, with special tokens only where the template puts them.

A model card's template is a program from a stranger. It runs in jinja2's immutable sandbox, with
the same settings and helpers as in transformers, so that the string comes out the same.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.base import Message

if TYPE_CHECKING:
    from lmworks.tokenizers.bpe import BPETokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for trainers; here it is just its content."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise UserError(f"the chat template refuses: {message}")

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = time.strftime
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid: line {error.lineno}: {error}") from error


def render(
    tokenizer: BPETokenizer, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """The text that the model sees.

    Raises: UserError when the tokenizer has no template, or the template fails on these messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template: it belongs to a base model")
    vocabulary = tokenizer.vocabulary
    try:
        text: str = _compiled(tokenizer.chat_template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=vocabulary.bos_token or "",
            eos_token=vocabulary.eos_token or "",
            pad_token=vocabulary.pad_token or "",
            tools=None,
            documents=None,
        )
    except UserError:
        raise
    except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise UserError(f"the chat template fails on these messages: {error}") from error
    return text


def encode(
    tokenizer: BPETokenizer, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Ids of the rendered chat; the text of a special token inside a message stays text.

    Before rendering, such text is broken with a character that occurs nowhere in the messages;
    what then still looks like a special token came from the template. The breaks are taken out of
    the pieces between special tokens before these are encoded.
    """
    specials = tokenizer.special_tokens
    contents = json.dumps([dict(m) for m in messages], ensure_ascii=False, default=str)
    if not any(token in contents for token in specials):
        text = render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
        return tokenizer.encode(text, allow_special=True)
    mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in contents)
    broken = [_broken(message, specials, mark) for message in messages]
    text = render(tokenizer, broken, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    at = 0
    assert tokenizer.special_pattern is not None
    for match in tokenizer.special_pattern.finditer(text):
        ids += tokenizer.encode(text[at : match.start()].replace(mark, ""))
        ids.append(specials[match[0]])
        at = match.end()
    return ids + tokenizer.encode(text[at:].replace(mark, ""))


def _broken(value: Any, specials: Mapping[str, int], mark: str) -> Any:
    """`value` with a mark inside every special token's text."""
    if isinstance(value, str):
        for token in specials:
            value = value.replace(token, token[:1] + mark + token[1:])
        return value
    if isinstance(value, Mapping):
        return {key: _broken(inner, specials, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(inner, specials, mark) for inner in value]
    return value
