# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts
# kernels: learn_merges grow_pairs pack_nodes list_tokens
"""Learning merges, compiled. bpe_trainer.py is the readable way and the oracle.

All state lies in arrays that the caller owns (compiled_trainer.py); a kernel that runs out of room
says so, gets more, and goes on.

A pair has a place in an open table: its key, how often it occurs, and which words have it, a run of
NODES: where it starts << 32 | how many. Pairs that occur less than KEEP times have INCOMPLETE
there: such a pair is rarely merged, and then it is looked for in all words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *

INCOMPLETE = (1 << 31) - 1


@njit(**_OPTIONS)
def pair_key(left, right):
    return (np.int64(left) << 32 | np.int64(right)) + 1


@njit(**_OPTIONS)
def key_left(key):
    return np.int32((key - 1) >> 32)


@njit(**_OPTIONS)
def key_right(key):
    return np.int32((key - 1) & 0xFFFFFFFF)


@njit(**_OPTIONS)
def find_place(a, key):
    """Where a pair is in the table, or where it would be; its key is there in the first case."""
    pairs, mask = i64p(a[PAIRS]), np.uint64(a[PAIR_MASK])
    at = mix(np.uint64(key), np.uint64(0)) >> np.uint64(20) & mask
    while pairs[3 * at] != key and pairs[3 * at] != 0:
        at = (at + np.uint64(1)) & mask
    return np.int64(3 * at)


@njit(**_OPTIONS)
def place_of(a, left, right):
    """The place of a pair, a new one if need be; the caller sees that there is room."""
    pairs, key = i64p(a[PAIRS]), pair_key(left, right)
    place = find_place(a, key)
    if pairs[place] == 0:
        pairs[place] = key
        a[PAIRS_USED] += 1
    return place


@njit(**_OPTIONS)
def push(a, count, key):
    """Put a pair on the heap: more often comes first, of equals the smaller pair."""
    heap = i64p(a[PAIR_HEAP])
    at = a[HEAP_SIZE]
    a[HEAP_SIZE] = at + 1
    while at > 0:
        up = (at - 1) >> 1
        if heap[2 * up] > count or (heap[2 * up] == count and heap[2 * up + 1] <= key):
            break
        heap[2 * at], heap[2 * at + 1] = heap[2 * up], heap[2 * up + 1]
        at = up
    heap[2 * at], heap[2 * at + 1] = count, key


@njit(**_OPTIONS)
def sink(a, count, key):
    """Put a pair in the place of the heap's first entry."""
    heap, size, at = i64p(a[PAIR_HEAP]), a[HEAP_SIZE], np.int64(0)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        c, other = 2 * child, 2 * child + 2
        if child + 1 < size and (
            heap[other] > heap[c] or (heap[other] == heap[c] and heap[other + 1] < heap[c + 1])
        ):
            child += 1
            c = other
        if count > heap[c] or (count == heap[c] and key <= heap[c + 1]):
            break
        heap[2 * at], heap[2 * at + 1] = heap[c], heap[c + 1]
        at = child
    heap[2 * at], heap[2 * at + 1] = count, key


@njit(**_OPTIONS)
def count_pairs(a):
    """How often each pair occurs, and in how many places; False when there is no room."""
    symbols, words, pairs = i32p(a[SYM]), i64p(a[WORDS_LEARNT]), i64p(a[PAIRS])
    for number in range(a[WORDS_DONE], a[NUM_WORDS]):
        begin, size, times = (
            words[2 * number] >> 24,
            words[2 * number] & 0xFFFFFF,
            words[2 * number + 1],
        )
        if 3 * (a[PAIRS_USED] + size) > 2 * a[PAIR_MASK]:
            a[WORDS_DONE], a[MORE] = number, size
            return False
        a[NUM_SYMBOLS] += size * times
        for i in range(begin, begin + size - 1):
            place = place_of(a, symbols[i], symbols[i + 1])
            pairs[place + 1] += times
            pairs[place + 2] += 1
    a[WORDS_DONE] = a[NUM_WORDS]
    return True


