# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts lmworks.tokenizers.kernel_models
# uses: lmworks.tokenizers.kernel_words lmworks.tokenizers.kernel_tables
# kernels: encode find_tokens map_characters map_longest
# kernels: insert_pairs insert_merges insert_trie find_node learn_vocabulary merged_ids rank_merges
# kernels: mark_joints learn_words
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
from lmworks.tokenizers.kernel_tables import *
from lmworks.tokenizers.kernel_words import *
from lmworks.tokenizers.slots import *


@njit(**_OPTIONS)
def token_at(text, at, size, table, mask, values):
    """(number, end) of the longest added token that begins at `at`; (-1, at) if there is none."""
    link, q, best, end = np.int64(1), at, np.int64(-1), at
    while q < size:
        link = find_child(table, mask, link, text[q])
        if link == 0:
            break
        q += 1
        if values[link >> 1] > 0:
            best, end = np.int64(values[link >> 1]) - 1, q
    return best, end


@njit(**_OPTIONS)
def next_begin(text, at, size, first, only):
    """The next place where an added token may begin; `only`: the byte that all begin with."""
    if only >= 0:
        while at + 16 <= size:
            others = others16(text, at, 0, only, 1)
            found = np.int64(trailing_zeros(~others | np.uint64(1 << 16)))
            at += found
            if found < 16:
                return at
    while at < size and first[text[at]] == 0:
        at += 1
    return at


def find_tokens(a):
    """Added tokens in a text: start, end, id of each; the longest wins, as in tokenizers.

    Writes as many as there is room for; with no room, the first one ends the search. Returns how
    many there are.
    """
    text, size, first, only = u8p(a[FIND_TEXT]), a[FIND_SIZE], u8p(a[FIND_FIRST]), a[FIND_ONLY]
    table, mask, values = u64p(a[FIND_TRIE]), np.uint64(a[FIND_MASK]), i32p(a[FIND_VALUES])
    kinds, allow = u8p(a[FIND_SPECIAL]), a[FIND_ALLOW]
    out, room = i64p(a[FIND_OUT]), a[FIND_ROOM]
    found, at = np.int64(0), np.int64(0)
    while True:
        at = next_begin(text, at, size, first, only)
        if at >= size:
            return found
        best, end = token_at(text, at, size, table, mask, values)
        if best < 0:
            at += 1
            continue
        if allow != 0 or kinds[best] == 0:  # a special token that is not allowed stays text
            if found < room:
                out[3 * found], out[3 * found + 1], out[3 * found + 2] = at, end, best
            found += 1
            if room == 0:
                return found
        at = end


@njit(**_OPTIONS)
def put_mapped(a, out, done, source, start, length):
    """Append what a character became; a space is written as its mark, repeated ones squeezed."""
    squeeze, mark, mark_size = a[MAP_SQUEEZE], u8p(a[MAP_SPACE]), a[MAP_SPACE_SIZE]
    for i in range(start, start + length):
        byte = source[i]
        if byte == 32 and squeeze != 0:
            if a[MAP_SQUEEZED] == 0:
                for k in range(mark_size):
                    out[done + k] = mark[k]
                done += mark_size
            if squeeze == 2:
                a[MAP_SQUEEZED] = 1
        else:
            a[MAP_SQUEEZED] = 0
            out[done] = byte
            done += 1
    return done


@njit(**_OPTIONS)
def map_plain(a, text, at, size, out, done):
    """Map a run of ASCII, up to four bytes for each; returns where it ended, both ways."""
    sizes, texts, squeezed = u8p(a[MAP_ASCII_SIZES]), u32p(a[MAP_ASCII]), a[MAP_SQUEEZED]
    limit, squeeze = a[MAP_ROOM] - 1024, a[MAP_SQUEEZE] == 2
    while at < size and done < limit:
        byte = text[at]
        if byte >= 0x80:
            break
        length = np.int64(sizes[byte])
        if length == LOOK_UP:
            break
        if squeeze and byte == 32:
            length *= np.int64(squeezed == 0)
            squeezed = np.int64(1)
        elif length > 0:
            squeezed = np.int64(0)
        store32(out, done, texts[byte])
        done += length
        at += 1
    a[MAP_SQUEEZED] = squeezed
    return at, done


