"""Tables for the kernels: tries, pairs, how text is cut, where no token reaches across."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmworks.tokenizers import slots
from lmworks.tokenizers.automaton import Automaton, Unsupported, automaton, disjoint, runs
from lmworks.tokenizers.buffers import flat
from lmworks.tokenizers.calls import call
from lmworks.tokenizers.pre_tokenizers import Cut

_KEEPS = {
    ("Isolated", False): slots.KEEP_ALL,
    ("Isolated", True): slots.KEEP_ALL,
    ("Removed", False): slots.KEEP_GAPS,
    ("Removed", True): slots.KEEP_MATCHES,
}


class Trie:
    """Texts by their bytes: (node, byte) -> link to a node, in a hash table, and a value per node.

    A link is twice the node, and 1 more if it has children (kernel_parts.py: find_child).
    """

    def __init__(self, texts: list[bytes], worth: Iterable[int]) -> None:
        """`worth`: a value for each text, from 0 on; kept as 1 + value, 0 where no text ends."""
        source, ends = flat(texts)
        worths = np.fromiter(worth, dtype=np.int32, count=len(texts))
        size = 1 << max(4, (2 * len(source)).bit_length())
        self.table, self.mask = np.zeros(size, dtype=np.uint64), size - 1
        values = np.zeros(len(source), dtype=np.int32)
        nodes = call(
            *("insert_trie", self.table, self.mask, values, source, ends, worths, len(texts), 1)
        )
        self.values = values[:nodes].copy()

    def link(self, text: bytes) -> int:
        """The link to the node of a beginning; 0 when no text has it."""
        probe = np.frombuffer(text, dtype=np.uint8)
        return call("find_node", self.table, self.mask, probe, len(text))

    def first_links(self) -> Any:
        """int32 [256]: the links from the root."""
        found = np.zeros(256, dtype=np.int32)
        entries = self.table[(self.table != 0) & (self.table >> np.uint64(40) == 0)]
        found[(entries >> np.uint64(32)).astype(np.int64)] = entries.astype(np.uint32)
        return found


def cut_levels(a: Any, cuts: Sequence[Cut]) -> list[Any]:
    """Tell a kernel how text is cut. Returns: the arrays whose addresses it now holds.

    Raises: Unsupported for a cut that is no automaton.
    """
    kept: list[Any] = []
    plain = plain_cuts(cuts)
    levels = np.zeros((len(plain), slots.CUT_SLOTS), dtype=np.int64)
    for level, (expression, keeps) in zip(levels, plain):
        machine: Automaton = automaton(expression)
        first = np.ascontiguousarray(machine.stage2[int(machine.stage1[0]) * 128 :][:128])
        for slot, array in (
            (slots.CUT_ROWS, machine.rows),
            (slots.CUT_ASCII, first),
            (slots.CUT_STAGE1, machine.stage1),
            (slots.CUT_STAGE2, machine.stage2),
        ):
            kept.append(array)
            level[slot] = array.ctypes.data
        level[slots.CUT_START], level[slots.CUT_END_CLASS] = machine.start, machine.width - 1
        level[slots.CUT_KEEPS] = keeps
        quick = runs(machine)
        for slot, array in (
            (slots.CUT_PAIRS, quick.pairs),
            (slots.CUT_SKIPS, quick.skips),
            (slots.CUT_LOOPS, quick.loops),
            (slots.CUT_EXITS, quick.exits),
            (slots.CUT_EXIT_ROWS, quick.exit_rows),
        ):
            kept.append(array)
            level[slot] = array.ctypes.data
        level[slots.CUT_FOLD], level[slots.CUT_FIRST] = quick.fold, quick.first
        level[slots.CUT_NUMBER] = quick.number
    a[slots.LEVELS], a[slots.NUM_LEVELS] = levels.ctypes.data, len(plain)
    return [*kept, levels]


def plain_cuts(cuts: Sequence[Cut]) -> list[tuple[str, int]]:
    """Expressions and what is kept of them; two become one where that says the same."""
    if len(cuts) == 2 and (one := _words_and_marks(*cuts)) is not None:
        return [(one, slots.KEEP_MATCHES)]
    return [plain_cut(cut) for cut in cuts]


def _words_and_marks(gaps: Cut, marks: Cut) -> str | None:
    """For characters that go, then characters that stand alone: what is left, in one expression."""
    if gaps != Cut(gaps.expression, "Removed") or marks != Cut(marks.expression):
        return None
    simple = re.compile(r"\[[^\^\[\]].*[^\\]\]", re.DOTALL)
    sets = [cut.expression for cut in (gaps, marks)]
    if not all(simple.fullmatch(one) and "]" not in one[1:-1] for one in sets):
        return None
    if not disjoint(*sets):
        return None
    return f"{sets[1]}|[^{sets[0][1:-1]}{sets[1][1:-1]}]+"


def plain_cut(cut: Cut) -> tuple[str, int]:
    """An expression and what is kept of it. Raises: Unsupported."""
    kept = _KEEPS.get((cut.behavior, cut.invert))
    if kept is not None:
        return cut.expression, kept
    # A match of one character joins its neighbour: the pieces themselves have an expression.
    literal = re.fullmatch(r"\\?(.)", cut.expression, re.DOTALL)
    if not literal or cut.invert or cut.behavior == "Contiguous":
        raise Unsupported(f"{cut.behavior} at {cut.expression!r}")
    character = re.escape(literal[1])
    other = rf"[^\U{ord(literal[1]):08x}]"
    if cut.behavior == "MergedWithNext":
        return f"{character}{other}*|{other}+", slots.KEEP_ALL
    return f"{other}*{character}|{other}+", slots.KEEP_ALL


class VocabularyTable:
    """Tokens by their bytes, of equals the last; built and asked by kernels."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.texts, self.ends = flat(tokens)
        size = 1 << max(4, (2 * len(tokens)).bit_length())
        self.table, self.mask = np.zeros(size, dtype=np.uint64), size - 1
        self._arguments = (self.table, self.mask, self.texts, self.ends)
        call("learn_vocabulary", *self._arguments, len(tokens))

    def words(self, least: int) -> tuple[Any, int]:
        """A table of words (kernel_words.py) in which every short token stands, and how many do.

        It has `least` places or more, at most half of them taken.
        """
        size = max(least, 1 << (2 * len(self.ends)).bit_length())
        table = np.zeros(4 * size, dtype=np.uint64)
        return table, call("learn_words", table, size - 1, self.texts, self.ends, len(self.ends))

    def merged_ids(self, left: Any, right: Any) -> Any:
        """int32 [pairs]: the token that each pair of tokens makes, or -1."""
        sizes = np.diff(self.ends, prepend=0)
        scratch = np.empty(2 * int(sizes.max(initial=0)) + 16, dtype=np.uint8)
        merged = np.empty(len(left), dtype=np.int32)
        call("merged_ids", *self._arguments, left, right, merged, len(left), scratch, len(scratch))
        return merged

    def rank_merges(self) -> tuple[Any, Any, Any]:
        """int32 columns left, right, rank: every pair that makes a token, whose id is its rank."""
        columns = [np.empty(len(self.texts), dtype=np.int32) for _ in range(3)]
        count = call("rank_merges", *self._arguments, len(self.ends), *columns)
        left, right, rank = (column[:count].copy() for column in columns)
        return left, right, rank


