"""Post-processors: the special tokens around a text or a pair, and white space off the offsets.

Source: Hugging Face tokenizers' documentation of post-processors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.aligned import Span
from lmworks.tokenizers.encoding import Encoding
from lmworks.tokenizers.vocabulary import Step

Parts = list[Encoding]  # one encoding per text: one or two
PostProcessor = Callable[[Parts, bool], Parts]  # the flag: add special tokens


def _template(step: Step) -> PostProcessor:
    specials = step.get("special_tokens") or {}

    def process(parts: Parts, add: bool) -> Parts:
        if not add:
            return parts
        out = []
        for piece in step["single" if len(parts) == 1 else "pair"]:
            if "SpecialToken" in piece:
                wanted = piece["SpecialToken"]
                special = specials[wanted["id"]]
                for token_id, token in zip(special["ids"], special["tokens"]):
                    out.append(Encoding.special(token_id, token, wanted["type_id"]))
            else:
                wanted = piece["Sequence"]
                text = parts[0 if wanted["id"] == "A" else 1]
                out.append(text.with_type(wanted["type_id"]))
        return out

    return process


def _bert(step: Step) -> PostProcessor:
    (sep, sep_id), (cls, cls_id) = step["sep"], step["cls"]

    def process(parts: Parts, add: bool) -> Parts:
        if not add:
            return parts
        out = [Encoding.special(cls_id, cls)]
        for number, part in enumerate(parts):
            out += [part.with_type(number), Encoding.special(sep_id, sep, number)]
        return out

    return process


def _roberta(step: Step) -> PostProcessor:
    (sep, sep_id), (cls, cls_id) = step["sep"], step["cls"]

    def process(parts: Parts, add: bool) -> Parts:
        if step.get("trim_offsets", True):
            prefixed = bool(step.get("add_prefix_space", True))
            parts = [trimmed(part, prefixed=prefixed) for part in parts]
        if not add:
            return parts
        out = [Encoding.special(cls_id, cls)]
        for number, part in enumerate(parts):
            if number:
                out.append(Encoding.special(sep_id, sep))
            out += [part.with_type(0), Encoding.special(sep_id, sep)]
        return out

    return process


def _byte_level(step: Step) -> PostProcessor:
    def process(parts: Parts, add: bool) -> Parts:
        if step.get("trim_offsets", True):
            prefixed = bool(step.get("add_prefix_space", True))
            parts = [trimmed(part, prefixed=prefixed) for part in parts]
        return parts

    return process


def trimmed(encoding: Encoding, *, prefixed: bool) -> Encoding:
    """Offsets without the white space at a token's ends.

    Args:
        prefixed: the first token's space was put there, and stands for no character.
    """
    offsets = []
    for number, (token, span) in enumerate(zip(encoding.tokens, encoding.offsets)):
        offsets.append(_trimmed(token, span, first=prefixed and (number == 0 or span[0] == 0)))
    whole = encoding.cut(0, len(encoding))
    whole.offsets = offsets
    return whole


def _trimmed(token: str, span: Span, *, first: bool) -> Span:
    start, end = span
    leading = len(token) - len(token.lstrip(_SPACES))
    trailing = len(token) - len(token.rstrip(_SPACES))
    if leading and not (first and leading == 1):  # more than one were in the text
        start = min(start + leading, end)
    if trailing and end >= trailing:
        end = max(end - trailing, start)
    return start, end


_SPACES = "Ġ \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def _sequence(step: Step) -> PostProcessor:
    inner = [build(part) for part in step["processors"]]

    def process(parts: Parts, add: bool) -> Parts:
        for part in inner:
            parts = part(parts, add)
        return parts

    return process


POST_PROCESSORS: dict[str, Callable[[Step], PostProcessor]] = {
    "BertProcessing": _bert,
    "ByteLevel": _byte_level,
    "RobertaProcessing": _roberta,
    "Sequence": _sequence,
    "TemplateProcessing": _template,
}


def build(step: Step | None) -> PostProcessor:
    """The post-processor of a step. Raises: UserError for one that is not known."""
    if step is None:
        return lambda parts, add: parts
    kind = str(step["type"])
    if kind not in POST_PROCESSORS:
        known = ", ".join(POST_PROCESSORS)
        raise UserError(f"the post-processor {kind!r} can't be read; known: {known}")
    return POST_PROCESSORS[kind](step)


def num_special(step: Step | None, *, pair: bool) -> int:
    """How many tokens the step adds."""
    texts = [Encoding.of([], [], []) for _ in range(2 if pair else 1)]
    return sum(map(len, build(step)(texts, True)))


def ends(step: Step | None) -> tuple[list[str], list[str]]:
    """The special tokens that are put before a text and after it."""
    added = build(step)([Encoding.of([-1], [(0, 0)], [""])], True)
    tokens = [token for part in added for token in part.tokens]
    text = [i for part in added for i in part.ids].index(-1)
    return tokens[:text], tokens[text + 1 :]


def adds_bos(step: Step | None, bos_token: str | None) -> bool:
    """Whether a post-processor puts `bos_token` before a text."""
    return bos_token is not None and ends(step)[0] == [bos_token]


def around(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> dict[str, Any]:
    """The post-processor that puts tokens (text, id) before all and after each text."""

    def specials(tokens: list[tuple[str, int]], type_id: int) -> list[Any]:
        return [{"SpecialToken": {"id": text, "type_id": type_id}} for text, _ in tokens]

    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    single = [*specials(before, 0), first, *specials(after, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, second, *specials(after, 1)],
        "special_tokens": {
            text: {"id": text, "ids": [token_id], "tokens": [text]}
            for text, token_id in [*before, *after]
        },
    }


def bos_first(bos_token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts `bos_token` before a text."""
    return around([(bos_token, token_id)], [])


def checked(step: Step | None) -> Mapping[str, Any] | None:
    """The step, once it was seen to work. Raises: UserError or KeyError for a damaged one."""
    num_special(step, pair=False)
    num_special(step, pair=True)
    return step