def map_characters(a):
    """Each character replaced by its text; returns the size, or what stopped it.

    -1 - page: that page of the map is not filled; MAP_NEIGHBOURS: a character that needs its
    neighbours; MAP_FULL: no room. Progress is kept, so that the call can be made again.
    """
    text, size, out = u8p(a[MAP_TEXT]), a[MAP_SIZE], u8p(a[MAP_OUT])
    pages, entries, pool = i32p(a[MAP_PAGES]), u32p(a[MAP_ENTRIES]), u8p(a[MAP_POOL])
    at, done = a[MAP_AT], a[MAP_DONE]
    while True:
        at, done = map_plain(a, text, at, size, out, done)
        if at >= size:
            return done
        a[MAP_AT], a[MAP_DONE] = at, done
        if done + 1024 > a[MAP_ROOM]:
            return MAP_FULL
        code, n = code_point(text, at)
        page = pages[code >> 7]
        if page < 0:
            return -1 - (code >> 7)
        entry = entries[(np.int64(page) << 7) + (code & 127)]
        length = np.int64(entry & np.uint32(0xFF))
        if length == 255:
            return MAP_NEIGHBOURS
        done = put_mapped(a, out, done, pool, np.int64(entry >> np.uint32(8)), length)
        at += n


@njit(**_OPTIONS)
def longest_entry(units, num_units, text, at, size):
    """(bytes, value) of the longest entry of a double array that begins at `at`, or (0, 0)."""
    place = darts_offset(units[0]) if num_units > 0 else np.int64(0)
    q, length, value = at, np.int64(0), np.int64(0)
    while q < size:
        place ^= np.int64(text[q])
        if text[q] == 0 or place >= num_units:
            break
        unit = units[place]
        if unit & np.uint32(0x800000FF) != text[q]:
            break
        q += 1
        place ^= darts_offset(unit)
        if place >= num_units:
            break
        if unit >> np.uint32(8) & np.uint32(1):
            length, value = q - at, np.int64(units[place] & np.uint32(0x7FFFFFFF))
    return length, value


@njit(**_OPTIONS)
def darts_offset(unit):
    return np.int64(unit >> np.uint32(10)) << np.int64((unit & np.uint32(0x200)) >> np.uint32(6))


def map_longest(a):
    """Every longest entry of a SentencePiece map replaced; as `map_characters` otherwise."""
    text, size, out = u8p(a[MAP_TEXT]), a[MAP_SIZE], u8p(a[MAP_OUT])
    units, num_units, pool = u32p(a[MAP_PAGES]), a[MAP_ENTRIES], u8p(a[MAP_POOL])
    at, done = a[MAP_AT], a[MAP_DONE]
    while True:
        first = at
        at, done = map_plain(a, text, at, size, out, done)
        if at > first and at < size and text[at] >= 0x80 and text[at - 1] != 32:
            at, done = at - 1, done - 1  # an entry may begin with the letter before an accent
        if at >= size:
            return done
        a[MAP_AT], a[MAP_DONE] = at, done
        if done + 1024 > a[MAP_ROOM]:
            return MAP_FULL
        length, value = longest_entry(units, num_units, text, at, size)
        if length > 0:
            end = value
            while pool[end] != 0:
                end += 1
            if end - value > 300:
                return MAP_NEIGHBOURS
            done = put_mapped(a, out, done, pool, value, end - value)
            at += length
        else:
            n = width(text[at])
            done = put_mapped(a, out, done, text, at, n)
            at += n


@njit(**_OPTIONS)
def next_token(a, tokens):
    """Where the next added token begins, or the text's end."""
    return tokens[3 * a[TOKEN_AT]] if a[TOKEN_AT] < a[NUM_TOKENS] else a[TEXT_SIZE]


@njit(**_OPTIONS)
def encode_text(a):
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
            if k == last and keeps != KEEP_GAPS and a[KEEP_WORDS] != 0:
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


@njit(**_OPTIONS)
def encode_many(a):
    """Ids of many texts, one behind the other; returns how many texts are done, NEED says why.

    MANY_TEXTS: address, size, address of added tokens, their number, and for the kernel to fill:
    where the ids end.
    """
    jobs, out, room, done = i64p(a[MANY_TEXTS]), a[OUT], a[OUT_ROOM], a[MANY_DONE]
    while done < a[MANY_NUMBER]:
        job = 5 * done
        begin = jobs[job - 1] if done > 0 else np.int64(0)
        a[TEXT], a[TEXT_SIZE], a[AT] = jobs[job], jobs[job + 1], 0
        a[TOKENS], a[NUM_TOKENS], a[TOKEN_AT] = jobs[job + 2], jobs[job + 3], 0
        a[OUT], a[OUT_ROOM] = a[MANY_OUT] + 4 * begin, a[MANY_ROOM] - begin
        count = encode_text(a)
        if a[NEED] != 0:
            break
        jobs[job + 4] = begin + count
        done += 1
    a[OUT], a[OUT_ROOM], a[MANY_DONE] = out, room, done
    return done


def encode(a):
    """Ids of one text, or of MANY_NUMBER of them: `encode_text`, `encode_many`."""
    return encode_many(a) if a[MANY_NUMBER] > 0 else encode_text(a)
