# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts lmworks.tokenizers.kernel_models
# kernels: encode find_tokens map_characters insert_pairs insert_trie find_node learn_words
"""The compiled way from text to ids: find added tokens, map characters, cut, look up, merge.

Each kernel works on UTF-8 bytes and gives the ids of the readable path (tokenizer.py), which is
its oracle. Arguments are slots of one array of int64 (slots.py); most are addresses.

What makes it fast: text is cut by one automaton (automaton.py), a table look-up per character;
words come again, so the ids of a word are kept in a table whose keys are the word's own bytes;
words that can't be kept are cut where no token reaches across, and the parts can.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_models import *
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


def insert_trie(a):
    """Put texts into a trie: (node, byte) -> child; a node's value is 1 + what the text is worth.

    The root is node 0. Returns the number of nodes.
    """
    table, mask, values = u64p(a[0]), np.uint64(a[1]), i32p(a[2])
    data, ends, worth, count, nodes = u8p(a[3]), i64p(a[4]), i32p(a[5]), a[6], a[7]
    at = np.int64(0)
    for i in range(count):
        node = np.int64(0)
        while at < ends[i]:
            place = find_pair(table, mask, node, data[at])
            if place < 0:
                insert_pair(table, mask, node, data[at], np.uint64(nodes))
                node = nodes
                nodes += 1
            else:
                node = np.int64(table[place])
            at += 1
        values[node] = worth[i] + 1
    return nodes


def find_node(a):
    """The node of a text's beginning in a trie, or -1."""
    table, mask, text = u64p(a[0]), np.uint64(a[1]), u8p(a[2])
    node = np.int64(0)
    for i in range(a[3]):
        place = find_pair(table, mask, node, text[i])
        if place < 0:
            return -1
        node = np.int64(table[place])
    return node


def find_tokens(a):
    """Added tokens in a text: start, end, id of each; the longest wins, as in tokenizers.

    Writes as many as there is room for. Returns how many there are.
    """
    text, size = u8p(a[0]), a[1]
    first, table, mask, values = u8p(a[2]), u64p(a[3]), np.uint64(a[4]), i32p(a[5])
    kinds, allow, out, room = u8p(a[6]), a[7], i64p(a[8]), a[9]
    found = np.int64(0)
    at = np.int64(0)
    while at < size:
        if first[text[at]] == 0:
            at += 1
            continue
        node, q, best, end = np.int64(0), at, np.int64(-1), at
        while q < size:
            place = find_pair(table, mask, node, text[q])
            if place < 0:
                break
            node = np.int64(table[place])
            q += 1
            if values[node] > 0:
                best, end = np.int64(values[node]) - 1, q
        if best < 0:
            at += 1
            continue
        if allow != 0 or kinds[best] == 0:  # a special token that is not allowed stays text
            if found < room:
                out[3 * found], out[3 * found + 1], out[3 * found + 2] = at, end, best
            found += 1
        at = end
    return found


def map_characters(a):
    """Each character replaced by its text; returns the size, or what stopped it.

    -1 - page: that page of the map is not filled; MAP_NEIGHBOURS: a character that needs its
    neighbours; MAP_FULL: no room. Progress is kept, so that the call can be made again.
    """
    text, size, out = u8p(a[MAP_TEXT]), a[MAP_SIZE], u8p(a[MAP_OUT])
    pages, entries, pool = i32p(a[MAP_PAGES]), u32p(a[MAP_ENTRIES]), u8p(a[MAP_POOL])
    squeeze, space_a, space_size = a[MAP_SQUEEZE], u8p(a[MAP_SPACE]), a[MAP_SPACE_SIZE]
    at, done = a[MAP_AT], a[MAP_DONE]
    while at < size:
        if done + 1024 > a[MAP_ROOM]:
            a[MAP_AT], a[MAP_DONE] = at, done
            return MAP_FULL
        code, n = code_point(text, at)
        page = pages[code >> 7]
        if page < 0:
            a[MAP_AT], a[MAP_DONE] = at, done
            return -1 - (code >> 7)
        entry = entries[(np.int64(page) << 7) + (code & 127)]
        length = np.int64(entry & np.uint32(0xFF))
        if length == 255:
            return MAP_NEIGHBOURS
        start = np.int64(entry >> np.uint32(8))
        at += n
        if squeeze == 0:
            for i in range(length):
                out[done + i] = pool[start + i]
            done += length
            continue
        for i in range(length):
            byte = pool[start + i]
            if byte == 32:
                if a[MAP_SQUEEZED] == 0:
                    for k in range(space_size):
                        out[done + k] = space_a[k]
                    done += space_size
                if squeeze == 2:
                    a[MAP_SQUEEZED] = 1
            else:
                a[MAP_SQUEEZED] = 0
                out[done] = byte
                done += 1
    return done


