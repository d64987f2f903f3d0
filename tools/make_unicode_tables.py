"""Write src/lmworks/tokenizers/unicode_tables.py: Unicode as Hugging Face tokenizers knows it.

Published ids depend on the Unicode version that a library was built with, and one library may hold
several. This asks the installed `tokenizers` about every character, so that ids don't depend on
the Python at hand. Run it when their tables move: python tools/make_unicode_tables.py
"""

from __future__ import annotations

import base64
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src/lmworks/tokenizers/unicode_tables.py"
ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co"
HEAD = '''"""Unicode as Hugging Face tokenizers {version} knows it.

Made by tools/make_unicode_tables.py. A table is a list of runs: how many characters, of which kind.
"""

from __future__ import annotations

'''


def matching(expression: str) -> set[str]:
    """Characters that an expression matches, in the engine that splits text."""
    split = pre_tokenizers.Split(Regex(expression), "removed")
    return {c for c in ALL if not split.pre_tokenize_str(c)}


def dropped(normalizer: normalizers.Normalizer) -> set[str]:
    """Characters that a normalizer takes out."""
    return {c for c in ALL if normalizer.normalize_str("a" + c) == "a"}


def bert(**on: bool) -> normalizers.Normalizer:
    flags = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"))
    return normalizers.BertNormalizer(**{k: bool(on.get(k)) for k in flags})


def packed(value: Callable[[str], int]) -> str:
    """Runs of equal values, as (length, value) pairs in base 128, compressed."""
    out, last, length = bytearray(), None, 0
    for code in [*range(0x110000), None]:
        now = -1 if code is None else 0 if 0xD800 <= code <= 0xDFFF else value(chr(code))
        if now != last:
            if last is not None:
                out += _number(length) + _number(last)
            last, length = now, 0
        length += 1
    return base64.b85encode(zlib.compress(bytes(out), 9)).decode()


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def literal(name: str, text: str, comment: str) -> str:
    lines = [f'    "{text[i : i + 92]}"' for i in range(0, len(text), 92)]
    return f"{name} = (  # {comment}\n" + "\n".join(lines) + "\n)\n"


def pairs(name: str, entries: Iterable[tuple[str, str]]) -> str:
    lines = [f"    {ord(a):#x}: {b!a}," for a, b in entries]
    return f"{name} = {{\n" + "\n".join(lines) + "\n}\n"


def main() -> None:
    of = {}
    for number, category in enumerate(CATEGORIES.split(), 1):
        of |= dict.fromkeys(matching(rf"\p{{{category}}}"), number)
    bits = [
        matching(r"\s"),
        {
            c
            for c in ALL
            if pre_tokenizers.Whitespace().pre_tokenize_str("a" + c + "a")
            == [("a" + c + "a", (0, 3))]
        },
        {c for c in ALL if len(pre_tokenizers.Punctuation().pre_tokenize_str("a" + c + "a")) == 3},
        dropped(bert(strip_accents=True)),
        dropped(normalizers.StripAccents()),
        dropped(bert(clean_text=True)),
    ]
    lower = [(c, new) for c in ALL if (new := normalizers.Lowercase().normalize_str(c)) != c]
    newer = [(c, new) for c, new in lower if new != c.lower()]
    whole = [c for c in ALL if normalizers.NFKD().normalize_str(c) == c]
    newer_forms = [(c, c) for c in whole if unicodedata.normalize("NFKD", c) != c]
    unordered = [c for c in ALL if unicodedata.combining(c) and not _is_ordered(c)]
    text = HEAD.format(version=tokenizers.__version__)
    text += literal("CATEGORIES", packed(lambda c: of.get(c, 0)), f"0, then {CATEGORIES[:30]}...")
    text += f'CATEGORY_NAMES = ("Cn {CATEGORIES}").split()\n'
    flags = packed(lambda c: sum(1 << i for i, found in enumerate(bits) if c in found))
    text += literal("FLAGS", flags, "bits in the order of FLAG_NAMES")
    names = '("white", "word", "punctuation", "bert_mark", "mark", "bert_control")'
    text += f"FLAG_NAMES = {names}\n# Lower case, where Python 3.11 knows none.\n"
    text += pairs("LOWER", newer)
    text += "# Left whole by every form, where Python 3.11 takes them apart.\n"
    text += f"WHOLE = {''.join(c for c, _ in newer_forms)!a}\n"
    text += (
        "# Marks that every form leaves where they stand, where Python 3.11 knows their order.\n"
    )
    text += f"UNORDERED = {''.join(unordered)!a}\n"
    TARGET.write_text(text)


def _is_ordered(mark: str) -> bool:
    """Whether a form puts a mark into the order of its class, beside one of another class."""
    other = "\u0323" if unicodedata.combining(mark) > 220 else "\u0301"
    wrong = "a" + "".join(sorted((mark, other), key=unicodedata.combining, reverse=True))
    return bool(normalizers.NFD().normalize_str(wrong) != wrong)


if __name__ == "__main__":
    main()
