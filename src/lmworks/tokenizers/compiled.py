"""The compiled way from text to ids: tables for the kernels, and the calls.

`CompiledEncoder.of(tokenizer)` says None for a tokenizer that only the readable path can run (a
pattern that is no automaton, tokens with a suffix); `encode` says None for a text that it can't
(a character that its neighbours change). Ids are those of the readable path, always.

The tables are built on first use. What grows (the words that are remembered) has a bound, and
each thread has its own.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.compiled import threads
from lmworks.core.errors import UserError
from lmworks.tokenizers import slots
from lmworks.tokenizers.automaton import Automaton, Unsupported, automaton
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.calls import call, kernel
from lmworks.tokenizers.mapped import Mapping, mapping_of
from lmworks.tokenizers.pre_tokenizers import Cut
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.wordpiece import WordPiece

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_WORDS = 1 << 17  # slots of the table of remembered words: 4 MiB
_POOL = 1 << 18  # ids of words that have more than five
_SPACE = 1 << 12  # symbols of one piece, to begin with
_OUT_AT_ONCE = 1 << 22  # ids per call, for texts of many megabytes
_LEARNT_TOKENS = 1 << 16  # of a vocabulary whose tokens must be merged to be known
_WORTH_THREADS = 1 << 18  # characters
_KEEPS = {
    ("Isolated", False): slots.KEEP_ALL,
    ("Isolated", True): slots.KEEP_ALL,
    ("Removed", False): slots.KEEP_GAPS,
    ("Removed", True): slots.KEEP_MATCHES,
}


class CompiledEncoder:
    """The kernels and the tables of one tokenizer."""

    def __init__(self, tokenizer: PipelineTokenizer) -> None:
        """Raises: Unsupported for a tokenizer that only the readable path can run."""
        self._tokenizer = tokenizer
        self._kept: list[Any] = []  # arrays whose addresses the kernels hold
        model = tokenizer.vocabulary.model
        self._mapping = mapping_of(tokenizer)
        self._template = np.zeros(slots.ENCODE_SLOTS, dtype=np.int64)
        self._kept += cut_levels(self._template, tokenizer.pre_tokenizer.cuts)
        self._set_model(model)
        self._encode = kernel("encode")
        self._learn_words(model)
        self._tokens = TokenFinder(tokenizer, self._mapping)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._idle: list[_State] = []

    @classmethod
    def of(cls, tokenizer: PipelineTokenizer) -> CompiledEncoder | None:
        """The compiled path of a tokenizer, or None when there is none."""
        try:
            return cls(tokenizer)
        except Unsupported:
            return None

    # Tables.

    def _address(self, array: Any) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def _learn_words(self, model: BPE | Unigram | WordPiece) -> None:
        """Fill the table of words with the tokens, so that a first pass finds most words in it."""
        a, known = self._template, []
        if a[slots.KEEP_WORDS] and (a[slots.WHOLE_WORDS] or len(model.tokens) <= _LEARNT_TOKENS):
            known = [(t, i) for i, t in enumerate(model.tokens) if 0 < len(t) <= 15 and _is_text(t)]
        size = max(_WORDS, 1 << (3 * len(known)).bit_length())
        table = np.zeros(4 * size, dtype=np.uint64)
        a[slots.WORDS_GIVEN], a[slots.WORDS_MASK] = self._address(table), size - 1
        self._given = table
        if not known:
            return
        state = _State(a, table)
        data = b"".join(token for token, _ in known)
        source, ids = np.frombuffer(data, dtype=np.uint8), np.array([i for _, i in known], np.int32)
        ends = np.cumsum([len(token) for token, _ in known], dtype=np.int64)
        for slot, array in ((slots.TEXT, source), (slots.ENDS, ends), (slots.OUT, ids)):
            state.slots[slot] = array.ctypes.data
        state.slots[slots.TEXT_SIZE], state.slots[slots.NUM_TOKENS] = len(data), len(known)
        a[slots.WORDS_KNOWN] = kernel("learn_words")(state.address)

    def _set_model(self, model: BPE | Unigram | WordPiece) -> None:
        a = self._template
        a[slots.UNK_ID] = -1 if model.unk_id is None else model.unk_id
        if len(model.tokens) >= 1 << 21:
            raise Unsupported("more than two million tokens")
        if isinstance(model, BPE):
            self._set_bpe(model)
        elif isinstance(model, Unigram):
            self._set_unigram(model)
        else:
            self._set_word_piece(model)
        a[slots.KEEP_WORDS] = int(not (isinstance(model, Unigram) and not self._restarts(model)))

    def _restarts(self, model: Unigram) -> bool:
        """Whether scores begin anew with each piece, so that a piece always has the same ids."""
        return not model.float32

    def _set_bpe(self, model: BPE) -> None:
        if model.end_of_word_suffix or model.continuing_subword_prefix:
            raise Unsupported("tokens with a prefix or suffix")
        if model.byte_level and model.unk_id is not None and None in model.byte_ids:
            raise Unsupported("unknown bytes")
        a = self._template
        a[slots.MODEL] = slots.MODEL_BPE
        a[slots.BYTE_LEVEL] = model.byte_level
        a[slots.BYTE_FALLBACK], a[slots.FUSE_UNK] = model.byte_fallback, model.fuse_unk
        a[slots.JOIN_UNKNOWN] = model.fuse_unk and model.unk_id is not None
        self._set_byte_ids(model.byte_ids)
        ranked = model.ranked
        if ranked:
            pairs = np.array(list(ranked), dtype=np.int64)
            values = np.array(list(ranked.values()), dtype=np.int64)
            values = values[:, 0] << 32 | values[:, 1]
        else:
            pairs, values = np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)
        a[slots.MERGES], a[slots.MERGES_MASK] = self._pairs(pairs[:, 0], pairs[:, 1], values)
        if not model.byte_level:
            single = {ord(t.decode()): i for t, i in model.ids.items() if _characters(t) == 1}
            codes = np.array(list(single), dtype=np.int64)
            ids = np.array(list(single.values()), dtype=np.int64)
            a[slots.CHARACTERS], a[slots.CHARACTERS_MASK] = self._pairs(codes, codes * 0, ids)
        if model.ignore_merges:
            a[slots.WHOLE_WORDS] = 1
            self._set_trie(model.ids)
        dropped = [byte for byte, i in enumerate(model.byte_ids) if i is None]
        self._set_safe(model.ids, dropped if model.byte_level else ())

    def _set_unigram(self, model: Unigram) -> None:
        a = self._template
        a[slots.MODEL] = slots.MODEL_UNIGRAM
        a[slots.BYTE_FALLBACK], a[slots.FLOAT32] = model.byte_fallback, model.float32
        a[slots.JOIN_UNKNOWN] = model.unk_id is not None
        self._set_byte_ids(model.byte_ids)
        ids = {text.encode(): i for text, i in model.by_text.items()}
        self._set_trie(ids)
        kind = np.float32 if model.float32 else np.float64
        scores = np.array(model.scores, dtype=kind).astype(np.float64)
        a[slots.SCORES] = self._address(scores)
        lowest = np.array([model.unknown_score], dtype=kind).astype(np.float64)
        a[slots.UNK_SCORE] = self._address(lowest)
        self._set_safe(ids)

    def _set_word_piece(self, model: WordPiece) -> None:
        a = self._template
        a[slots.MODEL] = slots.MODEL_WORD_PIECE
        a[slots.LONGEST_WORD] = model.max_input_chars_per_word
        prefix = model.continuing_subword_prefix.encode()
        if not prefix:
            raise Unsupported("WordPiece without a prefix inside words")
        a[slots.INSIDE_NODE] = self._set_trie(
            {text.encode(): i for text, i in model.by_text.items()}, prefix
        )

    def _set_byte_ids(self, byte_ids: Iterable[int | None]) -> None:
        ids = np.array([-1 if i is None else i for i in byte_ids], dtype=np.int32)
        self._template[slots.BYTE_IDS] = self._address(ids)

    def _pairs(self, left: Any, right: Any, value: Any) -> tuple[int, int]:
        """Address and mask of a table of pairs."""
        table, mask = _table(len(left))
        columns = [np.ascontiguousarray(c, dtype=np.int64) for c in (left, right, value)]
        call("insert_pairs", table, mask, *columns, len(left))
        return self._address(table), mask

    def _set_trie(self, ids: dict[bytes, int], inside: bytes = b"") -> int:
        trie = Trie(list(ids), list(ids.values()), also=inside)
        a = self._template
        a[slots.TRIE], a[slots.TRIE_MASK] = self._address(trie.table), trie.mask
        a[slots.TRIE_VALUES] = self._address(trie.values)
        return trie.inside

    def _set_safe(self, tokens: Iterable[bytes], dropped: Iterable[int] = ()) -> None:
        """Where a text may be cut; not beside a byte that is dropped: its neighbours would meet."""
        pairs, coarse = joined_pairs(list(tokens))
        beside = np.unpackbits(coarse, bitorder="little").reshape(256, 256)
        for byte in dropped:
            beside[byte, :] = beside[:, byte] = 1
        coarse = np.packbits(beside, bitorder="little")
        a = self._template
        a[slots.SAFE_PAIRS], a[slots.SAFE_BYTES] = self._address(pairs), self._address(coarse)
        a[slots.SAFE_MASK] = 8 * len(pairs) - 1

    # Calls.

    def encode(self, text: str, *, allow_special: bool = False) -> Any | None:
        """int32 ids [n], or None for a text that only the readable path can take."""
        try:
            data = self._mapping.whole(text)
        except UnicodeEncodeError:
            return None
        if data is not None and (found := self._tokens.find(data, allow_special)) is not None:
            return self._run(data, found)
        tokenizer, parts = self._tokenizer, [np.zeros(0, dtype=np.int32)]
        pieces = tokenizer.added_tokens.split(
            text, allow_special=allow_special, normalize=self._mapping.normalized
        )
        for piece, token_id, begins in pieces:
            if token_id is not None:
                parts.append(np.array([token_id], dtype=np.int32))
            else:
                changed = tokenizer.pre_tokenizer.change(piece, at_start=begins)
                parts.append(self._run(changed.encode(), _NO_TOKENS))
        return np.concatenate(parts)

    def _run(self, data: bytes, tokens: Any) -> Any:
        """Ids of mapped text with added tokens at known places."""
        state = self._state()
        a, source = state.slots, np.frombuffer(data, dtype=np.uint8)
        a[slots.TEXT], a[slots.TEXT_SIZE], a[slots.AT] = source.ctypes.data, len(data), 0
        a[slots.TOKENS], a[slots.NUM_TOKENS] = tokens.ctypes.data, len(tokens) // 3
        a[slots.TOKEN_AT] = 0
        state.room_for(min(len(data) + 64, _OUT_AT_ONCE))
        count = self._encode(state.address)
        if a[slots.AT] >= len(data) and not a[slots.NEED]:
            return state.out[:count].copy()
        parts = [state.out[:count].copy()]
        while a[slots.AT] < len(data) or a[slots.NEED]:
            self._make_room(state, len(data))
            parts.append(state.out[: self._encode(state.address)].copy())
        return np.concatenate(parts)

    def _make_room(self, state: _State, size: int) -> None:
        need = int(state.slots[slots.NEED])
        if need == -2:
            cuts = ", ".join(repr(c.expression[:60]) for c in self._tokenizer.pre_tokenizer.cuts)
            raise UserError(
                f"the pattern {cuts} takes time with the square of the text: simplify it"
            )
        if need == -1 and state.slots[slots.AT] == state.stuck_at:
            state.room_for(min(2 * len(state.out), size + 64))
        elif need > 0:
            state.space_for(2 * need)
        state.stuck_at = int(state.slots[slots.AT])

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[Any]:
        """`encode` of each text on all cores, in order."""
        number = min(threads(), len(texts))
        if number < 2 or sum(map(len, texts)) < _WORTH_THREADS:
            return [self.encode(text, allow_special=allow_special) for text in texts]
        with ThreadPoolExecutor(number, thread_name_prefix="tokenizer") as pool:
            work = _shares(texts, 8 * number)

            def encode(share: slice) -> list[Any]:
                with self._borrowed():
                    return self._joined(texts[share], allow_special)

            return [ids for part in pool.map(encode, work) for ids in part]

    def _joined(self, texts: Sequence[str], allow_special: bool) -> list[Any]:
        """`encode` of each text in one call, so that the GIL is out of the way for long.

        The texts stand one behind the other; where one ends stands a token of no size.
        """
        found, parts, tokens, at = [], [], [], 0
        for text in texts:
            try:
                data = self._mapping.whole(text)
            except UnicodeEncodeError:
                data = None
            inside = None if data is None else self._tokens.find(data, allow_special)
            if data is None or inside is None:
                return [self.encode(text, allow_special=allow_special) for text in texts]
            if len(inside):
                moved = inside.reshape(-1, 3) + np.array([at, at, 0])
                tokens.append(moved.reshape(-1))
            at += len(data)
            parts.append(data)
            tokens.append(np.array([at, at, _END_OF_TEXT], dtype=np.int64))
        ids = self._run(b"".join(parts), np.concatenate(tokens) if tokens else _NO_TOKENS)
        ends = np.flatnonzero(ids == _END_OF_TEXT)
        for start, end in zip(np.append(0, ends[:-1] + 1), ends):
            found.append(ids[start:end])
        return found

    def _state(self) -> _State:
        found = getattr(self._local, "state", None)
        if found is None:
            found = self._local.state = self._new_state()
        return found

    def _new_state(self) -> _State:
        return _State(self._template, self._given.copy())

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[None]:
        """A state for a thread that will not live long: what it remembers is kept for the next."""
        if getattr(self._local, "state", None) is None:
            with self._lock:
                self._local.state = self._idle.pop() if self._idle else self._new_state()
            self._local.borrowed = True
        yield
        if getattr(self._local, "borrowed", False):
            with self._lock:
                self._idle.append(self._local.state)
            self._local.state = None


class _State:
    """What one thread works with."""

    def __init__(self, template: Any, words: Any) -> None:
        self.slots = template.copy()
        self.address = int(self.slots.ctypes.data)
        self.stuck_at = -1
        self._arrays: dict[int, Any] = {}
        self.out = np.empty(0, dtype=np.int32)
        self._set(slots.WORDS, words)
        self._set(slots.MASKS, _MASKS)
        self._set(slots.POOL, np.empty(_POOL, dtype=np.int32))
        self._set(slots.PLACES, np.zeros(16, dtype=np.int64))
        self._set(slots.ENDS, np.zeros(16, dtype=np.int64))
        self._set(slots.REACHED, np.zeros(2, dtype=np.float64))
        self.slots[slots.POOL_ROOM] = _POOL
        self.slots[slots.WORDS_USED] = self.slots[slots.WORDS_KNOWN]
        self.space_for(_SPACE)
        self.room_for(1 << 14)

    def _set(self, slot: int, array: Any) -> None:
        self._arrays[slot] = array
        self.slots[slot] = array.ctypes.data

    def room_for(self, ids: int) -> None:
        """Let OUT hold that many."""
        if len(self.out) < ids:
            self.out = np.empty(ids, dtype=np.int32)
            self.slots[slots.OUT], self.slots[slots.OUT_ROOM] = self.out.ctypes.data, ids

    def space_for(self, symbols: int) -> None:
        """Let a piece have that many symbols."""
        self._set(slots.HEAP, np.empty(3 * symbols + 8, dtype=np.uint64))
        for slot in (slots.SYMBOLS, slots.FOLLOWING, slots.BEFORE):
            self._set(slot, np.empty(symbols + 8, dtype=np.int32))
        self.slots[slots.SPACE] = symbols


class TokenFinder:
    """Added tokens in mapped text, where nothing beside their own text matters."""

    def __init__(self, tokenizer: PipelineTokenizer, mapping: Mapping) -> None:
        tokens = [token for token in tokenizer.vocabulary.added_tokens if token.text]
        self._any = {True: bool(tokens), False: any(not token.special for token in tokens)}
        findable = mapping.findable(tokens)
        self.plain = findable is not None
        if not findable:
            self._any = {True: False, False: False} if self.plain else self._any
            return
        tokens = findable
        self._any = {True: True, False: any(not token.special for token in tokens)}
        self._trie = Trie([mapping.token(token.text) for token in tokens], range(len(tokens)))
        self._ids = np.array([token.id for token in tokens], dtype=np.int64)
        self._special = np.array([token.special for token in tokens], dtype=np.uint8)
        self._first = np.zeros(256, dtype=np.uint8)
        self._first[[mapping.token(token.text)[0] for token in tokens]] = 1

    def find(self, data: bytes, allow_special: bool) -> Any | None:
        """int64 [3 * tokens]: start, end, id of each; None when the readable path must look."""
        if not self._any[allow_special]:
            return _NO_TOKENS
        if not self.plain:
            return None
        source, room = np.frombuffer(data, dtype=np.uint8), 256
        while True:
            out = np.empty(3 * room, dtype=np.int64)
            trie = self._trie
            found = call(
                *("find_tokens", source, len(data), self._first, trie.table, trie.mask),
                *(trie.values, self._special, int(allow_special), out, room),
            )
            if found <= room:
                out = out[: 3 * found]
                out[2::3] = self._ids[out[2::3]]
                return out
            room = found


class Trie:
    """Texts by their bytes: (node, byte) -> node in a table of pairs, and a value per node."""

    def __init__(self, texts: list[bytes], worth: Iterable[int], also: bytes = b"") -> None:
        data = b"".join(texts) + also
        sizes = [len(text) for text in texts]
        ends = np.cumsum(sizes, dtype=np.int64)
        values = np.array(list(worth), dtype=np.int32)
        self.table, self.mask = _table(len(data) + 1)
        self.values = np.zeros(len(data) + 2, dtype=np.int32)
        source = np.frombuffer(data or b"\0", dtype=np.uint8)
        self.nodes = call(
            *("insert_trie", self.table, self.mask, self.values),
            *(source, ends, values, len(texts), 1),
        )
        self.inside = self._node(also)

    def _node(self, text: bytes) -> int:
        """The node of a beginning; -1 when no text has it."""
        if not text:
            return 0
        probe = np.frombuffer(text, dtype=np.uint8)
        return int(call("find_node", self.table, self.mask, probe, len(text)))


def cut_levels(a: Any, cuts: Sequence[Cut]) -> list[Any]:
    """Tell a kernel how text is cut. Returns: the arrays whose addresses it now holds.

    Raises: Unsupported for a cut that is no automaton.
    """
    kept: list[Any] = []
    levels = np.zeros((len(cuts), slots.CUT_SLOTS), dtype=np.int64)
    for level, cut in zip(levels, cuts):
        expression, keeps = plain_cut(cut)
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
    a[slots.LEVELS], a[slots.NUM_LEVELS] = levels.ctypes.data, len(cuts)
    return [*kept, levels]


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


def joined_pairs(tokens: list[bytes]) -> tuple[Any, Any]:
    """Which characters stand side by side within a token, as two bit tables.

    Returns: a table of hashed pairs of whole characters, and one of (last byte, first byte) for
    places where a token holds only a part of a character. A place in a text that neither table
    has is one that no token reaches across.
    """
    data = np.frombuffer(b"".join(tokens) + b"\0\0\0\0", dtype=np.uint8).astype(np.int64)
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    token_of = np.repeat(np.arange(len(tokens)), np.diff(ends, prepend=0))
    size = len(token_of)
    starts = np.flatnonzero((data[:size] & 0xC0) != 0x80)
    lead = data[starts]
    widths = np.where(lead < 0x80, 1, np.where(lead < 0xE0, 2, np.where(lead < 0xF0, 3, 4)))
    follows = np.append(starts[1:], size)
    token_end = ends[token_of[starts]] if size else starts
    whole = (np.minimum(follows, token_end) - starts) == widths
    codes = _code_points(data, starts, widths)
    inner = np.flatnonzero(np.append(0, starts[:-1]) >= 0)  # every start, then those inside tokens
    first = np.append(0, ends[:-1])[token_of[starts]] if size else starts
    inner = inner[starts[inner] > first[inner]]
    before = inner - 1
    same = (before >= 0) & (starts[before] >= first[inner])
    both = same & whole[before] & whole[inner]
    hashed = np.unique(_hashed(codes[before[both]], codes[inner[both]]))
    pairs = _bits(hashed, 1 << min(23, max(16, (24 * len(hashed)).bit_length())))
    rest = inner[~both]
    coarse = _bits(data[starts[rest] - 1] << 8 | data[starts[rest]], 1 << 16)
    return pairs, coarse


def _code_points(data: Any, starts: Any, widths: Any) -> Any:
    value = data[starts] & np.array([0, 0x7F, 0x1F, 0x0F, 0x07])[widths]
    for extra in range(1, 4):
        more = widths > extra
        value = np.where(
            more, value << 6 | data[np.minimum(starts + extra, len(data) - 1)] & 63, value
        )
    return value


def _hashed(left: Any, right: Any) -> Any:
    """The kernels' `mix`, for arrays."""
    with np.errstate(over="ignore"):
        a, b = left.astype(np.uint64), right.astype(np.uint64)
        h = a * np.uint64(0x9E3779B97F4A7C15)
        h ^= (b + np.uint64(0x7F4A7C15)) * np.uint64(0xC2B2AE3D27D4EB4F)
        h ^= h >> np.uint64(32)
        return h * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(20)


