"""`bpe_trainer.learn_merges`, compiled: the same merges from flat arrays.

Each word's symbols lie side by side and shrink in place. A pair has a place in an open table with
its count and the words that have it, so a merge touches only those. Of pairs that are too rare to
be merged only the count is kept: most pairs are, and it is they that would fill the memory. The
heap may hold counts that are no longer right: they are put right when they come up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmworks.core.progress import track
from lmworks.tokenizers import slots
from lmworks.tokenizers.calls import TRAINING, call, kernel
from lmworks.tokenizers.word_counts import WordCounts

Pair = tuple[int, int]
_ROOM = 1 << 16  # of everything, to begin with
_BATCH = 2000  # merges between two looks at the progress bar


def learn_merges(
    words: WordCounts,
    tokens: list[bytes],
    *,
    vocab_size: int,
    min_frequency: int,
    protected: int = 0,
    prefix: bytes = b"",
    longest: int = 0,
) -> list[Pair]:
    """As bpe_trainer.learn_merges: appends to `tokens`, returns the merges as pairs of ids.

    Words of uint8 are bytes whose tokens are of one byte; words of int32 are ids already.
    """
    work = MergeState(words, tokens, vocab_size, min_frequency)
    work.limit(protected, prefix, longest)
    first = shown = len(tokens)
    with track("learning merges", total=vocab_size - first) as bar:
        while status := work.run():
            if status == 1:
                work.grow()
            bar.advance(work.made() - shown)
            shown = work.made()
    tokens.extend(work.tokens()[first:])
    return work.merges()


class MergeState:
    """Words, their pairs, and how often each occurs, as merges go on.

    `run` merges by itself; with `top`, `merge` and `drop` a caller chooses, and keeps the tokens.
    """

    def __init__(
        self,
        words: WordCounts,
        tokens: list[bytes],
        vocab_size: int,
        min_frequency: int,
        *,
        chosen: bool = False,
    ) -> None:
        """`chosen`: a caller chooses the merges, so that rare pairs may be merged as well."""
        self._slots = np.zeros(slots.LEARN_SLOTS, dtype=np.int64)
        self._arrays: dict[int, Any] = {}
        self._set_words(words, tokens)
        self._set_tokens(tokens, vocab_size)
        self._set_pairs(2 * _ROOM)
        self._room_for(slots.NODES, slots.NODES_ROOM, _ROOM)
        self._room_for(slots.PAIR_HEAP, slots.HEAP_ROOM, _ROOM)
        self._room_for(slots.ADDED, slots.ADDED_ROOM, _ROOM)
        self._merge_room(2 * max(16, vocab_size - len(tokens)))
        least = max(1, min_frequency)
        self._slots[slots.WANTED], self._slots[slots.LEAST] = vocab_size, least
        self._slots[slots.KEEP] = 1 if chosen else least
        self._slots[slots.BATCH] = _BATCH
        self._learn = kernel("learn_merges", module=TRAINING)

    def limit(self, protected: int, prefix: bytes, longest: int) -> None:
        """What merges may lead to, and how tokens are joined."""
        self._set(slots.PREFIX, np.frombuffer(prefix or b"\0", dtype=np.uint8))
        self._slots[slots.PREFIX_SIZE] = len(prefix)
        self._slots[slots.PROTECTED], self._slots[slots.MOST_CHARACTERS] = protected, longest

    def _set(self, slot: int, array: Any) -> None:
        self._arrays[slot] = array
        self._slots[slot] = array.ctypes.data

    def _set_words(self, words: WordCounts, tokens: list[bytes]) -> None:
        byte_ids = np.zeros(256, dtype=np.int32)
        for token_id, token in enumerate(tokens):
            if len(token) == 1:
                byte_ids[token[0]] = token_id
        starts = np.append(0, words.ends[:-1]).astype(np.int64)
        symbols = byte_ids[words.data] if words.data.dtype == np.uint8 else words.data.copy()
        self._set(slots.SYM, symbols)  # shrinks in place
        learnt = np.empty((len(words), 2), dtype=np.int64)
        learnt[:, 0] = starts << 24 | (words.ends - starts)
        learnt[:, 1] = words.counts
        self._set(slots.WORDS_LEARNT, learnt)
        self._slots[slots.NUM_WORDS] = len(words)

    def _set_tokens(self, tokens: list[bytes], vocab_size: int) -> None:
        size = 1 << (2 * max(vocab_size, len(tokens)) + 16).bit_length()
        ends = np.zeros(max(vocab_size, len(tokens)) + 1, dtype=np.int64)
        ends[: len(tokens)] = np.cumsum([len(token) for token in tokens])
        data = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        arena = np.empty(4 * len(data) + 64 * vocab_size + 64, dtype=np.uint8)
        arena[: len(data)] = data
        table = np.zeros(2 * size, dtype=np.uint64)
        call("list_tokens", table, size - 1, arena, ends, len(tokens), module=TRAINING)
        self._set(slots.TOKEN_TABLE, table)
        self._set(slots.TOKEN_ENDS, ends)
        self._set(slots.TOKEN_ARENA, arena)
        self._slots[slots.TOKEN_MASK], self._slots[slots.TOKEN_ARENA_ROOM] = size - 1, len(arena)
        self._slots[slots.NUM_TOKENS_MADE] = len(tokens)

    def _set_pairs(self, size: int) -> None:
        self._set(slots.PAIRS, np.zeros((size, 3), dtype=np.int64))  # key, count, its words
        self._slots[slots.PAIR_MASK] = size - 1

    def _room_for(self, slot: int, room_slot: int, room: int) -> None:
        """Let an array have so many entries; what is in it stays, but for what one merge adds."""
        kind = np.int64 if slot == slots.PAIR_HEAP else np.int32
        columns = 1 if slot == slots.NODES else 2
        array = np.empty((room, columns), dtype=kind)
        if slot == slots.ADDED:
            self._set(slots.RAISED, np.empty((room, 4), dtype=np.int64))
        elif slot in self._arrays:
            array[: len(self._arrays[slot])] = self._arrays[slot]
        self._set(slot, array)
        self._slots[room_slot] = room

    def _merge_room(self, room: int) -> None:
        for slot in (slots.OUT_LEFT, slots.OUT_RIGHT):
            array = np.empty(room, dtype=np.int32)
            if slot in self._arrays:
                array[: len(self._arrays[slot])] = self._arrays[slot]
            self._set(slot, array)
        self._slots[slots.OUT_ROOM_MERGES] = room

    def run(self) -> int:
        """0 when done, 1 when there is no more room, 2 after some merges."""
        return self._learn(int(self._slots.ctypes.data))

    def top(self) -> Pair | None:
        """The most frequent pair, or None when none is frequent enough."""
        if not self._ask(slots.LOOK):
            return None
        return int(self._slots[slots.LEFT]), int(self._slots[slots.RIGHT])

    def merge(self, pair: Pair, merged: int) -> None:
        """Merge a pair to the id `merged` in all words."""
        self._slots[slots.LEFT], self._slots[slots.RIGHT] = pair
        self._slots[slots.MERGED] = merged
        while self._ask(slots.MERGE):
            self.grow()

    def drop(self, pair: Pair) -> None:
        """Let a pair be: what it leads to may not be a token."""
        self._slots[slots.LEFT], self._slots[slots.RIGHT] = pair
        while self._ask(slots.DROP):
            self.grow()

    def _ask(self, mode: int) -> int:
        self._slots[slots.MODE] = mode
        return self.run()

    @property
    def num_symbols(self) -> int:
        """Symbols that all words have, each word as often as it occurs."""
        return int(self._slots[slots.NUM_SYMBOLS])

    def made(self) -> int:
        """How many tokens there are."""
        return int(self._slots[slots.NUM_TOKENS_MADE])

    def grow(self) -> None:
        """Give what was short twice the room, and as much as the next merge may need."""
        a, more = self._slots, int(self._slots[slots.MORE])
        if a[slots.STARTED] == 1:  # all words are to be listed, and all pairs put on the heap
            self._room_for(slots.NODES, slots.NODES_ROOM, _ROOM + more + more // 4)
            room = int(a[slots.PAIRS_USED])
            self._room_for(slots.PAIR_HEAP, slots.HEAP_ROOM, _ROOM + room + room // 4)
            return
        if 3 * (a[slots.PAIRS_USED] + more) > 2 * a[slots.PAIR_MASK]:
            self._grow_pairs(more)
        if a[slots.STARTED] == 0:
            return
        if a[slots.NODES_USED] + more > a[slots.NODES_ROOM]:
            self._grow_nodes(more)
        if a[slots.HEAP_SIZE] + more > a[slots.HEAP_ROOM]:
            room = max(3 * int(a[slots.HEAP_ROOM]) // 2, int(a[slots.HEAP_SIZE]) + more)
            self._room_for(slots.PAIR_HEAP, slots.HEAP_ROOM, room)
        if more > a[slots.ADDED_ROOM]:
            self._room_for(slots.ADDED, slots.ADDED_ROOM, 2 * more)
        if a[slots.DONE] + 1 > a[slots.OUT_ROOM_MERGES]:
            self._merge_room(2 * int(a[slots.OUT_ROOM_MERGES]))
        arena = self._arrays[slots.TOKEN_ARENA]
        if 2 * self._arrays[slots.TOKEN_ENDS][self.made() - 1] + 2 > len(arena):
            self._set(slots.TOKEN_ARENA, np.concatenate([arena, np.empty_like(arena)]))
            a[slots.TOKEN_ARENA_ROOM] = 2 * len(arena)

    def _grow_pairs(self, more: int) -> None:
        old = self._arrays[slots.PAIRS]
        size = len(old)
        while 3 * (int(self._slots[slots.PAIRS_USED]) + more) > 2 * (size - 1):
            size *= 2
        self._set_pairs(size)
        new = self._arrays[slots.PAIRS]
        used = call("grow_pairs", old, len(old), new, size - 1, module=TRAINING)
        self._slots[slots.PAIRS_USED] = used

    def _grow_nodes(self, more: int) -> None:
        """Leave behind the words of pairs that were merged or are rare by now."""
        a, pairs, old = self._slots, self._arrays[slots.PAIRS], self._arrays[slots.NODES]
        arguments: list[Any] = [pairs, len(pairs), old, 0, int(a[slots.KEEP])]
        live = call("pack_nodes", *arguments, module=TRAINING) if a[slots.NODES_USED] else 0
        new = np.empty((live + live // 2 + 2 * more, 1), dtype=np.int32)
        if live:
            arguments[3] = new
            live = call("pack_nodes", *arguments, module=TRAINING)
        self._set(slots.NODES, new)
        a[slots.NODES_ROOM], a[slots.NODES_USED] = len(new), live

    def tokens(self) -> list[bytes]:
        """All tokens, the first ones included."""
        ends = self._arrays[slots.TOKEN_ENDS][: self.made()].tolist()
        data = self._arrays[slots.TOKEN_ARENA][: ends[-1]].tobytes()
        return [data[start:end] for start, end in zip([0, *ends], ends)]

    def merges(self) -> list[Pair]:
        """The pairs, in the order they were learnt."""
        done = int(self._slots[slots.DONE])
        left, right = self._arrays[slots.OUT_LEFT], self._arrays[slots.OUT_RIGHT]
        return list(zip(left[:done].tolist(), right[:done].tolist()))
