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
def lowest(ranks, count):
    """Where the lowest of some ranks first stands, or -1 when all are NO_RANK."""
    best, at = np.uint32(NO_RANK), np.int64(0)
    for i in range(count):  # on its own, so that the compiler takes many at once
        best = min(best, ranks[i])
    if best == np.uint32(NO_RANK):
        return np.int64(-1)
    while ranks[at] != best:
        at += 1
    return at


@njit(**_OPTIONS)
def set_rank(a, symbols, ranks, merged, at):
    """The rank of the pair at `at`, and what it merges to."""
    value = find_merge(
        u64p(a[MERGES]), np.uint64(a[MERGES_MASK]), u64p(a[MERGE_VALUES]), symbols[at],
        symbols[at + 1],
    )  # fmt: skip
    ranks[at] = np.uint32(value >> np.uint64(32))
    merged[at] = np.int32(value & np.uint64(0xFFFFFFFF))


@njit(**_OPTIONS)
def first_ranks(a, text, start, symbols, ranks, merged, count):
    """The ranks of all pairs of neighbours; those of bytes have a table of their own."""
    if a[BYTE_PAIRS] == 0:
        for i in range(count - 1):
            set_rank(a, symbols, ranks, merged, i)
        return
    of_bytes = u64p(a[BYTE_PAIRS])
    for i in range(count - 1):
        value = of_bytes[np.int64(text[start + i]) << 8 | np.int64(text[start + i + 1])]
        ranks[i] = np.uint32(value >> np.uint64(32))
        merged[i] = np.int32(value & np.uint64(0xFFFFFFFF))


@njit(**_OPTIONS)
def merge_scan(a, symbols, ranks, merged, count):
    """Merge in place, looking at every pair for the lowest rank; returns how many are left."""
    while count > 1:
        at = lowest(ranks, count - 1)
        if at < 0:
            break
        symbols[at] = merged[at]
        count -= 1
        for i in range(at + 1, count):
            symbols[i] = symbols[i + 1]
        for i in range(at + 1, count - 1):
            ranks[i] = ranks[i + 1]
        for i in range(at + 1, count - 1):
            merged[i] = merged[i + 1]
        if at > 0:
            set_rank(a, symbols, ranks, merged, at - 1)
        if at + 1 < count:
            set_rank(a, symbols, ranks, merged, at)
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
def offer(table, mask, values, symbols, following, heap, size, at):
    """Put the pair at `at` on the heap, if it merges. An entry is rank above, place below."""
    if at >= 0 and following[at] >= 0:
        value = find_merge(table, mask, values, symbols[at], symbols[following[at]])
        if value != np.uint64(0xFFFFFFFFFFFFFFFF):
            return heap_push(heap, size, value >> np.uint64(32) << np.uint64(32) | np.uint64(at))
    return size


@njit(**_OPTIONS)
def merge_heap(a, symbols, count):
    """`merge_scan` for long words: O(n log n)."""
    table, mask, values = u64p(a[MERGES]), np.uint64(a[MERGES_MASK]), u64p(a[MERGE_VALUES])
    heap, following, before = u64p(a[HEAP]), i32p(a[FOLLOWING]), i32p(a[BEFORE])
    for i in range(count):
        following[i] = i + 1 if i + 1 < count else -1
        before[i] = i - 1
    size = np.int64(0)
    for i in range(count - 1):
        size = offer(table, mask, values, symbols, following, heap, size, i)
    while size > 0:
        top, size = heap_pop(heap, size)
        at = np.int64(top & np.uint64(0xFFFFFFFF))
        if symbols[at] < 0 or following[at] < 0:
            continue
        right = np.int64(following[at])
        value = find_merge(table, mask, values, symbols[at], symbols[right])
        if value >> np.uint64(32) != top >> np.uint64(32):
            continue  # a merge nearby made this offer stale
        symbols[at] = np.int32(value & np.uint64(0xFFFFFFFF))
        symbols[right] = -1
        following[at] = following[right]
        if following[at] >= 0:
            before[following[at]] = at
        size = offer(table, mask, values, symbols, following, heap, size, before[at])
        size = offer(table, mask, values, symbols, following, heap, size, at)
    kept = np.int64(0)
    for i in range(count):
        if symbols[i] >= 0:
            symbols[kept] = symbols[i]
            kept += 1
    return kept


@njit(**_OPTIONS)
def encode_bpe(a, text, start, end, symbols, part):
    """Ids of one piece into `symbols`; returns how many."""
    if a[WHOLE_WORDS] != 0 and part == 0 and end - start > 15:  # shorter ones are known words
        token = whole_token(a, text, start, end)
        if token >= 0:
            symbols[0] = token
            return np.int64(1)
    count = first_symbols(a, text, start, end, symbols)
    if count < 2:
        return count
    if count <= SCAN_LIMIT:
        ranks, merged = u32p(a[HEAP]), i32p(a[BEFORE])
        first_ranks(a, text, start, symbols, ranks, merged, count)
        return merge_scan(a, symbols, ranks, merged, count)
    return merge_heap(a, symbols, count)


@njit(**_OPTIONS)
def whole_token(a, text, start, end):
    """The id of the token that is the whole piece, or -1."""
    table, mask = u64p(a[VOCABULARY]), np.uint64(a[VOCABULARY_MASK])
    texts, ends = u8p(a[VOCABULARY_TEXTS]), i64p(a[VOCABULARY_ENDS])
    return find_text(table, mask, texts, ends, text, start, end, a[TEXT_SIZE])


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
        link = np.int64(1) if at == start else a[INSIDE_LINK]
        q, best, best_end = at, np.int32(-1), at
        while q < end:
            link = find_child(table, mask, link, text[q])
            if link == 0:
                break
            q += 1
            if values[link >> 1] > 0:
                best, best_end = values[link >> 1] - np.int32(1), q
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
    root, scores, best = i32p(a[TRIE_ROOT]), f64p(a[SCORES]), f64p(a[HEAP])
    back, tokens, unknown = i32p(a[FOLLOWING]), i32p(a[BEFORE]), np.int32(a[UNK_ID])
    single, unknown_score, reached = a[FLOAT32] != 0, f64p(a[UNK_SCORE])[0], f64p(a[REACHED])
    size = end - start
    for i in range(size + 1):
        back[i] = -1
    best[0], back[0] = reached[0], 0
    at = np.int64(0)
    while at < size:
        n = width(text[start + at])
        base, q, lone = best[at], at + 1, False
        if single and abs(base) > RESET_BEYOND:
            for i in range(at, size + 1):
                if i == at or back[i] >= 0:
                    best[i] = np.float64(np.float32(best[i] - base))
            base = 0.0
        link = np.int64(root[text[start + at]])
        while link != 0:
            token = values[link >> 1] - np.int32(1)
            if token >= 0:
                total = scores[link >> 1] + base
                if token == unknown:  # written out: as unknown as any other
                    token = np.int32(-1)
                if single:
                    total = np.float64(np.float32(total))
                if back[q] < 0 or total > best[q]:
                    best[q], back[q], tokens[q] = total, at, token
                lone = lone or q == at + n
            if q >= size:
                break
            link = find_child(table, mask, link, text[start + q])
            q += 1
        if not lone:
            total = unknown_score + base
            if single:
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
