"""Real chat templates, out of TRL's package, over a vocabulary that has their special tokens."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe
from lmworks.tokenizers.vocabulary import AddedToken
from lmworks.training.answer_masks import Masked

_SPECIAL = re.compile(
    r"<[|｜][^<>{}'\"\s]*?[|｜]>|</?think>|</?s>|</?tool_call>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>"
    r"|<channel\|>|<\|channel>|<\|tool_call>|<tool_call\|>|\[/?INST\]|<end_of_utterance>"
    r"|<\|START_[A-Z_]*\|>"
)
_NOT_SPECIAL = ("<think", "</think", "<tool_call", "</tool_call")


def folder() -> Path:
    """Where TRL keeps its templates; the test is skipped without TRL."""
    trl = pytest.importorskip("trl")
    return Path(trl.__file__).parent / "chat_templates"


@functools.cache
def _plain() -> PipelineTokenizer:
    return train_bpe(["Hello there, the cat sat. It is what is 2 + 2? " * 20], vocab_size=290)


def over(template: str) -> PipelineTokenizer:
    """A small byte-level vocabulary with the special tokens that a template writes."""
    vocabulary = _plain().vocabulary
    have = {token.text for token in vocabulary.added_tokens}
    texts = [t for t in sorted(set(_SPECIAL.findall(template))) if t not in have]
    added = [
        AddedToken(
            id=_plain().vocab_size + number,
            text=text,
            in_vocabulary=False,
            special=not text.startswith(_NOT_SPECIAL),
        )
        for number, text in enumerate(texts)
    ]
    return PipelineTokenizer(
        dataclasses.replace(
            vocabulary,
            chat_template=template,
            added_tokens=(*vocabulary.added_tokens, *added),
        )
    )


def stretches(tokenizer: PipelineTokenizer, masked: Masked) -> list[str]:
    """What is learnt, as texts."""
    return [tokenizer.decode(ids) for ids in _runs(masked)]


def _runs(masked: Masked) -> Iterator[list[int]]:
    run: list[int] = []
    for token, counts in zip(masked.ids.tolist(), [*masked.is_target.tolist()], strict=True):
        if counts:
            run.append(token)
        elif run:
            yield run
            run = []
    if run:
        yield run


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TWO = [
    turn("user", "Hi."),
    turn("assistant", "Hello."),
    turn("user", "2 + 2?"),
    turn("assistant", "It is 4."),
]
THOUGHT = [
    TWO[0],
    turn("assistant", "Hello.", reasoning_content="A greeting."),
    TWO[2],
    turn("assistant", "It is 4.", reasoning_content="Add them."),
]
_CALL = {"name": "look", "arguments": {"place": "Rome"}}
CALL = [
    turn("user", "Weather?"),
    turn("assistant", "", tool_calls=[{"type": "function", "id": "call12345", "function": _CALL}]),
    turn("tool", "Sun", name="look", tool_call_id="call12345"),
    turn("assistant", "Sunny."),
]
CONVERSATIONS = {
    "two": TWO,
    "system": [turn("system", "Be brief."), *TWO],
    "thought": THOUGHT,
    "call": CALL,
}
IN_PARTS = ("idefics3", "smolvlm", "llava_next")


def in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contents as lists of parts, which templates for pictures want."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
