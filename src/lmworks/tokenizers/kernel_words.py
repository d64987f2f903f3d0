"""Words that are remembered, compiled: where the time of encoding goes.

A word of up to 15 bytes is its own key in a table; of a longer one a hash is the key, and its bytes
lie aside to be compared. What is kept are its ids. Long pieces are cut where no token reaches
across, and the parts are words too.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_models import *
from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS
from lmworks.tokenizers.slots import *


@njit(**_OPTIONS)
def is_mark(text, at, end):
    """Whether U+2581, SentencePiece's space, stands there."""
    return at + 3 <= end and text[at] == 0xE2 and text[at + 1] == 0x96 and text[at + 2] == 0x81


@njit(**_OPTIONS)
def reaches_across(text, at, before, code, pairs, coarse, mask):
    """Whether a token may hold the place `at`, between the characters `before` and `code`."""
    h = (mix(np.uint64(before), np.uint64(code)) >> np.uint64(20)) & mask
    if pairs[h >> np.uint64(3)] >> np.uint8(h & np.uint64(7)) & np.uint8(1):
        return True
    h = np.uint64(text[at - 1]) << np.uint64(8) | np.uint64(text[at])
    return coarse[h >> np.uint64(3)] >> np.uint8(h & np.uint64(7)) & np.uint8(1) != 0


@njit(**_OPTIONS)
def safe_end(a, text, start, end):
    """A place after `start` that no token reaches across; `end` if there is none.

    Not the first such place: letters are passed over, since words are what comes again.
    """
    beside, mark = u8p(a[SAFE_ASCII]), u8p(a[SAFE_MARK])
    at = start + 3 if is_mark(text, start, end) else start
    run = np.int64(0)
    if at + 16 < end:
        run = np.int64(trailing_zeros(others16(text, at, 0x20, 97, 26)))
    if run > 0:
        at += run
        before = np.int64(text[at - 1])
        if text[at] < 0x80 and beside[before << 7 | text[at]] == 0:
            return at
        if is_mark(text, at, end) and mark[before] == 0:
            return at
    else:
        before, n = code_point(text, start)
        at = start + n
    return safe_place(a, text, before, at, end)


@njit(**_OPTIONS)
def safe_place(a, text, before, at, end):
    """The first place from `at` on that no token reaches across; `before`: the character there."""
    beside = u8p(a[SAFE_ASCII])
    pairs, coarse, mask = u8p(a[SAFE_PAIRS]), u8p(a[SAFE_BYTES]), np.uint64(a[SAFE_MASK])
    while at < end:
        code, n = code_point(text, at)
        if before < 0x80 and code < 0x80:
            if beside[before << 7 | code] == 0:
                return at
        else:
            if not reaches_across(text, at, before, code, pairs, coarse, mask):
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
    out[done + 1] = np.int32(low >> np.uint64(21) & np.uint64(0x1FFFFF))
    out[done + 2] = np.int32(low >> np.uint64(42) & np.uint64(0x1FFFFF))
    if count > 3:
        out[done + 3] = np.int32(high & np.uint64(0x1FFFFF))
        out[done + 4] = np.int32(high >> np.uint64(21) & np.uint64(0x1FFFFF))
    return done + count


@njit(**_OPTIONS)
def new_word(a, low, high, ids):
    """An entry for a word that is not in the table, which is emptied first if it is full."""
    table, mask = u64p(a[WORDS]), np.uint64(a[WORDS_MASK])
    full = 3 * a[WORDS_USED] > 2 * a[WORDS_MASK] or a[POOL_USED] + ids > a[POOL_ROOM]
    if full or a[LONG_USED] + LONGEST_KEPT + 8 > a[LONG_ROOM]:
        given = u64p(a[WORDS_GIVEN])
        for i in range(4 * (a[WORDS_MASK] + 1)):
            table[i] = given[i] if a[WORDS_GIVEN] != 0 else np.uint64(0)
        a[WORDS_USED] = a[WORDS_KNOWN]
        a[POOL_USED] = a[LONG_USED] = 0
    at = word_hash(low, high) & mask
    while table[4 * np.int64(at) + 1] != 0:
        at = (at + np.uint64(1)) & mask
    a[WORDS_USED] += 1
    entry = 4 * np.int64(at)
    table[entry], table[entry + 1] = low, high
    return entry