@njit(**_OPTIONS)
def list_words(a):
    """Fill the heap, and note which words have each pair; False when there is no room."""
    symbols, words, pairs = i32p(a[SYM]), i64p(a[WORDS_LEARNT]), i64p(a[PAIRS])
    nodes, size, wanted = i32p(a[NODES]), 3 * (a[PAIR_MASK] + 1), np.int64(0)
    for place in range(0, size, 3):
        if pairs[place + 1] >= a[KEEP]:
            wanted += pairs[place + 2]
    if wanted > a[NODES_ROOM] or a[PAIRS_USED] > a[HEAP_ROOM]:
        a[MORE] = wanted
        return False
    for place in range(0, size, 3):
        if pairs[place] != 0 and pairs[place + 1] >= a[KEEP]:
            occurrences = pairs[place + 2]
            pairs[place + 2] = a[NODES_USED] << 32
            a[NODES_USED] += occurrences
        elif pairs[place] != 0:
            pairs[place + 2] = INCOMPLETE
        if pairs[place] != 0 and pairs[place + 1] >= a[LEAST]:
            push(a, pairs[place + 1], pairs[place])
    for number in range(a[NUM_WORDS]):
        begin = words[2 * number] >> 24
        for i in range(begin, begin + (words[2 * number] & 0xFFFFFF) - 1):
            place = place_of(a, symbols[i], symbols[i + 1])
            if pairs[place + 2] != INCOMPLETE:
                start, length = pairs[place + 2] >> 32, pairs[place + 2] & 0xFFFFFFFF
                if length == 0 or nodes[start + length - 1] != number:
                    nodes[start + length] = np.int32(number)
                    pairs[place + 2] += 1
    return True


@njit(**_OPTIONS)
def raise_pair(a, left, right, times, number):
    """A pair came up in a word. What is raised in one step is listed at its end."""
    pairs, raised, added = i64p(a[PAIRS]), i64p(a[RAISED]), i32p(a[ADDED])
    place = place_of(a, left, right)
    pairs[place + 1] += times
    index = -pairs[place + 2] - 1
    if index < 0:  # for the first time in this step: what was there is put aside
        index = a[NUM_RAISED]
        raised[4 * index], raised[4 * index + 1] = place, pairs[place + 2]
        raised[4 * index + 2], raised[4 * index + 3] = 0, -1
        pairs[place + 2] = -index - 1
        a[NUM_RAISED] = index + 1
    if raised[4 * index + 3] != number:
        raised[4 * index + 3] = number
        raised[4 * index + 2] += 1
        k = a[NUM_ADDED]
        added[2 * k], added[2 * k + 1] = np.int32(index), np.int32(number)
        a[NUM_ADDED] = k + 1


@njit(**_OPTIONS)
def merge_word(a, number, left, right, merged):
    """Merge a pair in one word, from left to right, and keep the counts right."""
    symbols, words, pairs = i32p(a[SYM]), i64p(a[WORDS_LEARNT]), i64p(a[PAIRS])
    begin, times = words[2 * number] >> 24, words[2 * number + 1]
    end, kept = begin + (words[2 * number] & 0xFFFFFF), begin
    at = begin
    while at < end:
        if symbols[at] == left and at + 1 < end and symbols[at + 1] == right:
            if kept > begin:
                pairs[place_of(a, symbols[kept - 1], left) + 1] -= times
                raise_pair(a, symbols[kept - 1], merged, times, number)
            if at + 2 < end:
                pairs[place_of(a, right, symbols[at + 2]) + 1] -= times
                raise_pair(a, merged, symbols[at + 2], times, number)
            symbols[kept] = merged
            at += 2
        else:
            symbols[kept] = symbols[at]
            at += 1
        kept += 1
    words[2 * number] = begin << 24 | (kept - begin)
    a[NUM_SYMBOLS] -= times * (end - kept)


@njit(**_OPTIONS)
def list_raised(a):
    """Note which words have the pairs that were raised, and put these on the heap."""
    pairs, raised, added, nodes = i64p(a[PAIRS]), i64p(a[RAISED]), i32p(a[ADDED]), i32p(a[NODES])
    for index in range(a[NUM_RAISED]):
        place, before, new = raised[4 * index], raised[4 * index + 1], raised[4 * index + 2]
        total, old = pairs[place + 1], before & 0xFFFFFFFF
        if total >= a[LEAST]:
            push(a, total, pairs[place])
        if total < a[KEEP] or old == INCOMPLETE or a[NODES_USED] + old + new > a[NODES_ROOM]:
            pairs[place + 2] = INCOMPLETE if total > 0 else 0
            raised[4 * index + 1] = -1
            continue
        start = a[NODES_USED]
        for i in range(old):
            nodes[start + i] = nodes[(before >> 32) + i]
        pairs[place + 2] = start << 32 | (old + new)
        raised[4 * index + 1] = start + old
        a[NODES_USED] = start + old + new
    for k in range(a[NUM_ADDED]):
        index = added[2 * k]
        at = raised[4 * index + 1]
        if at >= 0:
            nodes[at] = added[2 * k + 1]
            raised[4 * index + 1] = at + 1


