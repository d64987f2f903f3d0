# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts
# kernels: count_words add_words grow_words learn_merges grow_pairs
"""Counting words and learning merges, compiled. bpe_trainer.py is the readable way and the oracle.

All state lies in arrays that the caller owns (word_counts.py, compiled_trainer.py); a kernel that
runs out of room says so, gets more, and goes on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *


@njit(**_OPTIONS)
def text_hash(text, start, end, limit):
    h = np.uint64(end - start)
    at = start
    while at < end:
        h = mix(h ^ bytes_at(text, at, min(end - at, 8), limit), h)
        at += 8
    return h | np.uint64(1)


@njit(**_OPTIONS)
def count_word(a, text, start, end, times):
    """Add to the count of a word; there is room for it."""
    table, mask = u64p(a[COUNT_TABLE]), np.uint64(a[COUNT_MASK])
    counts, ends, arena = i64p(a[COUNT_COUNTS]), i64p(a[COUNT_ENDS]), u8p(a[COUNT_ARENA])
    size = end - start
    h = text_hash(text, start, end, a[TEXT_SIZE])
    at = h >> np.uint64(20) & mask
    while table[2 * at] != 0:
        if table[2 * at] == h:
            number = np.int64(table[2 * at + np.uint64(1)])
            begin = ends[number - 1] if number > 0 else np.int64(0)
            if ends[number] - begin == size:
                same = True
                for i in range(size):
                    same = same and arena[begin + i] == text[start + i]
                if same:
                    counts[number] += times
                    return
        at = (at + np.uint64(1)) & mask
    number = a[COUNT_WORDS]
    begin = ends[number - 1] if number > 0 else np.int64(0)
    table[2 * at], table[2 * at + np.uint64(1)] = h, np.uint64(number)
    for i in range(size):
        arena[begin + i] = text[start + i]
    ends[number], counts[number] = begin + size, times
    a[COUNT_WORDS] = number + 1


@njit(**_OPTIONS)
def count_piece(a, text, start, end, times):
    """Add a piece: as one word, or in parts between characters where it is longer than any word."""
    while end - start > MOST_BYTES:
        stop = start + MOST_BYTES
        while text[stop] & 0xC0 == 0x80:
            stop -= 1
        count_word(a, text, start, stop, times)
        start = stop
    count_word(a, text, start, end, times)


def count_words(a):
    """Count the pieces of a text from AT on; 1 when there is no room, -2 as `encode` says."""
    text, last = u8p(a[TEXT]), a[NUM_LEVELS] - 1
    places, ends, k = i64p(a[PLACES]), i64p(a[ENDS]), np.int64(0)
    places[0], ends[0] = a[AT], a[TEXT_SIZE]
    a[LOOKED_AHEAD] = 0
    while True:
        start, end = places[k], ends[k]
        if start >= end:
            if k == 0:
                a[AT] = end
                return 0
            k -= 1
            continue
        stop, wanted = end, True
        if last >= 0:
            level = i64p(a[LEVELS] + 8 * CUT_SLOTS * k)
            keeps = level[CUT_KEEPS]
            stop = next_match(a, level, text, start, end)
            wanted = keeps != KEEP_GAPS
            if stop <= start:
                stop = start + width(text[start])
                while stop < end and next_match(a, level, text, stop, end) <= stop:
                    stop += width(text[stop])
                wanted = keeps != KEEP_MATCHES
            if a[LOOKED_AHEAD] > 64 * (stop + 65536):
                return -2
        if k == 0:
            # Room for all that this piece may be cut into, so that it is counted whole or not.
            words, size = a[COUNT_WORDS], stop - start
            used = i64p(a[COUNT_ENDS])[words - 1] if words > 0 else np.int64(0)
            a[AT] = start
            if used + size > a[COUNT_ARENA_ROOM] or 2 * (words + size) > a[COUNT_MASK]:
                a[MORE_WORDS] = size
                return 1
        places[k] = stop
        if wanted and k < last:
            k += 1
            places[k], ends[k] = start, stop
        elif wanted:
            count_piece(a, text, start, stop, a[COUNT_TIMES])


def add_words(a):
    """Add counted words whose hash falls into one part; 1 when there is no room, AT says where.

    Words: TEXT up to WORDS_ENDS, how often: WORDS_TIMES; part PART of PART_MASK + 1.
    """
    text, ends, times = u8p(a[TEXT]), i64p(a[WORDS_ENDS]), i64p(a[WORDS_TIMES])
    for number in range(a[AT], a[WORDS_IN]):
        begin = ends[number - 1] if number > 0 else np.int64(0)
        size, words = ends[number] - begin, a[COUNT_WORDS]
        part = text_hash(text, begin, ends[number], a[TEXT_SIZE]) >> np.uint64(8)
        if np.int64(part) & a[PART_MASK] != a[PART]:
            continue
        used = i64p(a[COUNT_ENDS])[words - 1] if words > 0 else np.int64(0)
        if used + size > a[COUNT_ARENA_ROOM] or 2 * (words + 1) > a[COUNT_MASK]:
            a[AT], a[MORE_WORDS] = number, size
            return 1
        count_word(a, text, begin, ends[number], times[number])
    return 0


def grow_words(a):
    """Put words into a larger table: a[0] table, a[1] mask, a[2] arena, a[3] ends, a[4] words."""
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


# Merges. A pair has a slot in an open table: its key, how often it occurs, a list of its words.


@njit(**_OPTIONS)
def slot_of(a, left, right):
    """The slot of a pair, a new one if need be; the caller sees that there is room."""
    keys, mask = u64p(a[PAIR_KEYS]), np.uint64(a[PAIR_MASK])
    key = (np.uint64(left) << np.uint64(32) | np.uint64(right)) + np.uint64(1)
    at = mix(key, np.uint64(0)) >> np.uint64(20) & mask
    while keys[at] != key:
        if keys[at] == 0:
            keys[at] = key
            a[PAIRS_USED] += 1
            break
        at = (at + np.uint64(1)) & mask
    return np.int64(at)


@njit(**_OPTIONS)
def add_word(a, slot, number):
    """Note that a word has a pair, unless it was the last to be noted."""
    heads, words, links = i32p(a[PAIR_HEADS]), i32p(a[NODE_WORDS]), i32p(a[NODE_LINKS])
    head = heads[slot]
    if head != 0 and words[head] == number:
        return
    node = a[NODES_USED]
    words[node], links[node] = number, head
    heads[slot] = np.int32(node)
    a[NODES_USED] = node + 1


@njit(**_OPTIONS)
def before(counts, keys, i, j):
    """Whether heap entry i comes before j: more often, then the smaller pair."""
    return counts[i] > counts[j] or (counts[i] == counts[j] and keys[i] < keys[j])


@njit(**_OPTIONS)
def push(a, count, key):
    counts, keys = i64p(a[HEAP_COUNTS]), u64p(a[HEAP_KEYS])
    at = a[HEAP_SIZE]
    a[HEAP_SIZE] = at + 1
    while at > 0:
        up = (at - 1) >> 1
        if counts[up] > count or (counts[up] == count and keys[up] <= key):
            break
        counts[at], keys[at] = counts[up], keys[up]
        at = up
    counts[at], keys[at] = count, key


@njit(**_OPTIONS)
def pop(a):
    """Take the first entry off; returns (count, key)."""
    counts, keys = i64p(a[HEAP_COUNTS]), u64p(a[HEAP_KEYS])
    count, key = counts[0], keys[0]
    size = a[HEAP_SIZE] - 1
    a[HEAP_SIZE] = size
    last_count, last_key, at = counts[size], keys[size], np.int64(0)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and before(counts, keys, child + 1, child):
            child += 1
        if last_count > counts[child] or (last_count == counts[child] and last_key <= keys[child]):
            break
        counts[at], keys[at] = counts[child], keys[child]
        at = child
    counts[at], keys[at] = last_count, last_key
    return count, key


@njit(**_OPTIONS)
def first_counts(a):
    """Count the pairs of all words and put them on the heap."""
    symbols, starts, sizes = i32p(a[SYM]), i64p(a[WORD_STARTS]), i32p(a[WORD_SIZES])
    times, totals, keys = i64p(a[WORD_COUNTS]), i64p(a[PAIR_COUNTS]), u64p(a[PAIR_KEYS])
    a[NUM_SYMBOLS] = 0
    for number in range(a[NUM_WORDS]):
        begin = starts[number]
        a[NUM_SYMBOLS] += sizes[number] * times[number]
        for i in range(begin, begin + sizes[number] - 1):
            slot = slot_of(a, symbols[i], symbols[i + 1])
            totals[slot] += times[number]
            add_word(a, slot, np.int32(number))
    for slot in range(a[PAIR_MASK] + 1):
        if keys[slot] != 0:
            push(a, totals[slot], keys[slot])


@njit(**_OPTIONS)
def raise_pair(a, left, right, times, number, step):
    """A pair came up in a word."""
    slot = slot_of(a, left, right)
    totals, stamps = i64p(a[PAIR_COUNTS]), i32p(a[PAIR_STAMPS])
    totals[slot] += times
    add_word(a, slot, number)
    if stamps[slot] != step:
        stamps[slot] = step
        raised = i64p(a[RAISED])
        raised[a[NUM_RAISED]] = slot
        a[NUM_RAISED] += 1


@njit(**_OPTIONS)
def merge_word(a, number, left, right, merged, step):
    """Merge a pair in one word, from left to right, and keep the counts right."""
    symbols, sizes = i32p(a[SYM]), i32p(a[WORD_SIZES])
    times, totals = i64p(a[WORD_COUNTS])[number], i64p(a[PAIR_COUNTS])
    begin = i64p(a[WORD_STARTS])[number]
    end, kept = begin + sizes[number], begin
    at = begin
    while at < end:
        if at + 1 < end and symbols[at] == left and symbols[at + 1] == right:
            if kept > begin:
                totals[slot_of(a, symbols[kept - 1], left)] -= times
                raise_pair(a, symbols[kept - 1], merged, times, number, step)
            if at + 2 < end:
                totals[slot_of(a, right, symbols[at + 2])] -= times
                raise_pair(a, merged, symbols[at + 2], times, number, step)
            symbols[kept] = merged
            at += 2
        else:
            symbols[kept] = symbols[at]
            at += 1
        kept += 1
    sizes[number] = np.int32(kept - begin)
    a[NUM_SYMBOLS] -= times * (end - kept)


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
    counts, keys, totals = i64p(a[HEAP_COUNTS]), u64p(a[HEAP_KEYS]), i64p(a[PAIR_COUNTS])
    while a[HEAP_SIZE] > 0:
        key = keys[0]
        slot = slot_of(a, key_left(key), key_right(key))
        if totals[slot] == counts[0]:
            return totals[slot] >= a[LEAST]
        pop(a)
        if totals[slot] > 0:
            push(a, totals[slot], key)
    return False


@njit(**_OPTIONS)
def key_left(key):
    return np.int32((key - np.uint64(1)) >> np.uint64(32))


@njit(**_OPTIONS)
def key_right(key):
    return np.int32((key - np.uint64(1)) & np.uint64(0xFFFFFFFF))


@njit(**_OPTIONS)
def has_room(a, slot):
    """Whether a pair can be merged without more room; MORE says how much may be needed."""
    heads, words, links = i32p(a[PAIR_HEADS]), i32p(a[NODE_WORDS]), i32p(a[NODE_LINKS])
    sizes = i32p(a[WORD_SIZES])
    # A merge makes at most two pairs per occurrence; the sizes of words are a bound for each.
    bound = np.int64(8)
    node = heads[slot]
    while node != 0:
        bound += 2 * sizes[words[node]]
        node = links[node]
    a[MORE] = bound
    return (
        a[NODES_USED] + bound <= a[NODES_ROOM]
        and 3 * (a[PAIRS_USED] + bound) <= 2 * a[PAIR_MASK]
        and a[HEAP_SIZE] + bound <= a[HEAP_ROOM]
        and bound <= a[RAISED_ROOM]
    )


@njit(**_OPTIONS)
def merge_pair(a, slot, left, right, merged):
    """Merge a pair in all words that have it; there is room."""
    heads, words, links = i32p(a[PAIR_HEADS]), i32p(a[NODE_WORDS]), i32p(a[NODE_LINKS])
    totals, raised, keys = i64p(a[PAIR_COUNTS]), i64p(a[RAISED]), u64p(a[PAIR_KEYS])
    a[NUM_RAISED] = 0
    a[DONE] += 1
    node = heads[slot]
    heads[slot] = 0
    while node != 0:
        merge_word(a, words[node], left, right, merged, np.int32(a[DONE]))
        node = links[node]
    totals[slot] = 0
    for i in range(a[NUM_RAISED]):
        if totals[raised[i]] > 0:
            push(a, totals[raised[i]], keys[raised[i]])


@njit(**_OPTIONS)
def learn_next(a):
    """Merge the most frequent pair; 0 done, 1 no room, 2 merged, 3 passed over."""
    if not settle(a):
        return 0
    key = u64p(a[HEAP_KEYS])[0]
    left, right = key_left(key), key_right(key)
    slot = slot_of(a, left, right)
    size = i64p(a[TOKEN_ENDS])[a[NUM_TOKENS_MADE] - 1]
    if (
        not has_room(a, slot)
        or a[DONE] + 1 > a[OUT_ROOM_MERGES]
        or 2 * size + 2 > a[TOKEN_ARENA_ROOM]
    ):
        return 1
    merged = np.int32(joined_token(a, left, right))
    if merged < 0:
        i64p(a[PAIR_COUNTS])[slot] = 0
        return 3
    i32p(a[OUT_LEFT])[a[DONE]], i32p(a[OUT_RIGHT])[a[DONE]] = left, right
    merge_pair(a, slot, left, right, merged)
    return 2


def learn_merges(a):
    """What MODE says of the words' pairs.

    LEARN: merge the most frequent pair until there are WANTED tokens or none is left, and write
    pairs to OUT_LEFT and OUT_RIGHT. Returns 0 when done, 1 when it wants more room, 2 after BATCH
    merges.
    LOOK: LEFT and RIGHT become the most frequent pair; 0 when there is none, else 2.
    MERGE: LEFT and RIGHT become MERGED in all words; 1 when it wants more room. DROP: never again.
    """
    if a[STARTED] == 0:
        first_counts(a)  # the first table of pairs has room for every pair of bytes
        a[STARTED] = 1
    if a[MODE] == LOOK:
        if not settle(a):
            return 0
        key = u64p(a[HEAP_KEYS])[0]
        a[LEFT], a[RIGHT] = key_left(key), key_right(key)
        return 2
    if a[MODE] == MERGE or a[MODE] == DROP:
        left, right = np.int32(a[LEFT]), np.int32(a[RIGHT])
        if 3 * (a[PAIRS_USED] + 1) > 2 * a[PAIR_MASK]:
            a[MORE] = 1
            return 1
        slot = slot_of(a, left, right)
        if a[MODE] == DROP:
            i64p(a[PAIR_COUNTS])[slot] = 0
            return 0
        if not has_room(a, slot):
            return 1
        merge_pair(a, slot, left, right, np.int32(a[MERGED]))
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
    """Move pairs to a larger table: keys, counts, heads, stamps, size; then new ones and mask."""
    keys, counts, heads, stamps = u64p(a[0]), i64p(a[1]), i32p(a[2]), i32p(a[3])
    new_keys, new_counts, new_heads, new_stamps = u64p(a[5]), i64p(a[6]), i32p(a[7]), i32p(a[8])
    mask, used = np.uint64(a[9]), np.int64(0)
    for slot in range(a[4]):
        if keys[slot] != 0 and counts[slot] > 0:
            at = mix(keys[slot], np.uint64(0)) >> np.uint64(20) & mask
            while new_keys[at] != 0:
                at = (at + np.uint64(1)) & mask
            new_keys[at], new_counts[at] = keys[slot], counts[slot]
            new_heads[at], new_stamps[at] = heads[slot], stamps[slot]
            used += 1
    return used