@njit(**_OPTIONS)
def word(a, text, start, end, limit, out, done, part):
    """Append the ids of a word of at most 15 bytes; `limit`: how far reading is safe.

    Parts of pieces are kept apart: a piece that is a token may skip its merges, a part may not.
    """
    size = end - start
    table, mask, symbols = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), i32p(a[SYMBOLS])
    low, high = word_key(text, start, size, limit)
    high |= np.uint64(part) << np.uint64(63)
    at = word_hash(low, high) & mask
    entry = np.int64(4 * at)
    while table[entry + 1] != 0:
        if table[entry + 1] == high and table[entry] == low:
            return recall(a, entry, out, done)
        at = (at + np.uint64(1)) & mask
        entry = np.int64(4 * at)
    count = encode_piece(a, text, start, end, symbols, part)
    remember(a, new_word(a, low, high, count), symbols, count)
    return put(a, out, done, symbols, count)


@njit(**_OPTIONS)
def long_kind(size, part):
    """The upper 16 bits of a long word's second number; the rest says where its bytes lie."""
    return np.uint64(0x4000 | part << 15 | size) << np.uint64(48)


@njit(**_OPTIONS)
def find_long(a, text, start, size, low, kind):
    """The entry of a long word, or -1."""
    table, mask, kept = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), u8p(a[LONG_TEXTS])
    at = word_hash(low, kind) & mask
    entry = np.int64(4 * at)
    while table[entry + 1] != 0:
        if table[entry] == low and table[entry + 1] & np.uint64(0xFFFF000000000000) == kind:
            place = np.int64(table[entry + 1] & np.uint64(0xFFFFFFFFFFFF))
            if same_bytes(text, start, kept, place, size):
                return entry
        at = (at + np.uint64(1)) & mask
        entry = np.int64(4 * at)
    return np.int64(-1)


@njit(**_OPTIONS)
def keep_long(a, text, start, size, low, kind, ids, count):
    """Remember a long word: its bytes go aside."""
    entry = new_word(a, low, kind, count)
    kept, place = u8p(a[LONG_TEXTS]), a[LONG_USED]
    u64p(a[WORDS])[entry + 1] = kind | np.uint64(place)
    for i in range(size):
        kept[place + i] = text[start + i]
    a[LONG_USED] = place + size
    remember(a, entry, ids, count)


@njit(**_OPTIONS)
def long_part(a, text, start, end, out, done):
    """Append the ids of a part of 16 to LONGEST_KEPT bytes."""
    size = end - start
    low, kind = text_hash(text, start, end, a[TEXT_SIZE]), long_kind(size, 1)
    entry = find_long(a, text, start, size, low, kind)
    if entry >= 0:
        return recall(a, entry, out, done)
    symbols = i32p(a[SYMBOLS])
    count = encode_piece(a, text, start, end, symbols, 1)
    keep_long(a, text, start, size, low, kind, symbols, count)
    return put(a, out, done, symbols, count)


@njit(**_OPTIONS)
def whole_piece(a, text, start, end, out, done, part):
    """Append the ids of a piece that is not remembered."""
    if end - start > a[SPACE]:
        a[NEED] = end - start
        return done
    symbols = i32p(a[SYMBOLS])
    return put(a, out, done, symbols, encode_piece(a, text, start, end, symbols, part))


@njit(**_OPTIONS)
def running(a, text, start, end, out, done):
    """Append the ids of a long piece of a model whose scores go on from part to part."""
    reached = f64p(a[REACHED])
    while start < end and a[NEED] == 0:
        stop = min(start + RUNNING_PART, end)
        while stop < end and text[stop] & np.uint8(0xC0) == np.uint8(0x80):
            stop += 1
        if stop < end:
            before, n = code_point(text, stop)
            stop = safe_place(a, text, before, stop + n, end)
        done = whole_piece(a, text, start, stop, out, done, 1)
        reached[0] = reached[1]
        start = stop
    reached[0] = 0.0
    return done


