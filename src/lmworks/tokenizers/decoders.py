"""Decoders: tokens back to text.

A byte-level tokenizer joins bytes. The others pass a list of token texts through steps, as
Hugging Face tokenizers does; the parts joined are the text.
"""

from __future__ import annotations

import codecs
import functools
import itertools
from collections.abc import Callable

from lmworks.core.errors import UserError
from lmworks.tokenizers.vocabulary import Step

Texts = list[str]
Decoder = Callable[[Texts], Texts]


def _replace(step: Step) -> Decoder:
    from lmworks.tokenizers.normalizers import Replace

    replace = Replace(step["pattern"], str(step["content"])).normalize
    return lambda texts: [replace(text) for text in texts]


def _byte_fallback(texts: Texts) -> Texts:
    """Runs of `<0x..>` become their characters; each byte of a run that is no UTF-8, U+FFFD."""
    out: Texts = []
    run = bytearray()

    def flush() -> None:
        if run:
            try:
                out.append(run.decode("utf-8"))
            except UnicodeDecodeError:
                out.extend("\ufffd" * len(run))
            run.clear()

    for text in texts:
        byte = byte_of(text)
        if byte is None:
            flush()
            out.append(text)
        else:
            run.append(byte)
    flush()
    return out


def byte_of(text: str) -> int | None:
    """The byte that `<0x..>` stands for."""
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return None
    try:
        return int(text[3:5], 16)
    except ValueError:
        return None


def _strip(step: Step) -> Decoder:
    content, start, stop = str(step["content"]), int(step["start"]), int(step["stop"])

    def strip(texts: Texts) -> Texts:
        return [_without(text, content, start, stop) for text in texts]

    return strip


def _without(text: str, content: str, start: int, stop: int) -> str:
    first = 0
    while first < min(start, len(text)) and text[first] == content:
        first += 1
    last = len(text)
    while last > first and len(text) - last < stop and text[last - 1] == content:
        last -= 1
    return text[first:last]


def _metaspace(step: Step) -> Decoder:
    mark = str(step.get("replacement", "▁"))
    scheme = step.get("prepend_scheme") or (
        "always" if step.get("add_prefix_space", True) else "never"
    )

    def decode(texts: Texts) -> Texts:
        out = [text.replace(mark, " ") for text in texts]
        if out and scheme != "never":  # the mark that was put before the text, and any with it
            out[0] = texts[0].replace(mark, "")
        return out

    return decode


def _word_piece(step: Step) -> Decoder:
    prefix, cleanup = str(step.get("prefix", "##")), bool(step.get("cleanup", True))

    def decode(texts: Texts) -> Texts:
        out = []
        for number, text in enumerate(texts):
            if number:
                text = text.removeprefix(prefix) if text.startswith(prefix) else f" {text}"
            out.append(_clean(text) if cleanup else text)
        return out

    return decode


@functools.lru_cache(1 << 16)
def _clean(text: str) -> str:
    for old, new in _TIDY:
        text = text.replace(old, new)
    return text


_TIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _bpe_suffix(step: Step) -> Decoder:
    suffix = str(step.get("suffix", "</w>"))

    def decode(texts: Texts) -> Texts:
        last = len(texts) - 1
        return [t.replace(suffix, "" if i == last else " ") for i, t in enumerate(texts)]

    return decode


def _byte_level(step: Step) -> Decoder:
    from lmworks.tokenizers.vocabulary import from_alphabet

    def decode(texts: Texts) -> Texts:
        data = b""
        for text in texts:
            try:
                data += from_alphabet(text)
            except KeyError:
                data += text.encode()
        return [data.decode("utf-8", "replace")]

    return decode


def _sentencepiece(step: Step) -> Decoder:
    """Our own step for `.model` files: as SentencePiece, the unknown piece having a surface."""
    unknown, surface = str(step["unk_piece"]), str(step["unk_surface"])
    strips, all_of_them = bool(step["strip"]), bool(step["strip_all"])
    at_end = bool(step.get("treat_whitespace_as_suffix"))

    def decode(texts: Texts) -> Texts:
        out, stripped = "", False
        for text in _joined_bytes(texts):
            if text == unknown:
                text = surface
            elif strips and not at_end and not stripped and not out and text.startswith("▁"):
                text, stripped = text[1:], not all_of_them
            out += text.replace("▁", " ")
        return [out.removesuffix(" ") if at_end and strips else out]

    return decode


def _joined_bytes(texts: Texts) -> Texts:
    """Runs of `<0x..>` as their characters, one U+FFFD for each byte that is none."""
    out: Texts = []
    for is_byte, run in itertools.groupby(texts, lambda text: byte_of(text) is not None):
        if is_byte:
            data = bytes(byte for text in run if (byte := byte_of(text)) is not None)
            out.append(data.decode("utf-8", _ONE_BY_ONE))
        else:
            out += run
    return out


_ONE_BY_ONE = "lmworks.one_by_one"
codecs.register_error(_ONE_BY_ONE, lambda error: ("\ufffd", getattr(error, "start", 0) + 1))


def sentencepiece_as_sequence(step: Step) -> Step:
    """The nearest steps that Hugging Face tokenizers knows."""
    spaces = _ALL if step["strip_all"] else int(bool(step["strip"]))
    ends = {"stop": spaces} if step.get("treat_whitespace_as_suffix") else {"start": spaces}
    unknown, surface = step["unk_piece"], step["unk_surface"]
    steps: list[Step] = [
        {"type": "Replace", "pattern": {"String": unknown}, "content": surface},
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spaces:
        steps.append({"type": "Strip", "content": " ", "start": 0, "stop": 0} | ends)
    return {"type": "Sequence", "decoders": steps}


_ALL = 1 << 20


def _sequence(step: Step) -> Decoder:
    parts = [build(inner) for inner in step["decoders"]]
    return lambda texts: functools.reduce(lambda done, part: part(done), parts, texts)


DECODERS: dict[str, Callable[[Step], Decoder]] = {
    "BPEDecoder": _bpe_suffix,
    "ByteFallback": lambda step: _byte_fallback,
    "ByteLevel": _byte_level,
    "Fuse": lambda step: lambda texts: ["".join(texts)],
    "Metaspace": _metaspace,
    "Replace": _replace,
    "SentencePiece": _sentencepiece,
    "Sequence": _sequence,
    "Strip": _strip,
    "WordPiece": _word_piece,
}


def build(step: Step | None) -> Decoder:
    """The decoder of a step. Raises: UserError for one that is not known."""
    if step is None:  # as Hugging Face: the tokens with spaces between them
        return lambda texts: [" ".join(texts)]
    kind = str(step["type"])
    if kind not in DECODERS:
        raise UserError(f"the decoder {kind!r} can't be read; known: {', '.join(DECODERS)}")
    return DECODERS[kind](step)
