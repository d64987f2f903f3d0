"""The steps around the model in a `tokenizer.json`: what is read, what is refused, what is written.

A step that is not understood is refused by its name: a tokenizer that is nearly right gives wrong
ids in silence. Post-processors only add tokens around a text, which `encode` never does: they are
kept as they are, so that the file stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from lmworks.core.errors import UserError
from lmworks.tokenizers.patterns import PATTERNS, compiled
from lmworks.tokenizers.vocabulary import Normalization

Step = Mapping[str, Any]
_NORMALIZERS = get_args(Normalization)
_POST_PROCESSORS = ("ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing")
_COVERING = {expressions[-1] for expressions in PATTERNS.values()}  # these match any text whole


def read_pre_tokenizer(step: Step | None) -> tuple[str, ...]:
    """A pre-tokenizer as expressions that are applied one after the other.

    Raises: UserError for steps that are unknown, or don't end with the byte level.
    """
    steps = _flat(step, "pretokenizers")
    kinds = [str(inner["type"]) for inner in steps]
    for kind in kinds:
        if kind not in ("ByteLevel", "Digits", "Split"):
            raise _unknown("pre-tokenizer", kind, "ByteLevel, Digits, Sequence, Split")
    if kinds[-1:] != ["ByteLevel"] or kinds.count("ByteLevel") > 1:
        raise UserError(
            f"the pre-tokenizer ({', '.join(kinds) or 'none'}) does not end with ByteLevel: "
            "only byte-level BPE can be read"
        )
    found = [expression for inner in steps for expression in _expressions(inner)]
    for expression in found:
        compiled(expression)
    return tuple(found)


def _expressions(step: Step) -> tuple[str, ...]:
    if step["type"] == "ByteLevel":
        if step.get("add_prefix_space", True):
            raise UserError("the pre-tokenizer ByteLevel with add_prefix_space can't be read")
        return PATTERNS["gpt2"] if step.get("use_regex", True) else ()
    if step["type"] == "Digits":
        return (r"\p{N}",) if step.get("individual_digits") else (r"\p{N}+",)
    return (_split_expression(step),)


def _split_expression(step: Step) -> str:
    import regex

    pattern = step["pattern"]
    expression = str(pattern["Regex"] if "Regex" in pattern else regex.escape(pattern["String"]))
    behavior, invert = step["behavior"], bool(step.get("invert"))
    # "Keep only what matches" is the same as isolating where everything matches.
    if behavior == "Isolated" or (behavior == "Removed" and invert and expression in _COVERING):
        return expression
    raise UserError(
        f"the pre-tokenizer Split with behavior {behavior!r}, invert {invert} can't be read; "
        "known: 'Isolated'"
    )


def write_pre_tokenizer(expressions: tuple[str, ...]) -> dict[str, Any]:
    """The inverse of `read_pre_tokenizer`."""
    splits = [
        {"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
        for e in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, byte_level()]}


def byte_level() -> dict[str, Any]:
    """The ByteLevel step that maps bytes and does nothing else; also the decoder."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def read_normalizer(step: Step | None) -> Normalization | None:
    """The Unicode form. Raises: UserError for anything else than one form."""
    kinds = [str(inner["type"]) for inner in _flat(step, "normalizers")]
    for kind in kinds:
        if kind not in _NORMALIZERS:
            raise _unknown("normalizer", kind, ", ".join(_NORMALIZERS))
    if len(set(kinds)) > 1:
        raise UserError(f"the normalizers {', '.join(kinds)} in a row can't be read; known: one")
    return cast(Normalization, kinds[0]) if kinds else None


def check_decoder(step: Step | None) -> None:
    """Raises: UserError unless the decoder is ByteLevel."""
    kinds = [str(inner["type"]) for inner in _flat(step, "decoders")]
    for kind in kinds or ["none"]:
        if kind != "ByteLevel":
            raise _unknown("decoder", kind, "ByteLevel")


def read_post_processor(step: Step | None) -> Step | None:
    """The step as it is. Raises: UserError for an unknown one."""
    for inner in _flat(step, "processors"):
        if inner["type"] not in _POST_PROCESSORS:
            raise _unknown("post-processor", str(inner["type"]), ", ".join(_POST_PROCESSORS))
    return step


def adds_bos(step: Step | None, bos_token: str | None) -> bool:
    """Whether a post-processor puts `bos_token` before a text."""
    for inner in _flat(step, "processors"):
        first = inner["single"][0] if inner["type"] == "TemplateProcessing" else {}
        if bos_token is not None and first.get("SpecialToken", {}).get("id") == bos_token:
            return True
    return False


def bos_first(bos_token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts `bos_token` before a text."""
    bos = {"SpecialToken": {"id": bos_token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second],
        "special_tokens": {bos_token: {"id": bos_token, "ids": [token_id], "tokens": [bos_token]}},
    }


def _flat(step: Step | None, inner: str) -> list[Step]:
    """The steps of a sequence, or of sequences within it."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [found for part in step[inner] for found in _flat(part, inner)]


def _unknown(what: str, kind: str, known: str) -> UserError:
    return UserError(f"the {what} {kind!r} can't be read; known: {known}")
