"""Chat templates: Jinja in a sandbox, with special tokens only where the template puts them.

A model card's template is a program from a stranger. It runs in jinja2's immutable sandbox, with
the same settings and helpers as in transformers, so that the string comes out the same.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.base import Message

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        reason = " ".join(str(error.message).split())
        raise UserError(f"the chat template is not valid: line {error.lineno}: {reason}") from error
    except RecursionError as error:
        raise UserError("the chat template is nested too deeply to be read") from error


@functools.cache
def _environment() -> Any:
    """Settings, filters and globals as in transformers."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for trainers: its content, between two marks.

        The marks are variables of the template, which write nothing unless they are given.
        """

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            opens, closes = (
                nodes.Output([nodes.Name(name, "load")], lineno=line) for name in _GENERATION
            )
            # In a scope of its own, as in transformers: what is set in there stays in there.
            return nodes.Scope([opens, *body, closes], lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _refuse(message: str) -> None:
    raise UserError(f"the chat template refuses: {' '.join(str(message).split())}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja2's own filter, which escapes HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def has_generation_tags(template: str) -> bool:
    """Whether the template says itself what an answer is, by `{% generation %}`."""
    return re.search(r"\{%-?\s*generation\b", template) is not None


_GENERATION = ("_generation_opens", "_generation_closes")


def render(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Message] | None = None,
    now: datetime.datetime | None = None,
    generation_marks: tuple[str, str] = ("", ""),
) -> str:
    """The text that the model sees.

    Args:
        tools: JSON schemas as in OpenAI's API; how they are told to the model is the template's
            choice, and one that knows no tools passes over them.
        now: what a template is told that asks for the date; by default the true one.
        generation_marks: written where `{% generation %}` stands and where it ends.
    Raises: UserError when the tokenizer has no template, or the template fails on these messages.
    """
    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template: it belongs to a base model")
    template = _compiled(tokenizer.chat_template)
    clock = {} if now is None else {"strftime_now": now.strftime}
    try:
        text: str = template.render(
            messages=[_with_reasoning(message) for message in _plain(messages)],
            add_generation_prompt=add_generation_prompt,
            tools=None if tools is None else _plain(tools),
            documents=None,
            **clock,
            **dict(zip(_GENERATION, generation_marks, strict=True)),
            **tokenizer.vocabulary.roles(),
        )
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's program may raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template fails on these messages: {reason}") from error
    return text


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _with_reasoning(message: Any) -> Any:
    """A message as transformers hands it to a template.

    Without the keys that hold nothing (OpenAI's `content: null` beside calls), which templates
    write as "None" or fail on; with its reasoning under the two names that templates read.
    """
    if not isinstance(message, Mapping):
        return message
    message = {key: value for key, value in message.items() if value is not None}
    found = next((message[key] for key in _REASONING if key in message), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _plain(value: Any) -> Any:
    """A copy in dicts, lists and plain values: the template gets at nothing else.

    Raises: UserError for any other object.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise UserError(
        f"a message holds a {type(value).__name__}: only text, numbers and lists can be"
    )


def encode(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Message] | None = None,
    now: datetime.datetime | None = None,
) -> list[int]:
    """Ids of the rendered chat; the text of a special token inside a message stays text.

    Before rendering, such text is broken with a character that occurs nowhere in the messages or
    the template; what then still looks like a special token came from the template. The breaks are
    taken out of the pieces between special tokens before these are encoded. The beginning of a
    special token at the end of a string is broken too: what follows might complete it.

    Added tokens that are not special (`<think>`) are read wherever they stand, as in `encode`. A
    special token of one character can't be broken; no known vocabulary has one.
    """
    text, mark = _guarded(tokenizer, messages, add_generation_prompt, tools, now)
    if mark not in text:
        return tokenizer.encode(text, allow_special=True)
    ids: list[int] = []
    for piece, token_id in tokenizer.added_tokens.split_raw(text):
        ids += tokenizer.encode(piece.replace(mark, "")) if token_id is None else [token_id]
    return ids


def encode_offsets(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    tools: Sequence[Message] | None = None,
    now: datetime.datetime | None = None,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode`, and where each token stands in the rendered text, in characters."""
    text, mark = _guarded(tokenizer, messages, add_generation_prompt, tools, now)
    if mark not in text:
        return tokenizer.encode_offsets(text, allow_special=True)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for piece, token_id in tokenizer.added_tokens.split_raw(text):
        piece = piece.replace(mark, "")
        if token_id is None:
            found, inner = tokenizer.encode_offsets(piece)
        else:
            found, inner = [token_id], [(0, len(piece))]
        ids += found
        spans += [(at + start, at + end) for start, end in inner]
        at += len(piece)
    return ids, spans


def _guarded(
    tokenizer: PipelineTokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Message] | None,
    now: datetime.datetime | None,
) -> tuple[str, str]:
    """The rendered text, what might be read as a special token broken by the second string."""
    specials = tuple(text for text in tokenizer.special_tokens if len(text) > 1)
    plain, plain_tools = _plain(messages), _plain(tools)
    mark = _unused_character(
        json.dumps([plain, plain_tools], ensure_ascii=False) + (tokenizer.chat_template or "")
    )
    text = render(
        tokenizer,
        _broken(plain, specials, mark),
        add_generation_prompt=add_generation_prompt,
        tools=_broken(plain_tools, specials, mark),
        now=now,
    )
    return text, mark


def _unused_character(text: str) -> str:
    used = set(text)
    # Private use: no letter, digit or space, so that templates which trim or test text see none.
    return next(c for c in map(chr, range(0xE000, 0x10FFFE)) if c not in used)


def _broken(value: Any, specials: Sequence[str], mark: str) -> Any:
    """`value` with a mark in whatever might be read as a special token."""
    if isinstance(value, str):
        for token in specials:
            while token in value:  # again, where one overlaps itself
                value = value.replace(token, token[0] + mark + token[1:])
        return _broken_end(value, specials, mark)
    if isinstance(value, dict):
        return {_broken(k, specials, mark): _broken(v, specials, mark) for k, v in value.items()}
    if isinstance(value, list):
        return [_broken(inner, specials, mark) for inner in value]
    return value


def _broken_end(text: str, specials: Sequence[str], mark: str) -> str:
    body = text.rstrip()  # a template may trim
    beginnings, most = _beginnings(tuple(specials))
    sizes = range(min(most, len(body)), 0, -1)
    longest = next((size for size in sizes if body[-size:] in beginnings), 0)
    if not longest:
        return text
    at = len(body) - longest + 1
    return text[:at] + mark + text[at:]


@functools.lru_cache(maxsize=16)
def _beginnings(specials: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """All that special tokens begin with, and the length of the longest."""
    found = frozenset(token[:size] for token in specials for size in range(1, len(token)))
    return found, max(map(len, found), default=0)
