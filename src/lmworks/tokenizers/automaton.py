"""Expressions as automata: one table look-up per character, no going back and forth.

A pattern of pre-tokenisation is parsed into an NFA and made deterministic over classes of
characters (all characters that no set in the pattern tells apart). Alternatives keep the order
that backtracking engines give them: a state is the list of threads in order of priority, and a
thread that matches cuts off those after it. Whether a match ends is decided on seeing the next
character, so a look-ahead by one character (`\\s+(?!\\S)`) costs nothing.

Left out, and refused, so that the caller falls back on `regex`: back-references, look-behind, lazy
and possessive repeats, look-aheads longer than a character, scripts, patterns that match nothing.

Sources: Thompson 1968; priorities: Cox, "Regular Expression Matching: the Virtual Machine
Approach", 2009.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmworks.tokenizers import unicode_data
from lmworks.tokenizers.unicode_tables import CATEGORY_NAMES

_MAX_STATES = 4096
_MAX_REPEAT = 1000
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}


class Unsupported(Exception):
    """The pattern needs more than an automaton."""


class Ranges(NamedTuple):
    """A set of characters: flags, categories and ranges, all of them or all others."""

    flags: frozenset[str] = frozenset()  # "white", "!white": without the flag
    categories: frozenset[str] = frozenset()  # "L", "Lu", "!L"
    ranges: tuple[tuple[int, int], ...] = ()
    negated: bool = False
    end: bool = False  # the end of the text counts too, in look-aheads


@dataclasses.dataclass
class Node:
    """set: go on with a character of it; ahead: go on if the next is of it; else a fork."""

    kind: str  # "set", "ahead", "fork", "match"
    of: Ranges | None = None
    out: list[int] = dataclasses.field(default_factory=list)  # in order of priority


@dataclasses.dataclass(frozen=True, kw_only=True)
class Automaton:
    """rows[state * width + class] = next state's offset * 8 + 1 if a match ends before.

    Bits 1 and 2 say that the next state is one that ASCII letters (1), small ones (2), or all of
    ASCII (both) do not leave: a run of them can be skipped. Offset 0 is the dead state. The last
    class is the end of the text.
    """

    rows: Any  # uint32 [states * width]
    width: int
    start: int
    stage1: Any  # uint16 [0x110000 / 128]: which block of stage2
    stage2: Any  # uint8 [blocks * 128]: class of each character

    def matches(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of every match, in plain Python: what the kernel does."""
        at = 0
        while at < len(text):
            stop = self.match(text, at)
            if stop > at:
                yield at, stop
            at = max(stop, at + 1)

    def match(self, text: str, at: int) -> int:
        """Where the match at `at` ends, or -1."""
        row, last = self.start, -1
        for q in range(at, len(text) + 1):
            kind = self.kind(text[q]) if q < len(text) else self.width - 1
            step = int(self.rows[row + kind])
            if step & 1:
                last = q
            row = step >> 3
            if row == 0:
                break
        return last

    def kind(self, character: str) -> int:
        """The class of a character."""
        code = ord(character)
        return int(self.stage2[int(self.stage1[code >> 7]) * 128 + (code & 127)])


