"""Positions in the arrays of int64 that kernels take (kernels.py) and compiled.py fills."""

from __future__ import annotations

import itertools

_number = itertools.count().__next__

# encode
TEXT, TEXT_SIZE, AT, OUT, OUT_ROOM, NEED = (_number() for _ in range(6))
LEVELS, NUM_LEVELS, PLACES, ENDS = (_number() for _ in range(4))
MODEL, BYTE_LEVEL, BYTE_IDS, BYTE_FALLBACK, UNK_ID, FUSE_UNK = (_number() for _ in range(6))
MERGES, MERGES_MASK, CHARACTERS, CHARACTERS_MASK = (_number() for _ in range(4))
TRIE, TRIE_MASK, TRIE_VALUES, WHOLE_WORDS, INSIDE_NODE = (_number() for _ in range(5))
LONGEST_WORD, SCORES, UNK_SCORE, FLOAT32, REACHED = (_number() for _ in range(5))
SAFE_PAIRS, SAFE_BYTES, SAFE_MASK = (_number() for _ in range(3))
WORDS, WORDS_MASK, WORDS_USED, POOL, POOL_ROOM, POOL_USED = (_number() for _ in range(6))
SPACE, SYMBOLS, HEAP, FOLLOWING, BEFORE = (_number() for _ in range(5))
JOIN_UNKNOWN, PIECE_DONE, KEEP_WORDS, LOOKED_AHEAD = (_number() for _ in range(4))
MASKS, WORDS_GIVEN, WORDS_KNOWN = (_number() for _ in range(3))
TOKENS, NUM_TOKENS, TOKEN_AT = (_number() for _ in range(3))
ENCODE_SLOTS = _number()

MODEL_BPE, MODEL_UNIGRAM, MODEL_WORD_PIECE = range(3)
SCAN_LIMIT = 48  # symbols; from here on the scan loses to the heap

# one level of cuts
CUT_ROWS, CUT_ASCII, CUT_STAGE1, CUT_STAGE2, CUT_START, CUT_END_CLASS, CUT_KEEPS, CUT_SLOTS = range(
    8
)
KEEP_ALL, KEEP_MATCHES, KEEP_GAPS = range(3)

# map_characters
MAP_TEXT, MAP_SIZE, MAP_OUT, MAP_PAGES, MAP_ENTRIES, MAP_POOL, MAP_SQUEEZE = range(7)
MAP_SPACE, MAP_SPACE_SIZE, MAP_AT, MAP_DONE, MAP_SQUEEZED, MAP_ROOM, MAP_SLOTS = range(7, 14)
MAP_NEIGHBOURS, MAP_FULL = -(1 << 40), -(1 << 41)  # what stops it, beside a missing page

# count_words, beside the slots of encode that say how text is cut
(
    COUNT_TABLE, COUNT_MASK, COUNT_ENDS, COUNT_ARENA, COUNT_ARENA_ROOM, COUNT_WORDS,
    COUNT_TIMES, MORE_WORDS, WORDS_ENDS, WORDS_TIMES, WORDS_IN, PART, PART_MASK, COUNT_SLOTS,
) = range(ENCODE_SLOTS, ENCODE_SLOTS + 14)  # fmt: skip

MOST_BYTES = 4096  # of a word; a longer piece is counted in parts, or a merge would take its time

# learn_merges
(
    SYM, WORDS_LEARNT, NUM_WORDS, WORDS_DONE, PAIRS, PAIR_MASK, PAIRS_USED, NODES, NODES_ROOM,
    NODES_USED, PAIR_HEAP, HEAP_ROOM, HEAP_SIZE, ADDED, ADDED_ROOM, NUM_ADDED, RAISED, NUM_RAISED,
    OUT_LEFT, OUT_RIGHT, OUT_ROOM_MERGES, WANTED, DONE, LEAST, KEEP, BATCH, STARTED, MORE,
    TOKEN_TABLE, TOKEN_MASK, TOKEN_ENDS, TOKEN_ARENA, TOKEN_ARENA_ROOM, NUM_TOKENS_MADE, PROTECTED,
    PREFIX, PREFIX_SIZE, MOST_CHARACTERS, MODE, LEFT, RIGHT, MERGED, NUM_SYMBOLS, LEARN_SLOTS,
) = range(44)  # fmt: skip
CHEAP_BOUND = 1 << 14  # from here on what a merge may need is looked at closely
LEARN, LOOK, MERGE, DROP = range(4)  # what MODE says