@njit(**_OPTIONS)
def safe_end(a, text, start, end):
    """The first place after `start` that no token reaches across; `end` if there is none."""
    pairs, coarse, mask = u8p(a[SAFE_PAIRS]), u8p(a[SAFE_BYTES]), np.uint64(a[SAFE_MASK])
    before, n = code_point(text, start)
    at = start + n
    while at < end:
        code, n = code_point(text, at)
        h = (mix(np.uint64(before), np.uint64(code)) >> np.uint64(20)) & mask
        unsafe = pairs[h >> np.uint64(3)] >> np.uint8(h & np.uint64(7)) & np.uint8(1)
        if unsafe == 0:
            h = np.uint64(text[at - 1]) << np.uint64(8) | np.uint64(text[at])
            if coarse[h >> np.uint64(3)] >> np.uint8(h & np.uint64(7)) & np.uint8(1) == 0:
                return at
        before = code
        at += n
    return end


@njit(**_OPTIONS)
def put(a, out, done, ids, count):
    """Append ids; a beginning unknown one joins an unknown one before, within a piece."""
    skip = np.int64(0)
    if a[JOIN_UNKNOWN] != 0 and count > 0 and ids[0] == a[UNK_ID]:
        if done > a[PIECE_DONE] and out[done - 1] == a[UNK_ID]:
            skip = 1
    for i in range(skip, count):
        out[done + i - skip] = ids[i]
    return done + count - skip


@njit(**_OPTIONS)
def remember(a, entry, ids, count):
    """Keep the ids of a word: up to five in its entry, more in the pool."""
    table, pool = u64p(a[WORDS]), i32p(a[POOL])
    if count <= 5:
        low = high = np.uint64(0)
        for i in range(min(count, 3)):
            low |= np.uint64(ids[i]) << np.uint64(21 * i)
        for i in range(3, count):
            high |= np.uint64(ids[i]) << np.uint64(21 * (i - 3))
        table[entry + 2] = low
        table[entry + 3] = high | np.uint64(count) << np.uint64(56)
        return
    for i in range(count):
        pool[a[POOL_USED] + i] = ids[i]
    table[entry + 2] = np.uint64(a[POOL_USED])
    table[entry + 3] = np.uint64(count) | np.uint64(255) << np.uint64(56)
    a[POOL_USED] += count


@njit(**_OPTIONS)
def recall(a, entry, out, done):
    """Append what is kept of a word."""
    table = u64p(a[WORDS])
    low, high = table[entry + 2], table[entry + 3]
    count = np.int64(high >> np.uint64(56))
    if count == 255:
        return put(
            a, out, done, i32p(a[POOL] + 4 * np.int64(low)), np.int64(high & np.uint64(0xFFFFFFFF))
        )
    if a[JOIN_UNKNOWN] != 0 and done > a[PIECE_DONE] and count > 0:
        if out[done - 1] == a[UNK_ID] and np.int64(low & np.uint64(0x1FFFFF)) == a[UNK_ID]:
            done -= 1  # written again below
    out[done] = np.int32(low & np.uint64(0x1FFFFF))
    if count > 1:
        out[done + 1] = np.int32(low >> np.uint64(21) & np.uint64(0x1FFFFF))
        out[done + 2] = np.int32(low >> np.uint64(42) & np.uint64(0x1FFFFF))
        if count > 3:
            out[done + 3] = np.int32(high & np.uint64(0x1FFFFF))
            out[done + 4] = np.int32(high >> np.uint64(21) & np.uint64(0x1FFFFF))
    return done + count


@njit(**_OPTIONS)
def forget(a):
    """Put the table of words back to how it was given."""
    table, given = u64p(a[WORDS]), u64p(a[WORDS_GIVEN])
    for i in range(4 * (a[WORDS_MASK] + 1)):
        table[i] = given[i]
    a[POOL_USED] = 0
    a[WORDS_USED] = a[WORDS_KNOWN]