class _Parser:
    """Recursive descent over the expression; builds nodes from the back to the front."""

    def __init__(self, expression: str) -> None:
        self.text, self.at = expression, 0
        self.nodes: list[Node] = [Node("match")]

    def parse(self) -> int:
        tree = self._alternatives(fold=False)
        if self.at < len(self.text):
            raise Unsupported(f"{self.text[self.at]!r} at {self.at}")
        return self._build(tree, 0)

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self.at += len(text)
            return True
        return False

    def _alternatives(self, *, fold: bool) -> tuple[Any, ...]:
        options = [self._sequence(fold=fold)]
        while self._take("|"):
            options.append(self._sequence(fold=fold))
        return ("or", options)

    def _sequence(self, *, fold: bool) -> tuple[Any, ...]:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom(fold=fold)))
        return ("then", parts)

    def _repeated(self, atom: tuple[Any, ...]) -> tuple[Any, ...]:
        while True:
            low, high = self._counts()
            if low < 0:
                return atom
            if self._peek("?") or self._peek("+"):
                raise Unsupported("lazy or possessive repeats")
            if atom[0] == "ahead" or max(low, high) > _MAX_REPEAT:
                raise Unsupported("a repeated look-ahead, or too many repeats")
            atom = ("repeat", atom, low, high)

    def _counts(self) -> tuple[int, int]:
        """(least, most) with most -1 for no limit; (-1, 0) when nothing is repeated."""
        for sign, counts in (("*", (0, -1)), ("+", (1, -1)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        found = re.compile(r"\{(\d+)(,?)(\d*)\}").match(self.text, self.at)
        if not found:
            return -1, 0
        self.at = found.end()
        low = int(found[1])
        return low, (low if not found[2] else int(found[3]) if found[3] else -1)

    def _atom(self, *, fold: bool) -> tuple[Any, ...]:
        if self._take("("):
            return self._group(fold=fold)
        if self._take("["):
            return ("set", self._class(fold=fold))
        if self._take("$") or self._take(r"\z") or self._take(r"\Z"):
            return ("ahead", Ranges(end=True))
        if self._take("."):
            return ("set", Ranges(ranges=((10, 10),), negated=True))
        if self._take("\\"):
            return ("set", self._escape(fold=fold))
        character = self.text[self.at]
        if character in "*+?{}^":
            raise Unsupported(f"{character!r} at {self.at}")
        self.at += 1
        return ("set", _literal(character, fold=fold))

    def _group(self, *, fold: bool) -> tuple[Any, ...]:
        if self._take("?=") or self._take("?!"):
            inside = self._alternatives(fold=fold)
            negative = self.text[: self.at].rfind("(?!") > self.text[: self.at].rfind("(?=")
            self._close()
            return ("ahead", _one_set(inside, negative=negative))
        if self._take("?i:"):
            fold = True
        elif not self._take("?:") and self._peek("?"):
            raise Unsupported("this kind of group")
        inside = self._alternatives(fold=fold)
        self._close()
        return inside

    def _close(self) -> None:
        if not self._take(")"):
            raise Unsupported("a group that does not end")

    def _escape(self, *, fold: bool) -> Ranges:
        if self.at >= len(self.text):
            raise Unsupported("a lone backslash")
        letter = self.text[self.at]
        self.at += 1
        if letter in "pP":
            return self._property(negated=letter == "P")
        if letter in "sSdDwW":
            name = {"s": "white", "d": "Nd", "w": "word"}[letter.lower()]
            name = name if letter.islower() else f"!{name}"
            kind = "categories" if letter.lower() == "d" else "flags"
            return Ranges(**{kind: frozenset([name])})  # type: ignore[arg-type]
        for sign, digits in (("x", 2), ("u", 4), ("U", 8)):
            if letter == sign:
                code = self.text[self.at : self.at + digits]
                if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", code):
                    raise Unsupported(f"\\{letter}{code}")
                self.at += digits
                return _literal(chr(int(code, 16)), fold=fold)
        if letter.isalnum() and letter not in _ESCAPES:
            raise Unsupported(f"\\{letter}")
        return _literal(_ESCAPES.get(letter, letter), fold=fold)

    def _property(self, *, negated: bool) -> Ranges:
        found = re.compile(r"\{(\^?)(\w+)\}|([A-Z])").match(self.text, self.at)
        name = (found[2] or found[3]) if found else ""
        if not found or not any(known.startswith(name) for known in CATEGORY_NAMES):
            raise Unsupported(f"the property {name!r}")
        self.at = found.end()
        negated = negated != bool(found[1])
        return Ranges(categories=frozenset([f"!{name}" if negated else name]))

    def _class(self, *, fold: bool) -> Ranges:
        negated = self._take("^")
        parts: list[Ranges] = []
        while parts == [] or not self._peek("]"):
            if self.at >= len(self.text) or self._peek("[") or self._peek("&&"):
                raise Unsupported("this kind of class")
            part = self._member(fold=fold)
            if self._peek("-") and not self._peek("-]") and len(part.ranges) == 1:
                self.at += 1
                last = self._member(fold=fold)
                if fold or not last.ranges:
                    raise Unsupported("this kind of range")
                part = Ranges(ranges=((part.ranges[0][0], last.ranges[0][1]),))
            parts.append(part)
        self.at += 1
        return _union(parts, negated=negated)

    def _member(self, *, fold: bool) -> Ranges:
        if self._take("\\"):
            return self._escape(fold=fold)
        self.at += 1
        return _literal(self.text[self.at - 1], fold=fold)

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _build(self, tree: tuple[Any, ...], then: int) -> int:
        """The first node of `tree`, after which comes node `then`."""
        kind = tree[0]
        if kind in ("set", "ahead"):
            return self._add(Node(kind, tree[1], [then]))
        if kind == "or":
            starts = [self._build(option, then) for option in tree[1]]
            return starts[0] if len(starts) == 1 else self._add(Node("fork", out=starts))
        if kind == "then":
            for part in reversed(tree[1]):
                then = self._build(part, then)
            return then
        _, inner, low, high = tree
        if high < 0:
            loop = self._add(Node("fork"))
            self.nodes[loop].out = [self._build(inner, loop), then]
            then = loop
        for _ in range(max(0, high - low)):
            then = self._add(Node("fork", out=[self._build(inner, then), then]))
        # The optional repeats nest: leaving one leaves all, so every fork skips to the end.
        for _ in range(low):
            then = self._build(inner, then)
        return then


def _literal(character: str, *, fold: bool) -> Ranges:
    if not fold or not character.isalpha():
        return Ranges(ranges=((ord(character), ord(character)),))
    if not character.isascii():
        raise Unsupported("letters beyond ASCII without regard to case")
    others = {"s": "ſ", "k": "\u212a"}.get(character.lower(), "")
    codes = sorted(ord(c) for c in {character.lower(), character.upper(), *others})
    return Ranges(ranges=tuple((code, code) for code in codes))


def _union(parts: list[Ranges], *, negated: bool) -> Ranges:
    """All characters of any part, or those of none."""
    return Ranges(
        flags=frozenset().union(*(part.flags for part in parts)),
        categories=frozenset().union(*(part.categories for part in parts)),
        ranges=tuple(span for part in parts for span in part.ranges),
        negated=negated,
    )


def _one_set(tree: tuple[Any, ...], *, negative: bool) -> Ranges:
    """What a look-ahead for one character looks for."""
    while tree[0] in ("or", "then"):
        if len(tree[1]) != 1:
            raise Unsupported("look-aheads longer than one character")
        tree = tree[1][0]
    if tree[0] != "set":
        raise Unsupported("this kind of look-ahead")
    found: Ranges = tree[1]
    return found._replace(negated=not found.negated, end=True) if negative else found


@functools.lru_cache(maxsize=64)
def automaton(expression: str) -> Automaton:
    """The automaton of an expression. Raises: Unsupported, for what `regex` must do."""
    parser = _Parser(expression)
    first = parser.parse()
    if _closure(parser.nodes, (first,), None)[1]:
        raise Unsupported("a pattern that matches nothing")
    sets = sorted({node.of for node in parser.nodes if node.of is not None}, key=repr)
    stage1, stage2, members = _classes(tuple(sets))
    numbers = {of: i for i, of in enumerate(sets)}
    width = len(members) + 1
    rows, start = _determine(parser.nodes, first, numbers, members)
    _mark_loops(rows, width, [int(stage2[int(stage1[0]) * 128 + code]) for code in range(128)])
    return Automaton(rows=rows, width=width, start=start, stage1=stage1, stage2=stage2)


def disjoint(one: str, other: str) -> bool:
    """Whether no character is in both of two classes (`[...]`)."""
    parsers = [_Parser(one), _Parser(other)]
    sets = [parser.nodes[parser.parse()].of or Ranges() for parser in parsers]
    _, (first, second) = _memberships(sets)
    return not (first & second).any()


def _classes(sets: tuple[Ranges, ...]) -> tuple[Any, Any, list[tuple[bool, ...]]]:
    """Two-stage table of classes, and for each class which sets hold it."""
    import numpy as np

    starts, holds = _memberships(sets)
    kinds: dict[bytes, int] = {}
    of_run = [kinds.setdefault(column.tobytes(), len(kinds)) for column in holds.T.copy()]
    if len(kinds) > 255:
        raise Unsupported("more than 255 classes of characters")
    lengths = np.diff(np.append(starts, 0x110000))
    data = np.repeat(np.array(of_run, dtype=np.uint8), lengths).tobytes()
    blocks: dict[bytes, int] = {}
    stage1 = [blocks.setdefault(data[at : at + 128], len(blocks)) for at in range(0, 0x110000, 128)]
    members = [tuple(map(bool, kind)) for kind in kinds]
    stage2 = np.frombuffer(b"".join(blocks), dtype=np.uint8)
    return np.array(stage1, dtype=np.uint16), stage2, members


def _memberships(sets: Sequence[Ranges]) -> tuple[Any, Any]:
    """Runs of characters that no set tells apart: their starts, and bool [sets, runs]."""
    import numpy as np

    edges = {0, *(edge for of in sets for low, high in of.ranges for edge in (low, high + 1))}
    tables = []
    for runs in (unicode_data.category_runs(), unicode_data.flag_runs()):
        tables.append(np.array(runs).T)
        edges.update(tables[-1][0].tolist())
    starts = np.array(sorted(edges - {0x110000}))
    category, flags = (
        kinds[np.searchsorted(first, starts, side="right") - 1] for first, kinds in tables
    )
    return starts, np.stack([_holds(of, starts, category, flags) for of in sets])


def _holds(of: Ranges, starts: Any, category: Any, flags: Any) -> Any:
    """bool: which runs are in a set; all of a run is, or nothing."""
    import numpy as np

    found = np.zeros(len(starts), dtype=bool)
    for low, high in of.ranges:
        found |= (starts >= low) & (starts <= high)
    if of.categories:
        by_number = np.zeros(len(CATEGORY_NAMES), dtype=bool)
        for name in of.categories:
            wanted = [c.startswith(name.lstrip("!")) for c in CATEGORY_NAMES]
            by_number |= np.array(wanted) != name.startswith("!")
        found |= by_number[category]
    for flag in of.flags:
        has = flags >> unicode_data.FLAG_NAMES.index(flag.lstrip("!")) & 1 > 0
        found |= has != flag.startswith("!")
    return ~found if of.negated else found


def _closure(nodes: list[Node], threads: tuple[int, ...], accepts: Any) -> tuple[list[int], bool]:
    """Set nodes that threads lead to, in order of priority, up to a match; whether there is one.

    `accepts(set)`: whether the next character, or the end, is in a set; None: nothing ahead is.
    """
    found: list[int] = []
    seen: set[int] = set()
    todo = list(reversed(threads))
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        node = nodes[at]
        if node.kind == "match":
            return found, True
        if node.kind == "set":
            found.append(at)
        elif node.kind == "fork":
            todo += reversed(node.out)
        elif accepts is not None and accepts(node.of):
            todo += node.out
    return found, False


def _determine(
    nodes: list[Node], first: int, numbers: dict[Ranges, int], members: list[tuple[bool, ...]]
) -> tuple[Any, int]:
    import numpy as np

    width = len(members) + 1
    states: dict[tuple[int, ...], int] = {(): 0, (first,): 1}
    table: list[list[int]] = [[0] * width]
    queue: list[tuple[int, ...]] = [(first,)]
    while queue:
        threads = queue.pop(0)
        row = []
        for kind in range(width):
            holds = members[kind] if kind < width - 1 else None

            def accepts(of: Ranges, holds: Any = holds) -> bool:
                return of.end if holds is None else holds[numbers[of]]

            live, matched = _closure(nodes, threads, accepts)
            after = () if holds is None else _after(nodes, live, accepts)
            if after not in states:
                states[after] = len(states)
                queue.append(after)
                if len(states) > _MAX_STATES:
                    raise Unsupported("a pattern with too many states")
            row.append(states[after] * width * 8 + int(matched))
        table.append(row)
    return np.array(table, dtype=np.uint32).reshape(-1), width


def _mark_loops(rows: Any, width: int, ascii_class: list[int]) -> None:
    """Set the bits for states that runs lead back to, no match ending on the way."""
    small = {ascii_class[code] for code in range(ord("a"), ord("z") + 1)}
    capital = {ascii_class[code] for code in range(ord("A"), ord("Z") + 1)}
    for state in range(width, len(rows), width):
        stays = {kind for kind in range(width) if rows[state + kind] >> 3 == state}
        bits = 2 if small | capital <= stays else 4 if small <= stays else 0
        bits = 6 if set(ascii_class) <= stays else bits
        ends = [bool(rows[state + kind] & 1) for kind in range(width)]
        run = set(ascii_class) if bits == 6 else small | capital
        # A match that may end after any of a run must end after the last of it too.
        if bits and (all(ends) or not any(ends[kind] for kind in run)):
            rows[(rows >> 3 == state)] |= bits


class Runs(NamedTuple):
    """What the first bytes say of a match, so that most matches need no steps.

    `pairs[b0 * 128 + b1]` is a kind of match: `skips[kind]` bytes are read, a run of one sort of
    characters may follow (`loops`), and `exits[2 * kind + (whether there was a run)]` says what
    byte ends the match.
    """

    pairs: Any  # uint8 [128 * 128]: kinds; 0, not known; 1, the match is b0; 255, none begins there
    skips: Any  # int64 [kinds]
    loops: Any  # int64 [kinds]: 31 if a run may follow, else 0
    exits: Any  # uint8 [2 * kinds, 256]: 1, the match ends before this byte; 2, beyond ASCII
    exit_rows: Any  # uint32 [2 * kinds]: the state that is left
    fold: int  # a byte belongs to the run if (byte | fold) - first, as uint8, is below number
    first: int
    number: int


# (fold, first, number): all of ASCII, letters, small letters.
_SORTS = ((0, 0, 128), (0x20, ord("a"), 26), (0, ord("a"), 26))
_MOST_KINDS = 120


def runs(machine: Automaton) -> Runs:
    """The runs of an automaton, of the widest sort that it has."""
    import numpy as np

    width, rows = machine.width, machine.rows
    classes = machine.stage2[int(machine.stage1[0]) * 128 :][:128].astype(int)
    states = [row for row in range(width, len(rows), width) if row != machine.start]
    states = states[:_MOST_KINDS]
    for fold, first, number in _SORTS:
        members = [code for code in range(128) if 0 <= (code | fold) - first < number]
        left = rows[np.array(states)[:, None] + np.unique(classes[members])] >> 3
        stays = np.all(left == np.array(states)[:, None], axis=1)
        if stays.any():
            break
    loops, exit_rows = [0, 0], [0, 0, 0, 0]
    for row, to in zip(states, left):
        run = _loop(states, stays, to)
        loops.append(31 if run else 0)
        exit_rows += [row, run or row]
    exits = np.full((2 * len(loops), 256), 2, dtype=np.uint8)
    exits[:, :128] = (rows[np.array(exit_rows)[:, None] + classes] & ~np.uint32(6)) == 1
    exits[0:2], exits[2:4] = 0, 1
    kinds = {row: 2 + kind for kind, row in enumerate(states)}
    pairs = np.zeros((width - 1, width - 1), dtype=np.uint8)
    for one in range(width - 1):
        step = int(rows[machine.start + one]) >> 3
        for two in range(width - 1):
            then = int(rows[step + two])
            pairs[one, two] = kinds.get(then >> 3, 0) if then >> 3 else then & 1
        if not step:
            pairs[one] = 255
    return Runs(
        np.ascontiguousarray(pairs[classes][:, classes]).reshape(-1),
        np.array([2, 1, *[2] * len(states)], dtype=np.int64),
        np.array(loops, dtype=np.int64),
        exits,
        np.array(exit_rows, dtype=np.uint32),
        fold,
        first,
        number,
    )


def _loop(states: list[int], stays: Any, to: Any) -> int:
    """The state that all members of a run lead to and stay in, or 0."""
    only = set(to.tolist())
    row = only.pop() if len(only) == 1 else 0
    return row if row in states and stays[states.index(row)] else 0


def _after(nodes: list[Node], live: list[int], accepts: Any) -> tuple[int, ...]:
    following = [nodes[at].out[0] for at in live if accepts(nodes[at].of)]
    return tuple(dict.fromkeys(following))