@njit(**_OPTIONS)
def known_parts(a, text, start, end, out, done):
    """Append the ids of parts that are remembered, as long as there are such.

    The same as `safe_end` and `word`, with everything in registers.
    Returns: where it stopped, and how many ids there are.
    """
    beside, mark = u8p(a[SAFE_ASCII]), u8p(a[SAFE_MARK])
    pairs, coarse, bits = u8p(a[SAFE_PAIRS]), u8p(a[SAFE_BYTES]), np.uint64(a[SAFE_MASK])
    table, mask, masks = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), u64p(a[MASKS])
    limit, room = end - 32, a[OUT_ROOM] - 24
    while start <= limit and done < room:
        at = start + 3 if is_mark(text, start, end) else start
        stop = at + np.int64(trailing_zeros(others16(text, at, 0x20, 97, 26)))
        if stop == at:
            before, n = code_point(text, at)
            stop = at + n
        else:
            before = np.int64(text[stop - 1])
        while stop - start <= 15:
            code, n = code_point(text, stop)
            if before < 0x80 and code < 0x80:
                if beside[before << 7 | code] == 0:
                    break
            elif code == 0x2581 and before < 0x80:
                if mark[before] == 0:
                    break
            elif not reaches_across(text, stop, before, code, pairs, coarse, bits):
                break
            before = code
            stop += n
        size = stop - start
        if size > 15:
            break
        low = load64(text, start) & masks[2 * size]
        high = load64(text, start + 8) & masks[2 * size + 1]
        high |= np.uint64(size) << np.uint64(56) | np.uint64(1) << np.uint64(63)
        slot = word_hash(low, high) & mask
        entry = np.int64(4 * slot)
        while table[entry + 1] != 0 and (table[entry + 1] != high or table[entry] != low):
            slot = (slot + np.uint64(1)) & mask
            entry = np.int64(4 * slot)
        if table[entry + 1] == 0:
            break
        done = recall(a, entry, out, done)
        start = stop
    return start, done


@njit(**_OPTIONS)
def parted(a, text, start, end, out, done):
    """Append the ids of a long piece: cut where no token reaches across, then part by part."""
    if a[MODEL] == MODEL_UNIGRAM:
        return running(a, text, start, end, out, done)
    first = start
    while start < end and a[NEED] == 0:
        start, done = known_parts(a, text, start, end, out, done)
        if start >= end:
            break
        stop = safe_end(a, text, start, end)
        part = 0 if start == first and stop == end else 1
        if stop - start <= 15:
            done = word(a, text, start, stop, a[TEXT_SIZE], out, done, part)
        elif stop - start <= LONGEST_KEPT and part != 0:
            done = long_part(a, text, start, stop, out, done)
        else:
            done = whole_piece(a, text, start, stop, out, done, part)
        start = stop
    return done


@njit(**_OPTIONS)
def long_word(a, text, start, end, out, done):
    """Append the ids of a piece of 16 to LONGEST_KEPT bytes."""
    size = end - start
    low, kind = text_hash(text, start, end, a[TEXT_SIZE]), long_kind(size, 0)
    entry = find_long(a, text, start, size, low, kind)
    if entry >= 0:
        return recall(a, entry, out, done)
    first = done
    if a[SAFE_PAIRS] != 0:
        done = parted(a, text, start, end, out, done)
    else:
        done = whole_piece(a, text, start, end, out, done, 0)
    keep_long(a, text, start, size, low, kind, i32p(a[OUT] + 4 * first), done - first)
    return done


@njit(**_OPTIONS)
def piece(a, text, start, end, out, done):
    """Append the ids of one piece."""
    a[PIECE_DONE] = done
    if a[KEEP_WORDS] != 0 and end - start <= LONGEST_KEPT:
        if end - start <= 15:
            return word(a, text, start, end, a[TEXT_SIZE], out, done, 0)
        return long_word(a, text, start, end, out, done)
    if a[SAFE_PAIRS] != 0:
        return parted(a, text, start, end, out, done)
    return whole_piece(a, text, start, end, out, done, 0)


