"""The compiled way from text to ids: tables for the kernels, and the calls.

`CompiledEncoder.of(tokenizer)` says None for a tokenizer that only the readable path can run (a
pattern that is no automaton, tokens with a suffix); `encode` says None for a text that it can't
(a character that its neighbours change). Ids are those of the readable path, always.

The tables are built on first use. What grows (the words that are remembered) has a bound, and
each thread has its own.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.compiled import threads
from lmworks.core.errors import UserError
from lmworks.tokenizers import slots
from lmworks.tokenizers.automaton import Unsupported
from lmworks.tokenizers.bpe import BPE, Merges
from lmworks.tokenizers.buffers import Buffer, of_bytes, utf8
from lmworks.tokenizers.calls import call, kernel
from lmworks.tokenizers.compiled_tables import (
    Trie,
    VocabularyTable,
    cut_levels,
    empty_table,
    joined_pairs,
    safe_codes,
)
from lmworks.tokenizers.mapped import Mapping
from lmworks.tokenizers.token_finder import NO_TOKENS, TokenFinder
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.wordpiece import WordPiece

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.vocabulary import AddedToken

_WORDS = 1 << 17  # slots of the table of remembered words: 4 MiB
_POOL = 1 << 20  # ids of words that have more than five
_LONG_TEXTS = 1 << 22  # bytes of words of more than 15
_SPACE = 1 << 12  # symbols of one piece, to begin with
_OUT_AT_ONCE = 1 << 22  # ids per call, for texts of many megabytes
_WORTH_THREADS = 1 << 18  # characters


class CompiledEncoder:
    """The kernels and the tables of one tokenizer."""

    def __init__(self, tokenizer: PipelineTokenizer) -> None:
        """Raises: Unsupported for a tokenizer that only the readable path can run."""
        self._tokenizer = tokenizer
        self._kept: list[Any] = []  # arrays whose addresses the kernels hold
        model = tokenizer.vocabulary.model
        self._mapping = Mapping(tokenizer)
        self._template = np.zeros(slots.ENCODE_SLOTS, dtype=np.int64)
        self._given: Any = None  # words that are known from the start
        cuts = [cut for cut in tokenizer.pre_tokenizer.cuts if not self._mapping.lacks(cut)]
        self._kept += cut_levels(self._template, cuts)
        self._set_model(model)
        self._encode = kernel("encode")
        self._set_finders(tokenizer)
        self._local = threading.local()

    def _set_finders(self, tokenizer: PipelineTokenizer) -> None:
        """Added tokens: by their text, by their text when normalised, and in changed text."""
        tokens = [token for token in tokenizer.vocabulary.added_tokens if token.text]
        space = tokenizer.pre_tokenizer.spaces_as or " "
        later = [
            (text.replace(" ", space), token)
            for text, token in tokenizer.added_tokens.normalized_texts.items()
        ]
        inside = self._mapping.findable(tokens)

        def finder(found: list[tuple[bytes, AddedToken]]) -> TokenFinder:
            texts, of = [text for text, _ in found], [token for _, token in found]
            return TokenFinder(texts, [t.id for t in of], [t.special for t in of])

        self._raw = finder([(t.text.encode("utf-8", "replace"), t) for t in tokens])
        self._later = finder([(text.encode("utf-8", "replace"), t) for text, t in later])
        self._inside: TokenFinder | None = None
        if inside is not None:
            self._inside = finder([(self._mapping.token(t.text), t) for t in inside])

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
        self._set_merges(model)
        if not model.byte_level:
            single = {ord(t.decode()): i for t, i in model.ids.items() if _is_character(t)}
            codes = np.array(list(single), dtype=np.int64)
            ids = np.array(list(single.values()), dtype=np.int64)
            a[slots.CHARACTERS], a[slots.CHARACTERS_MASK] = self._pairs(codes, codes * 0, ids)
        if model.ignore_merges:
            a[slots.WHOLE_WORDS] = 1
            found = VocabularyTable(model.tokens)
            a[slots.VOCABULARY], a[slots.VOCABULARY_MASK] = self._address(found.table), found.mask
            a[slots.VOCABULARY_TEXTS] = self._address(found.texts)
            a[slots.VOCABULARY_ENDS] = self._address(found.ends)
            self._given, a[slots.WORDS_KNOWN] = found.words(_WORDS)
            a[slots.WORDS_GIVEN] = self._address(self._given)
        dropped = [byte for byte, i in enumerate(model.byte_ids) if i is None]
        self._set_safe(model.tokens, dropped if model.byte_level else ())

    def _set_unigram(self, model: Unigram) -> None:
        a = self._template
        a[slots.MODEL] = slots.MODEL_UNIGRAM
        a[slots.BYTE_FALLBACK], a[slots.FLOAT32] = model.byte_fallback, model.float32
        a[slots.JOIN_UNKNOWN] = model.unk_id is not None
        self._set_byte_ids(model.byte_ids)
        ids = {text.encode(): i for text, i in model.by_text.items()}
        trie = self._set_trie(ids)
        a[slots.TRIE_ROOT] = self._address(trie.first_links())
        kind = np.float32 if model.float32 else np.float64
        scores = np.array(model.scores, dtype=kind).astype(np.float64)
        # By node; where no token ends, a score that is not looked at.
        a[slots.SCORES] = self._address(scores[np.maximum(trie.values - 1, 0)])
        lowest = np.array([model.unknown_score], dtype=kind).astype(np.float64)
        a[slots.UNK_SCORE] = self._address(lowest)
        self._set_safe(list(ids))

    def _set_word_piece(self, model: WordPiece) -> None:
        a = self._template
        a[slots.MODEL] = slots.MODEL_WORD_PIECE
        a[slots.LONGEST_WORD] = model.max_input_chars_per_word
        prefix = model.continuing_subword_prefix.encode()
        if not prefix:
            raise Unsupported("WordPiece without a prefix inside words")
        ids = {text.encode(): i for text, i in model.by_text.items()}
        a[slots.INSIDE_LINK] = self._set_trie(ids).link(prefix)

    def _set_byte_ids(self, byte_ids: Iterable[int | None]) -> None:
        ids = np.array([-1 if i is None else i for i in byte_ids], dtype=np.int32)
        self._template[slots.BYTE_IDS] = self._address(ids)

    def _pairs(self, left: Any, right: Any, value: Any) -> tuple[int, int]:
        """Address and mask of a table of pairs."""
        table, mask = empty_table(len(left))
        columns = [np.ascontiguousarray(c, dtype=np.int64) for c in (left, right, value)]
        call("insert_pairs", table, mask, *columns, len(left))
        return self._address(table), mask

    def _set_merges(self, model: BPE) -> None:
        """Pairs to what they merge to: a table, and for pairs of bytes one without a search."""
        a, pairs = self._template, Merges.of(model.merges).pairs
        left, right = (np.ascontiguousarray(pairs[:, i]) for i in (0, 1))
        ranks = np.arange(len(left)) if model.ranks is None else np.asarray(model.ranks)
        whole = ranks.astype(np.uint64) << np.uint64(32) | model.merged.astype(np.uint64)
        changes = np.append(True, whole[1:] != whole[:-1])[: len(whole)]
        values, number = whole[changes], np.cumsum(changes) - 1
        if len(values) >= 1 << 21:
            raise Unsupported("more than two million merges")
        size = 1 << max(4, (2 * len(left)).bit_length())
        table = np.zeros(size, dtype=np.uint64)
        call("insert_merges", table, size - 1, left, right, number.astype(np.int32), len(left))
        a[slots.MERGES], a[slots.MERGES_MASK] = self._address(table), size - 1
        a[slots.MERGE_VALUES] = self._address(values)
        if model.byte_level and None not in model.byte_ids:
            byte_of = np.full(len(model.tokens), -1)
            byte_of[np.array(model.byte_ids)] = np.arange(256)
            one, two = byte_of[left], byte_of[right]
            both = (one >= 0) & (two >= 0)
            of_bytes = np.full(1 << 16, ~np.uint64(0))
            of_bytes[one[both] << 8 | two[both]] = whole[both]
            a[slots.BYTE_PAIRS] = self._address(of_bytes)

    def _set_trie(self, ids: dict[bytes, int]) -> Trie:
        trie = Trie(list(ids), list(ids.values()))
        a = self._template
        a[slots.TRIE], a[slots.TRIE_MASK] = self._address(trie.table), trie.mask
        a[slots.TRIE_VALUES] = self._address(trie.values)
        return trie

    def _set_safe(self, tokens: Sequence[bytes], dropped: Iterable[int] = ()) -> None:
        """Where a text may be cut; not beside a byte that is dropped: its neighbours would meet."""
        pairs, coarse = joined_pairs(tokens)
        beside = np.unpackbits(coarse, bitorder="little").reshape(256, 256)
        for byte in dropped:
            beside[byte, :] = beside[:, byte] = 1
        coarse = np.packbits(beside, bitorder="little")
        a = self._template
        a[slots.SAFE_PAIRS], a[slots.SAFE_BYTES] = self._address(pairs), self._address(coarse)
        a[slots.SAFE_MASK] = 8 * len(pairs) - 1
        ascii_codes = np.arange(128)
        found = safe_codes(pairs, coarse, ascii_codes[:, None], ascii_codes[None, :])
        a[slots.SAFE_ASCII] = self._address(found)
        a[slots.SAFE_MARK] = self._address(safe_codes(pairs, coarse, ascii_codes, _MARK))

    # Calls.

    def encode(self, text: str, *, allow_special: bool = False) -> Any | None:
        """int32 ids [n], or None for a text that only the readable path can take."""
        try:
            found = self._view(text, allow_special)
        except UnicodeEncodeError:
            return None
        if found is None:
            return self._by_pieces(text, allow_special)
        return self._run(*found)

    def _view(self, text: str, allow_special: bool) -> tuple[Buffer, Any] | None:
        """A text as it is cut and the added tokens in it; None when it must be taken in pieces."""
        raw = utf8(text)
        if not self._raw.seen(raw, allow_special):
            view = self._mapping.view(text, raw)
            if view is None or self._later.seen(view, allow_special):
                return None
            return view, NO_TOKENS
        data = self._mapping.whole(text) if self._inside is not None else None
        if data is None or self._inside is None:
            return None
        view = of_bytes(data)
        return view, self._inside.find(view, allow_special)

    def _by_pieces(self, text: str, allow_special: bool) -> Any:
        """Ids of a text whose added tokens, or characters, need the readable path's eye."""
        tokenizer, parts = self._tokenizer, [np.zeros(0, dtype=np.int32)]
        pieces = tokenizer.added_tokens.split(
            text, allow_special=allow_special, normalize=self._mapping.normalized
        )
        for piece, token_id, begins in pieces:
            if token_id is not None:
                parts.append(np.array([token_id], dtype=np.int32))
            else:
                changed = tokenizer.pre_tokenizer.change(piece, at_start=begins)
                parts.append(self._run(utf8(changed), NO_TOKENS))
        return np.concatenate(parts)

    def _run(self, text: Buffer, tokens: Any) -> Any:
        """Ids of mapped text with added tokens at known places."""
        state = self._state()
        a = state.view
        a[slots.TEXT], a[slots.TEXT_SIZE], a[slots.AT] = text.address, text.size, 0
        a[slots.TOKEN_AT], a[slots.NUM_TOKENS] = 0, len(tokens) // 3
        if len(tokens):
            a[slots.TOKENS] = tokens.ctypes.data
        state.room_for(min(text.size + 64, _OUT_AT_ONCE))
        count = self._encode(state.address)
        if a[slots.AT] >= text.size and not a[slots.NEED]:
            return state.out[:count].copy()
        parts = [state.out[:count].copy()]
        while a[slots.AT] < text.size or a[slots.NEED]:
            self._make_room(state, text.size)
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

        def encode(share: slice) -> list[Any]:
            return self._many(texts[share], allow_special)

        return [
            ids
            for part in _threads_of(os.getpid()).map(encode, _shares(texts, 4 * number))
            for ids in part
        ]

    def _many(self, texts: Sequence[str], allow_special: bool) -> list[Any]:
        """`encode` of each text in one call, so that the GIL is out of the way for long."""
        views = []
        for text in texts:
            try:
                view = self._view(text, allow_special)
            except UnicodeEncodeError:
                view = None
            if view is None:
                return [self.encode(text, allow_special=allow_special) for text in texts]
            views.append(view)
        state = self._state()
        sizes = [view.size for view, _ in views]
        out = np.empty(sum(sizes) + 64 * (len(texts) + 1), dtype=np.int32)
        job = np.array(
            [(v.address, v.size, t.ctypes.data, len(t) // 3, 0) for v, t in views], dtype=np.int64
        )
        state.slots[slots.MANY_TEXTS], state.slots[slots.MANY_NUMBER] = job.ctypes.data, len(texts)
        state.slots[slots.MANY_OUT], state.slots[slots.MANY_ROOM] = out.ctypes.data, len(out)
        state.slots[slots.MANY_DONE] = 0
        try:
            while (done := self._encode(state.address)) < len(texts):
                self._make_room(state, sizes[done])
        finally:  # the next text of this thread may come alone
            state.slots[slots.MANY_NUMBER] = 0
        ends = job[:, 4].tolist()
        ids = out[: ends[-1]].copy()
        return [ids[start:end] for start, end in zip([0, *ends], ends)]

    def _state(self) -> _State:
        found = getattr(self._local, "state", None)
        if found is None:
            found = self._local.state = _State(self._template, self._given)
        return found


class _State:
    """What one thread works with."""

    def __init__(self, template: Any, given: Any) -> None:
        self.slots = template.copy()
        self.view = memoryview(self.slots)  # the quick way to set a slot
        self.address = int(self.slots.ctypes.data)
        self.stuck_at = -1
        self._arrays: dict[int, Any] = {}
        self.out = np.empty(0, dtype=np.int32)
        keeps = bool(template[slots.KEEP_WORDS])
        size, room = (_WORDS, _LONG_TEXTS) if keeps else (1, 512)
        words = np.zeros(4 * size, dtype=np.uint64) if given is None else given.copy()
        self._set(slots.WORDS, words)
        self._set(slots.LONG_TEXTS, np.empty(room, dtype=np.uint8))
        self.slots[slots.WORDS_MASK], self.slots[slots.LONG_ROOM] = len(words) // 4 - 1, room
        self.slots[slots.WORDS_USED] = self.slots[slots.WORDS_KNOWN]
        self._set(slots.MASKS, WORD_MASKS)
        self._set(slots.QUEUE, np.zeros(slots.QUEUED * slots.QUEUE_WIDTH, dtype=np.uint64))
        self._set(slots.POOL, np.empty(_POOL, dtype=np.int32))
        self._set(slots.PLACES, np.zeros(16, dtype=np.int64))
        self._set(slots.ENDS, np.zeros(16, dtype=np.int64))
        self._set(slots.REACHED, np.zeros(2, dtype=np.float64))
        self.slots[slots.POOL_ROOM] = _POOL
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


def _is_character(token: bytes) -> bool:
    return len(token) <= 4 and len(token.decode("utf-8", "replace")) == 1


def _shares(texts: Sequence[str], number: int) -> list[slice]:
    """Slices of about the same amount of text."""
    sizes = np.cumsum([len(text) + 64 for text in texts])
    places = np.searchsorted(sizes, np.linspace(0, sizes[-1], number + 1)[1:-1])
    bounds = [0, *sorted({int(place) for place in places} - {0}), len(texts)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


@functools.cache
def _threads_of(process: int) -> ThreadPoolExecutor:
    """Threads that stay, so that what they remember does; a forked process has none of them."""
    return ThreadPoolExecutor(threads(), thread_name_prefix="tokenizer")


def _masks() -> Any:
    """uint64 [32]: for a word of n bytes, what is kept of its first eight and of the next."""
    whole = (1 << 64) - 1
    pairs = [((1 << 8 * min(n, 8)) - 1, (1 << 8 * max(0, n - 8)) - 1) for n in range(16)]
    return np.array([number & whole for pair in pairs for number in pair], dtype=np.uint64)


WORD_MASKS = _masks()
_MARK = np.array(0x2581)  # SentencePiece's space
