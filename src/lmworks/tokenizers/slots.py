"""Positions in the arrays of int64 that kernels take (kernels.py) and compiled.py fills."""

from __future__ import annotations

import itertools

_number = itertools.count().__next__

# encode
TEXT, TEXT_SIZE, AT, OUT, OUT_ROOM, NEED = (_number() for _ in range(6))
LEVELS, NUM_LEVELS, PLACES, ENDS = (_number() for _ in range(4))
MODEL, BYTE_LEVEL, BYTE_IDS, BYTE_FALLBACK, UNK_ID, FUSE_UNK = (_number() for _ in range(6))
MERGES, MERGES_MASK, CHARACTERS, CHARACTERS_MASK = (_number() for _ in range(4))
TRIE, TRIE_MASK, TRIE_VALUES, WHOLE_WORDS, INSIDE_LINK = (_number() for _ in range(5))
LONGEST_WORD, SCORES, UNK_SCORE, FLOAT32, REACHED = (_number() for _ in range(5))
SAFE_PAIRS, SAFE_BYTES, SAFE_MASK, SAFE_ASCII, SAFE_MARK = (_number() for _ in range(5))
WORDS, WORDS_MASK, WORDS_USED, POOL, POOL_ROOM, POOL_USED = (_number() for _ in range(6))
LONG_TEXTS, LONG_ROOM, LONG_USED = (_number() for _ in range(3))
SPACE, SYMBOLS, HEAP, FOLLOWING, BEFORE = (_number() for _ in range(5))
JOIN_UNKNOWN, PIECE_DONE, KEEP_WORDS, LOOKED_AHEAD = (_number() for _ in range(4))
WORDS_GIVEN, WORDS_KNOWN = (_number() for _ in range(2))
MASKS, BYTE_PAIRS, MERGE_VALUES, QUEUE, TRIE_ROOT = (_number() for _ in range(5))
VOCABULARY, VOCABULARY_MASK, VOCABULARY_TEXTS, VOCABULARY_ENDS = (_number() for _ in range(4))
TOKENS, NUM_TOKENS, TOKEN_AT = (_number() for _ in range(3))
MANY_TEXTS, MANY_NUMBER, MANY_OUT, MANY_ROOM, MANY_DONE = (_number() for _ in range(5))
ENCODE_SLOTS = _number()

MODEL_BPE, MODEL_UNIGRAM, MODEL_WORD_PIECE = range(3)
NO_RANK = (1 << 32) - 1  # of a pair that does not merge
SCAN_LIMIT = 48  # symbols; from here on the scan loses to the heap
LONGEST_KEPT = 255  # bytes of a word that is remembered
QUEUED, QUEUE_WIDTH = 16, 5  # words that are cut before they are looked up; numbers for each
RESET_BEYOND = 100_000.0  # unigram.py says why
RUNNING_PART = 512  # bytes that are at least done at once where scores go on

# one level of cuts
CUT_ROWS, CUT_ASCII, CUT_STAGE1, CUT_STAGE2, CUT_START, CUT_END_CLASS, CUT_KEEPS = range(7)
CUT_PAIRS, CUT_SKIPS, CUT_LOOPS, CUT_EXITS, CUT_EXIT_ROWS = range(7, 12)
CUT_FOLD, CUT_FIRST, CUT_NUMBER, CUT_SLOTS = range(12, 16)
NO_MATCH = 255  # in CUT_PAIRS
KEEP_ALL, KEEP_MATCHES, KEEP_GAPS = range(3)

# find_tokens
FIND_TEXT, FIND_SIZE, FIND_FIRST, FIND_ONLY, FIND_TRIE, FIND_MASK, FIND_VALUES = range(7)
FIND_SPECIAL, FIND_ALLOW, FIND_OUT, FIND_ROOM, FIND_SLOTS = range(7, 12)

# map_characters
MAP_TEXT, MAP_SIZE, MAP_OUT, MAP_PAGES, MAP_ENTRIES, MAP_POOL, MAP_SQUEEZE = range(7)
MAP_SPACE, MAP_SPACE_SIZE, MAP_AT, MAP_DONE, MAP_SQUEEZED, MAP_ROOM = range(7, 13)
MAP_ASCII, MAP_ASCII_SIZES, MAP_SLOTS = range(13, 16)
LOOK_UP = 255  # in MAP_ASCII_SIZES
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
