"""Ids of one piece of text, compiled: byte-pair merges, WordPiece, Unigram.

Each is the kernel of a readable way: bpe.py and merging.py, wordpiece.py, unigram.py.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *


@njit(**_OPTIONS)
def first_symbols(a, text, start, end, symbols):
    """Ids of the bytes or characters; returns how many, bytes without an id dropped."""
    byte_ids, count = i32p(a[BYTE_IDS]), np.int64(0)
    if a[BYTE_LEVEL] != 0:
        for i in range(start, end):
            token = byte_ids[text[i]]
            if token >= 0:
                symbols[count] = token
                count += 1
        return count
    characters, mask = u64p(a[CHARACTERS]), np.uint64(a[CHARACTERS_MASK])
    unknown, fuse, fallback = a[UNK_ID], a[FUSE_UNK], a[BYTE_FALLBACK]
    at, was_unknown = start, False
    while at < end:
        code, n = code_point(text, at)
        place = find_pair(characters, mask, code, 0)
        if place >= 0:
            symbols[count] = np.int32(characters[place])
            count += 1
            was_unknown = False
        else:
            whole = fallback != 0
            for k in range(n):
                whole = whole and byte_ids[text[at + k]] >= 0
            if whole:
                for k in range(n):
                    symbols[count] = byte_ids[text[at + k]]
                    count += 1
                was_unknown = False
            elif unknown >= 0:
                if not (was_unknown and fuse != 0):
                    symbols[count] = unknown
                    count += 1
                was_unknown = True
        at += n
    return count


@njit(**_OPTIONS)
def merge_scan(a, symbols, ranks, count):
    """Merge in place, looking at every pair for the lowest rank; returns how many are left."""
    table, mask = u64p(a[MERGES]), np.uint64(a[MERGES_MASK])
    none = np.uint64(0xFFFFFFFFFFFFFFFF)
    for i in range(count - 1):
        place = find_pair(table, mask, symbols[i], symbols[i + 1])
        ranks[i] = table[place] if place >= 0 else none
    while count > 1:
        best, at = none, np.int64(-1)
        for i in range(count - 1):
            # Rank above, merged id below: the lowest rank is the lowest number.
            if ranks[i] >> np.uint64(32) < best >> np.uint64(32):
                best, at = ranks[i], i
        if at < 0:
            break
        symbols[at] = np.int32(best & np.uint64(0xFFFFFFFF))
        count -= 1
        for i in range(at + 1, count):
            symbols[i] = symbols[i + 1]
            ranks[i - 1 + 1] = ranks[i + 1] if i + 1 < count else none
        for i in range(max(0, at - 1), min(at + 1, count - 1)):
            place = find_pair(table, mask, symbols[i], symbols[i + 1])
            ranks[i] = table[place] if place >= 0 else none
    return count


@njit(**_OPTIONS)
def heap_push(heap, size, value):
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if heap[up] <= value:
            break
        heap[at] = heap[up]
        at = up
    heap[at] = value
    return size + 1


@njit(**_OPTIONS)
def heap_pop(heap, size):
    """Take the smallest off; returns (it, size left)."""
    top, size = heap[0], size - 1
    value, at = heap[size], np.int64(0)
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return top, size


@njit(**_OPTIONS)
def offer(table, mask, symbols, following, heap, size, at):
    """Put the pair at `at` on the heap, if it merges. An entry is rank above, place below."""
    if at >= 0 and following[at] >= 0:
        place = find_pair(table, mask, symbols[at], symbols[following[at]])
        if place >= 0:
            rank = table[place] >> np.uint64(32)
            return heap_push(heap, size, rank << np.uint64(32) | np.uint64(at))
    return size


@njit(**_OPTIONS)
def merge_heap(a, symbols, count):
    """`merge_scan` for long words: O(n log n)."""
    table, mask = u64p(a[MERGES]), np.uint64(a[MERGES_MASK])
    heap, following, before = u64p(a[HEAP]), i32p(a[FOLLOWING]), i32p(a[BEFORE])
    for i in range(count):
        following[i] = i + 1 if i + 1 < count else -1
        before[i] = i - 1
    size = np.int64(0)
    for i in range(count - 1):
        size = offer(table, mask, symbols, following, heap, size, i)
    while size > 0:
        top, size = heap_pop(heap, size)
        at = np.int64(top & np.uint64(0xFFFFFFFF))
        if symbols[at] < 0 or following[at] < 0:
            continue
        right = np.int64(following[at])
        place = find_pair(table, mask, symbols[at], symbols[right])
        if place < 0 or table[place] >> np.uint64(32) != top >> np.uint64(32):
            continue  # a merge nearby made this offer stale
        symbols[at] = np.int32(table[place] & np.uint64(0xFFFFFFFF))
        symbols[right] = -1
        following[at] = following[right]
        if following[at] >= 0:
            before[following[at]] = at
        size = offer(table, mask, symbols, following, heap, size, before[at])
        size = offer(table, mask, symbols, following, heap, size, at)
    kept = np.int64(0)
    for i in range(count):
        if symbols[i] >= 0:
            symbols[kept] = symbols[i]
            kept += 1
    return kept


@njit(**_OPTIONS)
def encode_bpe(a, text, start, end, symbols, part):
    """Ids of one piece into `symbols`; returns how many."""
    if a[WHOLE_WORDS] != 0 and part == 0:
        token = whole_token(a, text, start, end)
        if token >= 0:
            symbols[0] = token
            return np.int64(1)
    count = first_symbols(a, text, start, end, symbols)
    if count < 2:
        return count
    if count <= SCAN_LIMIT:
        return merge_scan(a, symbols, u64p(a[HEAP]), count)
    return merge_heap(a, symbols, count)


@njit(**_OPTIONS)
def whole_token(a, text, start, end):
    """The id of the token that is the whole piece, or -1."""
    table, mask, values = u64p(a[TRIE]), np.uint64(a[TRIE_MASK]), i32p(a[TRIE_VALUES])
    node = np.int64(0)
    for i in range(start, end):
        place = find_pair(table, mask, node, text[i])
        if place < 0:
            return np.int32(-1)
        node = np.int64(table[place])
    return values[node] - np.int32(1)


@njit(**_OPTIONS)
def encode_word_piece(a, text, start, end, symbols):
    """The longest token first, from the left; the whole word is unknown if that fails."""
    table, mask, values = u64p(a[TRIE]), np.uint64(a[TRIE_MASK]), i32p(a[TRIE_VALUES])
    characters = np.int64(0)
    for i in range(start, end):
        characters += np.int64(text[i] & np.uint8(0xC0) != np.uint8(0x80))
    symbols[0] = np.int32(a[UNK_ID])
    if characters > a[LONGEST_WORD]:
        return np.int64(1)
    at, count = start, np.int64(0)
    while at < end:
        node = np.int64(0) if at == start else a[INSIDE_NODE]
        q, best, best_end = at, np.int32(-1), at
        while q < end and node >= 0:
            place = find_pair(table, mask, node, text[q])
            if place < 0:
                break
            node = np.int64(table[place])
            q += 1
            if values[node] > 0:
                best, best_end = values[node] - np.int32(1), q
        if best < 0:
            symbols[0] = np.int32(a[UNK_ID])
            return np.int64(1)
        symbols[count] = best
        count += 1
        at = best_end
    return count


@njit(**_OPTIONS)
def encode_unigram(a, text, start, end, symbols):
    """Viterbi over all ways to cut; scores add up from the value that the text has reached."""
    table, mask, values = u64p(a[TRIE]), np.uint64(a[TRIE_MASK]), i32p(a[TRIE_VALUES])
    scores, best, back, tokens = f64p(a[SCORES]), f64p(a[HEAP]), i32p(a[FOLLOWING]), i32p(a[BEFORE])
    single, unknown_score, reached = a[FLOAT32], f64p(a[UNK_SCORE])[0], f64p(a[REACHED])
    size = end - start
    for i in range(size + 1):
        back[i] = -1
    best[0], back[0] = reached[0], 0
    at = np.int64(0)
    while at < size:
        n = width(text[start + at])
        node, q, lone = np.int64(0), at, False
        while q < size:
            place = find_pair(table, mask, node, text[start + q])
            if place < 0:
                break
            node = np.int64(table[place])
            q += 1
            if values[node] > 0:
                token = values[node] - np.int32(1)
                total = scores[token] + best[at]
                if token == a[UNK_ID]:  # written out: as unknown as any other
                    token = np.int32(-1)
                if single != 0:
                    total = np.float64(np.float32(total))
                if back[q] < 0 or total > best[q]:
                    best[q], back[q], tokens[q] = total, at, token
                lone = lone or q == at + n
        if not lone:
            total = unknown_score + best[at]
            if single != 0:
                total = np.float64(np.float32(total))
            q = at + n
            if back[q] < 0 or total > best[q]:
                best[q], back[q], tokens[q] = total, at, np.int32(-1)
        at += n
    reached[1] = best[size]
    return unigram_path(a, text, start, size, back, tokens, symbols)


@njit(**_OPTIONS)
def unigram_path(a, text, start, size, back, tokens, symbols):
    """The tokens of the best path in order; unknown neighbours are one, or their bytes."""
    at = size
    after = np.int64(-1)
    while at > 0:  # turn the links round
        before = np.int64(back[at])
        back[at] = np.int32(after)
        after = at
        at = before
    byte_ids, count, at, end = i32p(a[BYTE_IDS]), np.int64(0), np.int64(0), after
    while end > 0:
        if tokens[end] >= 0:
            symbols[count] = tokens[end]
            count += 1
        else:
            while back[end] > 0 and tokens[back[end]] < 0:
                end = np.int64(back[end])
            whole = a[BYTE_FALLBACK] != 0
            for i in range(at, end):
                whole = whole and byte_ids[text[start + i]] >= 0
            if whole:
                for i in range(at, end):
                    symbols[count] = byte_ids[text[start + i]]
                    count += 1
            elif a[UNK_ID] >= 0:
                symbols[count] = np.int32(a[UNK_ID])
                count += 1
        at = end
        end = np.int64(back[end]) if end < size else np.int64(-1)
    return count


@njit(**_OPTIONS)
def encode_piece(a, text, start, end, symbols, part):
    """Ids of a piece, or of a part of one, nothing remembered."""
    if a[MODEL] == MODEL_BPE:
        return encode_bpe(a, text, start, end, symbols, part)
    if a[MODEL] == MODEL_UNIGRAM:
        return encode_unigram(a, text, start, end, symbols)
    return encode_word_piece(a, text, start, end, symbols)
