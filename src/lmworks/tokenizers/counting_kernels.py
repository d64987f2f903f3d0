# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts
# kernels: count_words add_words grow_counts list_counts
"""Counting words, compiled.

All state lies in arrays that the caller owns (word_counts.py); a kernel that runs out of room says
so, gets more, and goes on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *


@njit(**_OPTIONS)
def word_key(text, start, end, limit):
    """Two numbers for a word: its bytes and its size up to 15 bytes, else its hash and its size."""
    size = end - start
    if size > 15:
        return text_hash(text, start, end, limit), np.uint64(0xFF) << np.uint64(56) | np.uint64(
            size
        )
    low = bytes_at(text, start, min(size, 8), limit)
    high = bytes_at(text, start + 8, size - 8, limit) if size > 8 else np.uint64(0)
    return low, high | np.uint64(size) << np.uint64(56)


@njit(**_OPTIONS)
def key_hash(low, high):
    return mix(low, high) >> np.uint64(20)


@njit(**_OPTIONS)
def count_word(a, text, start, end, times):
    """Add to the count of a word; there is room for it.

    An entry of the table: the two numbers of the word, which word it is, how often it occurs.
    """
    low, high = word_key(text, start, end, a[TEXT_SIZE])
    table, mask = u64p(a[COUNT_TABLE]), np.uint64(a[COUNT_MASK])
    at = key_hash(low, high) & mask
    while table[4 * at + np.uint64(1)] != 0:
        if table[4 * at] == low and table[4 * at + np.uint64(1)] == high:
            if end - start <= 15 or is_word(a, table[4 * at + np.uint64(2)], text, start, end):
                table[4 * at + np.uint64(3)] += np.uint64(times)
                return
        at = (at + np.uint64(1)) & mask
    ends, arena, number = i64p(a[COUNT_ENDS]), u8p(a[COUNT_ARENA]), a[COUNT_WORDS]
    begin = ends[number - 1] if number > 0 else np.int64(0)
    table[4 * at], table[4 * at + np.uint64(1)] = low, high
    table[4 * at + np.uint64(2)], table[4 * at + np.uint64(3)] = np.uint64(number), np.uint64(times)
    for i in range(end - start):
        arena[begin + i] = text[start + i]
    ends[number] = begin + end - start
    a[COUNT_WORDS] = number + 1


@njit(**_OPTIONS)
def count_known(a, level, text, start, end):
    """Count words that are in the table already, as long as there are such; where it stopped.

    The same as `next_match` and `count_word`; most words are known, and it is where the time goes.
    """
    table, mask, masks = u64p(a[COUNT_TABLE]), np.uint64(a[COUNT_MASK]), u64p(a[MASKS])
    limit, times = a[TEXT_SIZE] - 16, np.uint64(a[COUNT_TIMES])
    while start < end and start <= limit and a[LOOKED_AHEAD] <= 64 * (start + 65536):
        stop = next_match(a, level, text, start, end)
        size = stop - start
        if size <= 0 or size > 15:
            break
        low = load64(text, start) & masks[2 * size]
        high = load64(text, start + 8) & masks[2 * size + 1] | np.uint64(size) << np.uint64(56)
        entry = np.int64(4 * (key_hash(low, high) & mask))
        while table[entry + 1] != high or table[entry] != low:
            if table[entry + 1] == 0:
                return start
            entry = np.int64(4 * ((np.uint64(entry >> 2) + np.uint64(1)) & mask))
        table[entry + 3] += times
        start = stop
    return start


@njit(**_OPTIONS)
def is_word(a, number, text, start, end):
    """Whether a counted word is written so."""
    ends, arena = i64p(a[COUNT_ENDS]), u8p(a[COUNT_ARENA])
    begin = ends[np.int64(number)] - (end - start)
    same = True
    for i in range(end - start):
        same = same and arena[begin + i] == text[start + i]
    return same


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
            if k == last and keeps == KEEP_ALL:
                start = count_known(a, level, text, start, end)
                places[k] = start
                if start >= end:
                    continue
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
        low, high = word_key(text, begin, ends[number], a[TEXT_SIZE])
        part = mix(low, high) >> np.uint64(8)
        if np.int64(part) & a[PART_MASK] != a[PART]:
            continue
        used = i64p(a[COUNT_ENDS])[words - 1] if words > 0 else np.int64(0)
        if used + size > a[COUNT_ARENA_ROOM] or 2 * (words + 1) > a[COUNT_MASK]:
            a[AT], a[MORE_WORDS] = number, size
            return 1
        count_word(a, text, begin, ends[number], times[number])
    return 0


def grow_counts(a):
    """Put counted words into a larger table: a[0] table, a[1] entries; a[2] new one, a[3] mask."""
    table, new, mask = u64p(a[0]), u64p(a[2]), np.uint64(a[3])
    for entry in range(0, 4 * a[1], 4):
        if table[entry + 1] != 0:
            at = key_hash(table[entry], table[entry + 1]) & mask
            while new[4 * at + np.uint64(1)] != 0:
                at = (at + np.uint64(1)) & mask
            for i in range(4):
                new[4 * at + np.uint64(i)] = table[entry + i]
    return 0


def list_counts(a):
    """How often each word occurs, by its number: a[0] table, a[1] entries, a[2] counts."""
    table, counts = u64p(a[0]), i64p(a[2])
    for entry in range(0, 4 * a[1], 4):
        if table[entry + 1] != 0:
            counts[np.int64(table[entry + 2])] = np.int64(table[entry + 3])
    return 0