@njit(**_OPTIONS)
def word(a, text, start, end, limit, out, done, part):
    """Append the ids of a word of at most 15 bytes; `limit`: how far reading is safe.

    Parts of pieces are kept apart: a piece that is a token may skip its merges, a part may not.
    """
    size = end - start
    table, mask, symbols = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), i32p(a[SYMBOLS])
    low = bytes_at(text, start, min(size, 8), limit)
    high = bytes_at(text, start + 8, size - 8, limit) if size > 8 else np.uint64(0)
    high |= np.uint64(size) << np.uint64(56) | np.uint64(part) << np.uint64(63)
    at = word_hash(low, high) & mask
    while True:
        entry = np.int64(4 * at)
        if table[entry + 1] == high and table[entry] == low:
            return recall(a, entry, out, done)
        if table[entry + 1] == 0:
            break
        at = (at + np.uint64(1)) & mask
    count = encode_piece(a, text, start, end, symbols, part)
    if 3 * a[WORDS_USED] > 2 * a[WORDS_MASK] or a[POOL_USED] + 64 > a[POOL_ROOM]:
        forget(a)
        at = word_hash(low, high) & mask
        while table[4 * np.int64(at) + 1] != 0:
            at = (at + np.uint64(1)) & mask
    entry = np.int64(4 * at)
    table[entry], table[entry + 1] = low, high
    a[WORDS_USED] += 1
    remember(a, entry, symbols, count)
    return put(a, out, done, symbols, count)


def learn_words(a):
    """Remember every token that a piece of its text becomes; the text is all tokens, one by one.

    Returns how many there are.
    """
    text, ends, ids = u8p(a[TEXT]), i64p(a[ENDS]), i32p(a[OUT])
    table, mask, symbols = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), i32p(a[SYMBOLS])
    start, known = np.int64(0), np.int64(0)
    for i in range(a[NUM_TOKENS]):
        end = ends[i]
        size = end - start
        if size > 0 and size <= 15 and encode_piece(a, text, start, end, symbols, 0) == 1:
            if symbols[0] == ids[i]:
                low = bytes_at(text, start, min(size, 8), a[TEXT_SIZE])
                high = np.uint64(0)
                if size > 8:
                    high = bytes_at(text, start + 8, size - 8, a[TEXT_SIZE])
                high |= np.uint64(size) << np.uint64(56)
                at = word_hash(low, high) & mask
                while table[4 * np.int64(at) + 1] != 0:
                    at = (at + np.uint64(1)) & mask
                entry = 4 * np.int64(at)
                table[entry], table[entry + 1] = low, high
                table[entry + 2], table[entry + 3] = (
                    np.uint64(ids[i]),
                    np.uint64(1) << np.uint64(56),
                )
                known += 1
        start = end
    return known


@njit(**_OPTIONS)
def whole_piece(a, text, start, end, out, done, part):
    """Append the ids of a piece that is not remembered."""
    if end - start > a[SPACE]:
        a[NEED] = end - start
        return done
    symbols = i32p(a[SYMBOLS])
    return put(a, out, done, symbols, encode_piece(a, text, start, end, symbols, part))


@njit(**_OPTIONS)
def parted(a, text, start, end, out, done):
    """Append the ids of a long piece: cut where no token reaches across, then part by part."""
    running, reached = a[MODEL] == MODEL_UNIGRAM, f64p(a[REACHED])
    first = start
    while start < end and a[NEED] == 0:
        stop = safe_end(a, text, start, end)
        part = 0 if start == first and stop == end else 1
        if stop - start <= 15 and not running:
            done = word(a, text, start, stop, a[TEXT_SIZE], out, done, part)
        else:
            done = whole_piece(a, text, start, stop, out, done, part)
            if running:
                reached[0] = reached[1]
        start = stop
    return done


@njit(**_OPTIONS)
def piece(a, text, start, end, out, done):
    """Append the ids of one piece."""
    a[PIECE_DONE] = done
    f64p(a[REACHED])[0] = 0.0
    if end - start <= 15 and a[KEEP_WORDS] != 0:
        return word(a, text, start, end, a[TEXT_SIZE], out, done, 0)
    if a[SAFE_PAIRS] != 0:
        return parted(a, text, start, end, out, done)
    return whole_piece(a, text, start, end, out, done, 0)


@njit(**_OPTIONS)
def next_token(a, tokens):
    """Where the next added token begins, or the text's end."""
    return tokens[3 * a[TOKEN_AT]] if a[TOKEN_AT] < a[NUM_TOKENS] else a[TEXT_SIZE]