@njit(**_OPTIONS)
def merge_pair(a, place, left, right, merged):
    """Merge a pair in all words that have it; there is room."""
    pairs, nodes = i64p(a[PAIRS]), i32p(a[NODES])
    start, length = pairs[place + 2] >> 32, pairs[place + 2] & 0xFFFFFFFF
    a[NUM_RAISED] = a[NUM_ADDED] = 0
    a[DONE] += 1
    pairs[place + 2] = 0
    if length == INCOMPLETE:
        for number in range(a[NUM_WORDS]):
            merge_word(a, number, left, right, merged)
    else:
        for i in range(start, start + length):
            merge_word(a, np.int64(nodes[i]), left, right, merged)
    pairs[place + 1] = 0
    list_raised(a)


@njit(**_OPTIONS)
def has_room(a, place):
    """Whether a pair can be merged without more room; MORE says how much may be needed.

    A merge makes at most two pairs per occurrence, and a pair occurs at most as often as it is
    counted, and in no more places than its words have.
    """
    pairs, words, nodes = i64p(a[PAIRS]), i64p(a[WORDS_LEARNT]), i32p(a[NODES])
    bound, length = 2 * pairs[place + 1], pairs[place + 2] & 0xFFFFFFFF
    if bound > CHEAP_BOUND and length != INCOMPLETE:
        start, sizes = pairs[place + 2] >> 32, np.int64(0)
        for i in range(start, start + length):
            sizes += words[2 * nodes[i]] & 0xFFFFFF
        bound = min(bound, 2 * sizes)
    bound += 8
    a[MORE] = bound
    return (
        a[NODES_USED] + bound <= a[NODES_ROOM]
        and 3 * (a[PAIRS_USED] + bound) <= 2 * a[PAIR_MASK]
        and a[HEAP_SIZE] + bound <= a[HEAP_ROOM]
        and bound <= a[ADDED_ROOM]
    )


@njit(**_OPTIONS)
def prefix_size(a, arena, start, end):
    """Bytes that a token loses when it is joined to one before it."""
    size, prefix = a[PREFIX_SIZE], u8p(a[PREFIX])
    if size == 0 or end - start < size:
        return np.int64(0)
    for i in range(size):
        if arena[start + i] != prefix[i]:
            return np.int64(0)
    return size


@njit(**_OPTIONS)
def joined_token(a, left, right):
    """The id of two tokens joined: a new one, unless a token is written so already.

    -1 for a token that may not be: a protected one, or one that is too long.
    """
    table, mask = u64p(a[TOKEN_TABLE]), np.uint64(a[TOKEN_MASK])
    ends, arena, number = i64p(a[TOKEN_ENDS]), u8p(a[TOKEN_ARENA]), a[NUM_TOKENS_MADE]
    begin = ends[number - 1]
    size, characters = begin, np.int64(0)
    for part in (left, right):
        first = ends[part - 1] if part > 0 else np.int64(0)
        if part == right and size > begin:
            first += prefix_size(a, arena, first, ends[part])
        for i in range(first, ends[part]):
            arena[size] = arena[i]
            characters += np.int64(arena[i] & 0xC0 != 0x80)
            size += 1
    if a[MOST_CHARACTERS] > 0 and characters > a[MOST_CHARACTERS]:
        return np.int64(-1)
    h = text_hash(arena, begin, size, size)
    at = h >> np.uint64(20) & mask
    while table[2 * at] != 0:
        if table[2 * at] == h:
            known = np.int64(table[2 * at + np.uint64(1)])
            first = ends[known - 1] if known > 0 else np.int64(0)
            same = ends[known] - first == size - begin
            i = np.int64(0)
            while same and i < size - begin:
                same = arena[first + i] == arena[begin + i]
                i += 1
            if same:
                return known if known >= a[PROTECTED] else np.int64(-1)
        at = (at + np.uint64(1)) & mask
    table[2 * at], table[2 * at + np.uint64(1)] = h, np.uint64(number)
    ends[number] = size
    a[NUM_TOKENS_MADE] = number + 1
    return number


@njit(**_OPTIONS)
def settle(a):
    """Bring the pair to merge next to the top of the heap; False when no pair is frequent enough.

    Counts in the heap may be out of date: they are put right when they come up.
    """
    heap, pairs = i64p(a[PAIR_HEAP]), i64p(a[PAIRS])
    while a[HEAP_SIZE] > 0:
        key = heap[1]
        place = find_place(a, key)
        total = pairs[place + 1] if pairs[place] == key else np.int64(0)
        if total == heap[0]:
            return total >= a[LEAST]
        if total >= a[LEAST]:
            sink(a, total, key)
        else:
            last = a[HEAP_SIZE] - 1
            a[HEAP_SIZE] = last
            sink(a, heap[2 * last], heap[2 * last + 1])
    return False


