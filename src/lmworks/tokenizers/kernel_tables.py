"""Kernels that fill tables when a tokenizer is first used: tokens by their bytes, merges, tries."""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *


def insert_pairs(a):
    """Fill a table from columns left, right, value."""
    table, mask = u64p(a[0]), np.uint64(a[1])
    left, right, value = i64p(a[2]), i64p(a[3]), i64p(a[4])
    for i in range(a[5]):
        insert_pair(table, mask, left[i], right[i], np.uint64(value[i]))
    return 0


def insert_merges(a):
    """Fill a table of merges from columns left, right, value; of equal pairs the last counts."""
    table, mask = u64p(a[0]), np.uint64(a[1])
    left, right, value = i32p(a[2]), i32p(a[3]), i32p(a[4])
    for i in range(a[5]):
        entry = merge_key(left[i], right[i]) << np.uint64(21) | np.uint64(value[i])
        at = pair_hash(entry >> np.uint64(21)) & mask
        while table[at] != 0 and table[at] >> np.uint64(21) != entry >> np.uint64(21):
            at = (at + np.uint64(1)) & mask
        table[at] = entry
    return 0


def insert_trie(a):
    """Put texts into a trie: (node, byte) -> link; a node's value is 1 + what the text is worth.

    The root is node 0. Returns the number of nodes.
    """
    table, mask, values = u64p(a[0]), np.uint64(a[1]), i32p(a[2])
    data, ends, worth, count, nodes = u8p(a[3]), i64p(a[4]), i32p(a[5]), a[6], a[7]
    at = np.int64(0)
    for i in range(count):
        node, parent = np.int64(0), np.int64(-1)
        while at < ends[i]:
            place = np.int64(insert_child(table, mask, node, data[at], nodes))
            if parent >= 0:
                table[parent] |= np.uint64(1)
            node, parent = np.int64(table[place] & np.uint64(0xFFFFFFFF)) >> 1, place
            nodes = max(nodes, node + 1)
            at += 1
        values[node] = worth[i] + 1
    return nodes


def find_node(a):
    """The link to the node of a text's beginning in a trie, or 0."""
    table, mask, text = u64p(a[0]), np.uint64(a[1]), u8p(a[2])
    link = np.int64(1)
    for i in range(a[3]):
        link = find_child(table, mask, link, text[i])
    return link


def learn_vocabulary(a):
    """Put tokens into a table by their bytes: the last of equals."""
    table, mask, texts, ends = u64p(a[0]), np.uint64(a[1]), u8p(a[2]), i64p(a[3])
    start = np.int64(0)
    for i in range(a[4]):
        if ends[i] > start:
            h = text_hash(texts, start, ends[i], ends[a[4] - 1])
            at = h >> np.uint64(8) & mask
            while table[at] != 0 and not is_token(
                texts, ends, np.int64(table[at] & np.uint64(0xFFFFFFFF)) - 1, texts, start, ends[i]
            ):
                at = (at + np.uint64(1)) & mask
            table[at] = h >> np.uint64(32) << np.uint64(32) | np.uint64(i + 1)
        start = ends[i]
    return 0


def learn_words(a):
    """Put tokens of up to 15 bytes into a table of words; returns how many there are.

    The same key and entry as in kernel_words.py; the last of equals counts.
    """
    table, mask, texts, ends = u64p(a[0]), np.uint64(a[1]), u8p(a[2]), i64p(a[3])
    start, known = np.int64(0), np.int64(0)
    for i in range(a[4]):
        size = ends[i] - start
        if 0 < size <= 15:
            low, high = word_key(texts, start, size, ends[a[4] - 1])
            entry = np.int64(4 * (word_hash(low, high) & mask))
            while table[entry + 1] != 0 and (table[entry + 1] != high or table[entry] != low):
                entry = (entry + 4) & np.int64(4 * mask + np.uint64(3))
            known += np.int64(table[entry + 1] == 0)
            table[entry], table[entry + 1] = low, high
            table[entry + 2], table[entry + 3] = np.uint64(i), np.uint64(1) << np.uint64(56)
        start = ends[i]
    return known


def merged_ids(a):
    """The id of the token that each pair makes, or -1: its bytes are those of both."""
    table, mask, texts, ends = u64p(a[0]), np.uint64(a[1]), u8p(a[2]), i64p(a[3])
    left, right, merged, scratch, room = i32p(a[4]), i32p(a[5]), i32p(a[6]), u8p(a[8]), a[9]
    for i in range(a[7]):
        size = np.int64(0)
        for token in (np.int64(left[i]), np.int64(right[i])):
            begin = ends[token - 1] if token > 0 else np.int64(0)
            for k in range(begin, ends[token]):
                scratch[size] = texts[k]
                size += 1
        merged[i] = find_text(table, mask, texts, ends, scratch, np.int64(0), size, room)
    return 0


def rank_merges(a):
    """Every pair of tokens that makes a token, in the order of what it makes; how many there are.

    A pair's merged token is its rank: the ids are ranks.
    """
    table, mask, texts, ends = u64p(a[0]), np.uint64(a[1]), u8p(a[2]), i64p(a[3])
    left, right, rank, limit = i32p(a[5]), i32p(a[6]), i32p(a[7]), ends[a[4] - 1]
    count, start = np.int64(0), np.int64(0)
    for token in range(a[4]):
        for at in range(start + 1, ends[token]):
            first = find_text(table, mask, texts, ends, texts, start, at, limit)
            if first >= 0:
                second = find_text(table, mask, texts, ends, texts, at, ends[token], limit)
                if second >= 0:
                    left[count], right[count], rank[count] = first, second, token
                    count += 1
        start = ends[token]
    return count


@njit(**_OPTIONS)
def set_bit(bits, at):
    bits[at >> np.uint64(3)] |= np.uint8(1) << np.uint8(at & np.uint64(7))


def mark_joints(a):
    """Which characters stand side by side within a token, as two tables of bits.

    `pairs`: hashed pairs of whole characters. `coarse`: (last byte, first byte) of places where a
    token holds only a part of a character.
    """
    texts, ends, pairs, mask, coarse = u8p(a[0]), i64p(a[1]), u8p(a[3]), np.uint64(a[4]), u8p(a[5])
    start = np.int64(0)
    for token in range(a[2]):
        before, at, end = np.int64(-1), start, ends[token]
        while at < end:
            n = width(texts[at])
            whole = at + n <= end and texts[at] & np.uint8(0xC0) != np.uint8(0x80)
            code = code_point(texts, at)[0] if whole else np.int64(-1)
            if at > start:
                if before >= 0 and whole:
                    set_bit(pairs, mix(np.uint64(before), np.uint64(code)) >> np.uint64(20) & mask)
                else:
                    set_bit(coarse, np.uint64(texts[at - 1]) << np.uint64(8) | np.uint64(texts[at]))
            at += n if whole else 1
            while not whole and at < end and texts[at] & np.uint8(0xC0) == np.uint8(0x80):
                at += 1
            before = code
        start = end
    return 0