@njit(**_OPTIONS)
def queue_words(a, level, text, start, end):
    """Cut up to QUEUED words and find their places in the table; nothing is looked up yet.

    The same as `next_match`, with everything in registers.
    Returns: where it stopped, and how many words there are; none where `encode_text` must look.
    """
    rows, ascii_class, stage1, stage2, first, last_class = (
        u32p(level[CUT_ROWS]), u8p(level[CUT_ASCII]), u16p(level[CUT_STAGE1]),
        u8p(level[CUT_STAGE2]), np.uint32(level[CUT_START]), np.uint32(level[CUT_END_CLASS]),
    )  # fmt: skip
    pairs, skips, runs, exits, exit_rows = (
        u8p(level[CUT_PAIRS]), i64p(level[CUT_SKIPS]), i64p(level[CUT_LOOPS]),
        u8p(level[CUT_EXITS]), u32p(level[CUT_EXIT_ROWS]),
    )  # fmt: skip
    fold, least, number = level[CUT_FOLD], level[CUT_FIRST], level[CUT_NUMBER]
    table, mask, masks = u64p(a[WORDS]), np.uint64(a[WORDS_MASK]), u64p(a[MASKS])
    queue, count, drops = u64p(a[QUEUE]), np.int64(0), level[CUT_KEEPS] == KEEP_MATCHES
    limit = min(a[TEXT_SIZE] - 24, end - 1)
    while start <= limit and count < QUEUED:
        size, b = np.int64(0), np.int64(text[start])
        if (text[start] | text[start + 1]) < 0x80:
            kind = np.int64(pairs[b << 7 | np.int64(text[start + 1])])
            if kind == NO_MATCH:
                if not drops:
                    break
                start += 1
                continue
            skip = skips[kind]
            others = others16(text, start, fold, least, number) >> np.uint64(skip)
            run = np.int64(trailing_zeros(others)) & runs[kind]
            kind = 2 * kind + (run > 0)
            size = skip + run
            leaves = exits[kind << 8 | np.int64(text[start + size])]
            if leaves != 1 or size > 15 or start + size >= end:
                if leaves == 2 and size <= 15 and start + size < end:
                    code, n = code_point(text, start + size)
                    c = stage2[(np.int64(stage1[code >> 7]) << 7) + (code & 127)]
                    if rows[exit_rows[kind] + np.uint32(c)] & ~np.uint32(6) != np.uint32(1):
                        size = np.int64(0)
                else:
                    size = np.int64(0)
        if size == 0:
            row, q, last = first, start, np.int64(-1)
            while q < end:
                b = text[q]
                if b < 0x80:
                    c, n = ascii_class[b], 1
                else:
                    code, n = code_point(text, q)
                    c = stage2[(np.int64(stage1[code >> 7]) << 7) + (code & 127)]
                step = rows[row + np.uint32(c)]
                if step & np.uint32(1):
                    last = q
                row = step >> np.uint32(3)
                if row == 0:
                    break
                q += n
                if step & np.uint32(6) and q < end and text[q] < 0x80:
                    q = skip_run(text, q, end, step & np.uint32(6))
            if row != 0 and rows[row + last_class] & np.uint32(1):
                last = q
            size = last - start
            if size <= 0 and drops and q - start <= 64:
                start += width(text[start])
                continue
            if size <= 0 or size > LONGEST_KEPT or q - last > 64:
                break
        if size <= 15:
            low = load64(text, start) & masks[2 * size]
            high = load64(text, start + 8) & masks[2 * size + 1]
            high |= np.uint64(size) << np.uint64(56)
        else:
            low, high = text_hash(text, start, start + size, a[TEXT_SIZE]), long_kind(size, 0)
        slot = word_hash(low, high) & mask
        prefetch(table, np.int64(4 * slot))
        place = QUEUE_WIDTH * count
        queue[place], queue[place + 1], queue[place + 2] = low, high, slot
        queue[place + 3], queue[place + 4] = np.uint64(start), np.uint64(size)
        count += 1
        start += size
    return start, count


@njit(**_OPTIONS)
def known_words(a, level, text, start, end, out, done):
    """Append the ids of words, as far as they can be queued.

    Returns: where it stopped, and how many ids there are.
    """
    table, queue = u64p(a[WORDS]), u64p(a[QUEUE])
    room = a[OUT_ROOM] - 24
    while True:
        stop, count = queue_words(a, level, text, start, end)
        if count == 0 or done + stop - start > room:
            return start if count else stop, done
        for i in range(count):
            place = QUEUE_WIDTH * i
            low, high, slot = queue[place], queue[place + 1], queue[place + 2]
            entry = np.int64(4 * slot)
            if table[entry + 1] == high and table[entry] == low:
                low, high = table[entry + 2], table[entry + 3]
                if high >> np.uint64(56) <= np.uint64(3):
                    out[done] = np.int32(low & np.uint64(0x1FFFFF))
                    out[done + 1] = np.int32(low >> np.uint64(21) & np.uint64(0x1FFFFF))
                    out[done + 2] = np.int32(low >> np.uint64(42) & np.uint64(0x1FFFFF))
                    done += np.int64(high >> np.uint64(56))
                    continue
            begin, size = np.int64(queue[place + 3]), np.int64(queue[place + 4])
            a[PIECE_DONE] = done
            if size <= 15:
                done = word(a, text, begin, begin + size, a[TEXT_SIZE], out, done, 0)
            else:
                done = long_word(a, text, begin, begin + size, out, done)
        start = stop