def joined_pairs(tokens: Sequence[bytes]) -> tuple[Any, Any]:
    """Which characters stand side by side within a token, as two bit tables.

    Returns: a table of hashed pairs of whole characters, and one of (last byte, first byte) for
    places where a token holds only a part of a character. A place in a text that neither table
    has is one that no token reaches across.
    """
    texts, ends = flat(tokens)
    size = 1 << min(23, max(16, (16 * len(texts)).bit_length()))
    pairs, coarse = np.zeros(size // 8, dtype=np.uint8), np.zeros(1 << 13, dtype=np.uint8)
    call("mark_joints", texts, ends, len(tokens), pairs, size - 1, coarse)
    return pairs, coarse


def safe_codes(pairs: Any, coarse: Any, left: Any, right: Any) -> Any:
    """uint8: 1 where a token may hold these characters side by side (left: ASCII)."""
    places = _hashed(*np.broadcast_arrays(left, right)) & np.uint64(8 * len(pairs) - 1)
    first = np.array([chr(code).encode()[0] for code in np.ravel(right)]).reshape(np.shape(right))
    bytes_of = np.broadcast_arrays(left << 8 | first, left)[0]
    found = _bit(pairs, places.astype(np.int64)) | _bit(coarse, bytes_of)
    return np.ascontiguousarray(found, dtype=np.uint8).reshape(-1)


def _bit(table: Any, place: Any) -> Any:
    return table[place >> 3] >> (place & 7).astype(np.uint8) & 1


def _hashed(left: Any, right: Any) -> Any:
    """The kernels' `mix`, for arrays."""
    with np.errstate(over="ignore"):
        a, b = left.astype(np.uint64), right.astype(np.uint64)
        h = a * np.uint64(0x9E3779B97F4A7C15)
        h ^= (b + np.uint64(0x7F4A7C15)) * np.uint64(0xC2B2AE3D27D4EB4F)
        h ^= h >> np.uint64(32)
        return h * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(20)


def empty_table(entries: int) -> tuple[Any, int]:
    """An empty table of pairs, at most half full, and its mask."""
    size = 1 << max(4, (2 * entries).bit_length())
    return np.zeros(2 * size, dtype=np.uint64), size - 1