def _bits(places: Any, size: int) -> Any:
    table = np.zeros(size, dtype=np.uint8)
    table[(places.astype(np.uint64) & np.uint64(size - 1)).astype(np.int64)] = 1
    return np.packbits(table, bitorder="little")


def _table(entries: int) -> tuple[Any, int]:
    """An empty table of pairs, at most half full, and its mask."""
    size = 1 << max(4, (2 * entries).bit_length())
    return np.zeros(2 * size, dtype=np.uint64), size - 1


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _characters(token: bytes) -> int:
    return len(token.decode("utf-8", "replace"))


def _shares(texts: Sequence[str], number: int) -> list[slice]:
    """Slices of about the same amount of text."""
    sizes = np.cumsum([len(text) + 64 for text in texts])
    places = np.searchsorted(sizes, np.linspace(0, sizes[-1], number + 1)[1:-1])
    bounds = [0, *sorted({int(place) for place in places} - {0}), len(texts)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _masks() -> Any:
    """uint64 [32]: for a word of n bytes, what is kept of its first eight and of the next."""
    whole = (1 << 64) - 1
    pairs = [((1 << 8 * min(n, 8)) - 1, (1 << 8 * max(0, n - 8)) - 1) for n in range(16)]
    return np.array([number & whole for pair in pairs for number in pair], dtype=np.uint64)


_MASKS = _masks()
_END_OF_TEXT = -1
_NO_TOKENS = np.zeros(0, dtype=np.int64)