@njit(**_OPTIONS)
def known_words(a, level, text, start, end, out, done):
    """Append the ids of words that are remembered, as long as there are such.

    The same as `next_match` and `word`, with everything in registers; it is where the time goes.
    Returns: where it stopped, and how many ids there are.
    """
    rows, ascii_class, stage1, stage2, first, last_class = (
        u32p(level[CUT_ROWS]), u8p(level[CUT_ASCII]), u16p(level[CUT_STAGE1]),
        u8p(level[CUT_STAGE2]), np.uint32(level[CUT_START]), np.uint32(level[CUT_END_CLASS]),
    )  # fmt: skip
    table, mask, masks = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), u64p(a[MASKS])
    room, limit = a[OUT_ROOM] - 24, a[TEXT_SIZE] - 16
    while start < end and start <= limit and done < room:
        row, q, last = first, start, np.int64(-1)
        while q < end:
            b = text[q]
            if b < 0x80:
                kind, n = ascii_class[b], 1
            else:
                code, n = code_point(text, q)
                kind = stage2[(np.int64(stage1[code >> 7]) << 7) + (code & 127)]
            step = rows[row + np.uint32(kind)]
            if step & np.uint32(1):
                last = q
            row = step >> np.uint32(3)
            if row == 0:
                break
            q += n
            loops = step & np.uint32(6)
            if loops != 0 and q + 8 <= end:  # a state that letters do not leave
                fold = np.uint64(0x2020202020202020) if loops == 2 else np.uint64(0)
                while q + 8 <= end:
                    run = letters(load64(text, q), fold)
                    q += run
                    if run < 8:
                        break
        if row != 0 and rows[row + last_class] & np.uint32(1):
            last = q
        size = last - start
        if size <= 0 or size > 15 or q - last > 64:
            return start, done
        low = load64(text, start) & masks[2 * size]
        high = load64(text, start + 8) & masks[2 * size + 1] | np.uint64(size) << np.uint64(56)
        at = word_hash(low, high) & mask
        entry = np.int64(4 * at)
        while table[entry + 1] != high or table[entry] != low:
            if table[entry + 1] == 0:
                return start, done
            at = (at + np.uint64(1)) & mask
            entry = np.int64(4 * at)
        low, high = table[entry + 2], table[entry + 3]
        if high >> np.uint64(56) > np.uint64(3):
            a[PIECE_DONE] = done
            done = recall(a, entry, out, done)
        else:
            out[done] = np.int32(low & np.uint64(0x1FFFFF))
            out[done + 1] = np.int32(low >> np.uint64(21) & np.uint64(0x1FFFFF))
            out[done + 2] = np.int32(low >> np.uint64(42) & np.uint64(0x1FFFFF))
            done += np.int64(high >> np.uint64(56))
        start = last
    return start, done


def encode(a):
    """Ids of the text from AT to TEXT_SIZE; returns how many.

    NEED says why it stopped early, with AT at the last place that is done: a size, when a piece
    needs that much working space; -1, when OUT is full; -2, when the pattern looks far ahead again
    and again, so that the time would grow with the square of the text.
    """
    text, out, room = u8p(a[TEXT]), i32p(a[OUT]), a[OUT_ROOM]
    last, places, ends = a[NUM_LEVELS] - 1, i64p(a[PLACES]), i64p(a[ENDS])
    done, settled, k = np.int64(0), np.int64(0), np.int64(0)
    tokens = i64p(a[TOKENS])
    places[0], ends[0] = a[AT], next_token(a, tokens)
    a[NEED] = 0
    a[LOOKED_AHEAD] = 0
    while True:
        start, end = places[k], ends[k]
        if start >= end:
            if k == 0:
                if a[TOKEN_AT] >= a[NUM_TOKENS]:
                    return done
                if done + 8 > room:
                    a[NEED] = -1
                    return settled
                out[done] = np.int32(tokens[3 * a[TOKEN_AT] + 2])
                done += 1
                a[AT], settled = tokens[3 * a[TOKEN_AT] + 1], done
                a[TOKEN_AT] += 1
                places[0], ends[0] = a[AT], next_token(a, tokens)
                continue
            k -= 1
            if k == 0:
                a[AT], settled = places[0], done
            continue
        stop, wanted = end, True  # where nothing is cut, the text is one piece
        if last >= 0:
            level = i64p(a[LEVELS] + 8 * CUT_SLOTS * k)
            keeps = level[CUT_KEEPS]
            if k == last and keeps == KEEP_ALL and a[KEEP_WORDS] != 0:
                start, done = known_words(a, level, text, start, end, out, done)
                places[k] = start
                if k == 0:
                    a[AT], settled = start, done
                if start >= end:
                    continue
            stop = next_match(a, level, text, start, end)
            wanted = keeps != KEEP_GAPS
            if stop <= start:  # a gap: up to where a match begins
                stop = start + width(text[start])
                while stop < end and next_match(a, level, text, stop, end) <= stop:
                    stop += width(text[stop])
                wanted = keeps != KEEP_MATCHES
            if a[LOOKED_AHEAD] > 64 * (stop + 65536):
                a[NEED] = -2
                return settled
        places[k] = stop
        if wanted and k < last:
            k += 1
            places[k], ends[k] = start, stop
            continue
        if wanted:
            if done + (stop - start) + 8 > room:
                a[NEED] = -1
                return settled
            done = piece(a, text, start, stop, out, done)
            if a[NEED] != 0:
                return settled
        if k == 0:
            a[AT], settled = stop, done