@njit(**_OPTIONS)
def learn_next(a):
    """Merge the most frequent pair; 0 done, 1 no room, 2 merged, 3 passed over."""
    if not settle(a):
        return 0
    key = i64p(a[PAIR_HEAP])[1]
    left, right, place = key_left(key), key_right(key), find_place(a, key)
    size = i64p(a[TOKEN_ENDS])[a[NUM_TOKENS_MADE] - 1]
    if (
        not has_room(a, place)
        or a[DONE] + 1 > a[OUT_ROOM_MERGES]
        or 2 * size + 2 > a[TOKEN_ARENA_ROOM]
    ):
        return 1
    merged = np.int32(joined_token(a, left, right))
    if merged < 0:
        i64p(a[PAIRS])[place + 1] = 0
        return 3
    i32p(a[OUT_LEFT])[a[DONE]], i32p(a[OUT_RIGHT])[a[DONE]] = left, right
    merge_pair(a, place, left, right, merged)
    return 2


def learn_merges(a):
    """What MODE says of the words' pairs.

    LEARN: merge the most frequent pair until there are WANTED tokens or none is left, and write
    pairs to OUT_LEFT and OUT_RIGHT. Returns 0 when done, 1 when it wants more room, 2 after BATCH
    merges.
    LOOK: LEFT and RIGHT become the most frequent pair; 0 when there is none, else 2.
    MERGE: LEFT and RIGHT become MERGED in all words. DROP: never again. 1 when they want more room.
    """
    if a[STARTED] == 0:
        if not count_pairs(a):
            return 1
        a[STARTED] = 1
    if a[STARTED] == 1:
        if not list_words(a):
            return 1
        a[STARTED] = 2
    if a[MODE] == LOOK:
        if not settle(a):
            return 0
        key = i64p(a[PAIR_HEAP])[1]
        a[LEFT], a[RIGHT] = key_left(key), key_right(key)
        return 2
    if a[MODE] == MERGE or a[MODE] == DROP:
        left, right = np.int32(a[LEFT]), np.int32(a[RIGHT])
        place = find_place(a, pair_key(left, right))
        if i64p(a[PAIRS])[place] == 0:  # the words do not have it
            return 0
        if a[MODE] == DROP:
            i64p(a[PAIRS])[place + 1] = 0
            return 0
        if not has_room(a, place):
            return 1
        merge_pair(a, place, left, right, np.int32(a[MERGED]))
        return 0
    todo = a[BATCH]
    while a[NUM_TOKENS_MADE] < a[WANTED]:
        if todo == 0:
            return 2
        status = learn_next(a)
        if status < 2:
            return status
        todo -= 1
    return 0


def grow_pairs(a):
    """Move pairs to a larger table: a[0] pairs, a[1] places; a[2] new ones, a[3] mask.

    Pairs that do not occur any more are left behind. Returns how many there are.
    """
    pairs, new, mask, used = i64p(a[0]), i64p(a[2]), np.uint64(a[3]), np.int64(0)
    for place in range(0, 3 * a[1], 3):
        if pairs[place] != 0 and pairs[place + 1] > 0:
            at = mix(np.uint64(pairs[place]), np.uint64(0)) >> np.uint64(20) & mask
            while new[3 * at] != 0:
                at = (at + np.uint64(1)) & mask
            new[3 * at], new[3 * at + 1] = pairs[place], pairs[place + 1]
            new[3 * at + 2] = pairs[place + 2]
            used += 1
    return used


def pack_nodes(a):
    """Move the words of pairs: a[0] pairs, a[1] places, a[2] nodes, a[3] new ones, a[4] KEEP.

    Those of pairs that are rare by now are left behind. Returns how many there are; with new ones
    at 0, nothing else is done.
    """
    pairs, nodes, new, used = i64p(a[0]), i32p(a[2]), i32p(a[3]), np.int64(0)
    for place in range(0, 3 * a[1], 3):
        length = pairs[place + 2] & 0xFFFFFFFF
        if pairs[place] == 0 or length == 0 or length == INCOMPLETE:
            continue
        kept = pairs[place + 1] >= a[4]
        if a[3] != 0:
            start = pairs[place + 2] >> 32
            if kept:
                for i in range(length):
                    new[used + i] = nodes[start + i]
                pairs[place + 2] = used << 32 | length
            else:
                pairs[place + 2] = INCOMPLETE if pairs[place + 1] > 0 else 0
        used += length if kept else 0
    return used


def list_tokens(a):
    """Put texts into an empty table: a[0] table, a[1] mask, a[2] arena, a[3] ends, a[4] texts."""
    table, mask, arena, ends = u64p(a[0]), np.uint64(a[1]), u8p(a[2]), i64p(a[3])
    begin = np.int64(0)
    for number in range(a[4]):
        h = text_hash(arena, begin, ends[number], ends[a[4] - 1])
        at = h >> np.uint64(20) & mask
        while table[2 * at] != 0:
            at = (at + np.uint64(1)) & mask
        table[2 * at], table[2 * at + np.uint64(1)] = h, np.uint64(number)
        begin = ends[number]
    return 0
