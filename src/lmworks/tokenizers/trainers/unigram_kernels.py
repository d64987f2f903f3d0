# uses: lmworks.tokenizers.slots lmworks.tokenizers.kernel_parts
# kernels: substrings fill_edges expected best_counts losses keep_edges
"""Seeds and lattices of the Unigram trainer, compiled. unigram.py is the readable way, the oracle.

A lattice is a row of edges: for each character of a word, in order, the pieces that begin there,
the shortest first. An edge is the piece's id, and its length in the upper eight bits; `degrees`
says how many edges a character has. compiled_unigram.py owns all arrays.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from lmworks.tokenizers.kernel_parts import *
from lmworks.tokenizers.kernel_parts import _OPTIONS

ID = (1 << 24) - 1
SMALL, LIFT = 2.0**-300, 2.0**300
LOG_LIFT = 300 * math.log(2.0)
NEVER = -1.0e300


@njit(**_OPTIONS)
def shared(symbols, rests, one, other, most):
    """How many characters two places have in common, up to the end of a word and to `most`."""
    end = min(min(rests[one], rests[other]), most)
    size = np.int64(0)
    while size < end and symbols[one + size] == symbols[other + size]:
        size += 1
    return size


def substrings(a):
    """Substrings that no extension occurs as often as: intervals of sorted suffixes.

    Those of at least two characters; the longer before its beginnings.
    a: 0 symbols, 1 characters to the word's end, 2 sorted places, 3 number of places, 4 longest
    piece, 5 least count, 6 counts of the sorted places added up, 7 depths on the way, 8 where they
    begin; out: 9 first, 10 last, 11 length, 12 count, 13 room. Returns: how many there are.
    """
    symbols, rests, order, size, longest = i32p(a[0]), i32p(a[1]), i32p(a[2]), a[3], a[4]
    total, depths, begins = i64p(a[6]), i64p(a[7]), i64p(a[8])
    firsts, lasts, lengths, counts = i32p(a[9]), i32p(a[10]), u8p(a[11]), i64p(a[12])
    room, found, top, before = a[13], np.int64(0), np.int64(0), np.int64(0)
    depths[0], begins[0] = 0, 0
    for place in range(1, size + 1):
        common = np.int64(0)
        if place < size:
            common = shared(symbols, rests, order[place - 1], order[place], longest + 1)
        rest = np.int64(rests[order[place - 1]])
        begin, depth = np.int64(place - 1), np.int64(0)
        if rest > max(before, common):  # no other word ends like this one
            depth = rest
        before = common
        while True:
            if depth > 0:
                count = total[place] - total[begin]
                if 2 <= depth <= longest and count >= a[5]:
                    if found < room:
                        firsts[found], lasts[found] = begin, place - 1
                        lengths[found], counts[found] = depth, count
                    found += 1
            if common >= depths[top]:
                break
            begin, depth = begins[top], depths[top]
            top -= 1
        if common > depths[top]:
            top += 1
            depths[top], begins[top] = common, begin
    return found


def fill_edges(a):
    """Edges from the places of each piece; longer pieces come before their beginnings.

    a: 0 sorted places, 1 pieces, 2 first, 3 last, 4 length, 5 id (-1: left out), 6 symbols, 7
    number of places, 8 where the edges of each place end; out: 9 edges, or 0: 10 degrees, counted.
    """
    order, firsts, lasts, lengths, ids = i32p(a[0]), i32p(a[2]), i32p(a[3]), u8p(a[4]), i32p(a[5])
    symbols, ends, edges, degrees = i32p(a[6]), i64p(a[8]), u32p(a[9]), u8p(a[10])
    for piece in range(a[1]):
        if ids[piece] < 0:
            continue
        edge = np.uint32(ids[piece]) | np.uint32(lengths[piece]) << np.uint32(24)
        for place in range(firsts[piece], lasts[piece] + 1):
            at = order[place]
            if a[9] == 0:
                degrees[at] += np.uint8(1)
            else:
                ends[at] -= 1
                edges[ends[at]] = edge
    for at in range(a[7]):
        if a[9] == 0:
            degrees[at] += np.uint8(1)
        else:
            ends[at] -= 1
            edges[ends[at]] = np.uint32(symbols[at]) | np.uint32(1 << 24)
    return 0


@njit(**_OPTIONS)
def lifted(values, start, end):
    """Multiply by LIFT as long as all are small; how often."""
    times = np.int64(0)
    while True:
        most = 0.0
        for i in range(start, end + 1):
            most = max(most, values[i])
        if most >= SMALL or most == 0.0:
            return times
        for i in range(start, end + 1):
            values[i] *= LIFT
        times += 1


def expected(a):
    """How often each piece is expected in some words: forward, then backward.

    Probabilities, not their logarithms; where all within reach get small they are lifted by a
    power of two, and `lifts` says how often.
    a: 0 edges, 1 degrees, 2 where words start, 3 where their edges do, 4 counts, 5 first word, 6
    last; 7 probabilities, 8 longest piece, 9 and 10 room for a word, 11 lifts; out: 12 expected,
    13 log-likelihood.
    """
    edges, degrees, starts, word_edges = u32p(a[0]), u8p(a[1]), i64p(a[2]), i64p(a[3])
    counts, probability, longest = i64p(a[4]), f64p(a[7]), a[8]
    before, after, lifts = f64p(a[9]), f64p(a[10]), i64p(a[11])
    out, likelihood = f64p(a[12]), 0.0
    for word in range(a[5], a[6]):
        base, e = starts[word], word_edges[word]
        size = starts[word + 1] - base
        for i in range(size + 1):
            before[i] = 0.0
        before[0] = 1.0
        up = np.int64(0)
        for i in range(size):
            if before[i] < SMALL:
                up += lifted(before, i, min(size, i + longest))
            lifts[i] = up
            reached = before[i]
            for _ in range(degrees[base + i]):
                edge = np.int64(edges[e])
                before[i + (edge >> 24)] += reached * probability[edge & ID]
                e += 1
        up += lifted(before, size, size)
        total = before[size]
        likelihood += counts[word] * (math.log(total) - up * LOG_LIFT)
        share = counts[word] / total
        after[size] = 1.0
        down = np.int64(0)
        for i in range(size - 1, -1, -1):
            reached, lift = before[i] * share, lifts[i] + down - up
            while lift < 0:
                reached *= LIFT
                lift += 1
            while lift > 0:
                reached *= SMALL
                lift -= 1
            degree = np.int64(degrees[base + i])
            e -= degree
            rest = 0.0
            for k in range(e, e + degree):
                edge = np.int64(edges[k])
                path = probability[edge & ID] * after[i + (edge >> 24)]
                rest += path
                out[edge & ID] += reached * path
            after[i] = rest
            if rest < SMALL:
                down += lifted(after, i, min(size, i + longest))
    f64p(a[13])[0] = likelihood
    return 0


def best_counts(a):
    """How often each piece is on the best paths of some words.

    a: 0 to 6 as `expected`; 7 scores, 8 and 9 room for a word; out: 10 counts of the pieces.
    """
    edges, degrees, starts, word_edges = u32p(a[0]), u8p(a[1]), i64p(a[2]), i64p(a[3])
    counts, scores, best, steps, out = i64p(a[4]), f64p(a[7]), f64p(a[8]), u32p(a[9]), i64p(a[10])
    for word in range(a[5], a[6]):
        base, e = starts[word], word_edges[word]
        size = starts[word + 1] - base
        for i in range(1, size + 1):
            best[i] = NEVER
        best[0] = 0.0
        for i in range(size):
            reached = best[i]
            for _ in range(degrees[base + i]):
                edge = np.int64(edges[e])
                end, score = i + (edge >> 24), reached + scores[edge & ID]
                if score > best[end]:
                    best[end], steps[end] = score, edge
                e += 1
        at = size
        while at > 0:
            edge = np.int64(steps[at])
            out[edge & ID] += counts[word]
            at -= edge >> 24
    return 0


def losses(a):
    """What words lose with each of some pieces, that is, with its second best cut instead of it.

    a: 0 edges, 1 degrees, 2 where each piece stands, 3 where the edges from there begin, 4 lengths,
    5 first piece, 6 last; 7 scores, 8 counts on best paths, 9 and 10 room; out: 11 losses.
    """
    edges, degrees, homes, home_edges = u32p(a[0]), u8p(a[1]), i32p(a[2]), i64p(a[3])
    lengths, scores, counts = i64p(a[4]), f64p(a[7]), i64p(a[8])
    best, steps, out, total = f64p(a[9]), u32p(a[10]), f64p(a[11]), np.int64(0)
    for piece in range(a[12]):
        total += counts[piece]
    for piece in range(a[5], a[6]):
        size, base, e = lengths[piece], np.int64(homes[piece]), home_edges[piece]
        out[piece] = np.inf
        if size == 1:
            continue
        for i in range(1, size + 1):
            best[i] = NEVER
        best[0] = 0.0
        for i in range(size):
            reached = best[i]
            for _ in range(degrees[base + i]):
                edge = np.int64(edges[e])
                end = i + (edge >> 24)
                if end <= size and edge & ID != piece:
                    score = reached + scores[edge & ID]
                    if score > best[end]:
                        best[end], steps[end] = score, edge
                e += 1
        count = counts[piece]
        if count == 0:
            out[piece] = -np.inf if best[size] > scores[piece] else 0.0
            continue
        others, at = np.int64(0), size
        while at > 0:
            others += 1
            at -= np.int64(steps[at]) >> 24
        more = math.log(np.float64(total + count * (others - 1)))
        without, at = 0.0, size
        while at > 0:
            edge = np.int64(steps[at])
            without += math.log(np.float64(counts[edge & ID] + count)) - more
            at -= edge >> 24
        own = math.log(np.float64(count)) - math.log(np.float64(total))
        out[piece] = count * (own - without)
    return 0


def keep_edges(a):
    """Drop edges of some words, in place, and give the others their new ids.

    a: 0 edges, 1 degrees, 2 where words start, 3 where their edges do, 4 first word, 5 last; 6 new
    ids (-1: dropped), 7 where each piece stands, by new id; out: 8 where the edges from there
    begin.
    """
    edges, degrees, starts, word_edges = u32p(a[0]), u8p(a[1]), i64p(a[2]), i64p(a[3])
    new_ids, homes, home_edges = i32p(a[6]), i32p(a[7]), i64p(a[8])
    e = word_edges[a[4]]
    done = e
    for word in range(a[4], a[5]):
        word_edges[word] = done
        for at in range(starts[word], starts[word + 1]):
            begin = done
            for _ in range(degrees[at]):
                edge = edges[e]
                piece = np.int64(new_ids[np.int64(edge) & ID])
                if piece >= 0:
                    edges[done] = edge & ~np.uint32(ID) | np.uint32(piece)
                    if homes[piece] == at:
                        home_edges[piece] = begin
                    done += 1
                e += 1
            degrees[at] = np.uint8(done - begin)
    return 0
