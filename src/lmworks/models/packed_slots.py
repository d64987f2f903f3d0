"""How packed matrices and the numbers that meet them lie in memory; read by both sides of a call.

A matrix, in tiles of 16 rows and blocks of 32 columns: a block of a tile is 4 words (two 4-bit
codes to the byte) or 8 words (8-bit codes plus 128) of 16 times 4 bytes. Word j holds for each of
the 16 rows columns 8j to 8j + 3 in the low halves and 8j + 4 to 8j + 7 in the high ones, or columns
4j to 4j + 3. Scales and offsets are vectors of 16 rows.

Activations, N rows: a record for each block and row, (blocks, N), see RECORD_BYTES.
"""

TILE = 16  # rows of a matrix
BLOCK = 32  # columns
MOST_AT_ONCE = 16  # activations that a code meets once it is read

# Kinds of matrices: float32 as they are, and those whose codes are 4 or 8 bits, with one scale for
# 32 columns or two (HALVES), with offsets or with codes that count from -8 (CENTRED).
NONE, FLOAT = 0, 1
NIBBLES, NIBBLES_HALVES, CENTRED, CENTRED_HALVES, BYTES, BYTES_HALVES, BYTES_OFFSETS = range(2, 9)

# A record where bytes can be multiplied: the digits of 32 numbers, most significant first, then
# numbers of 4 bytes. SUM: of the block's numbers in steps, float32; EIGHTS: 8 times that, int32;
# HIGH, LOW: 128 times that of their first two digits, of their last. Each for the first 16, the
# last 16, and all 32. Elsewhere: the 32 numbers as float32, then FLOAT_SUM.
RECORD_BYTES = 192
DIGITS = 3
SUM, EIGHTS, HIGH, LOW = 96, 112, 128, 144
FLOAT_SUM = 128
# The largest number of a row is so many steps: the most that its first digit can hold, 127.4, and
# 32 of which, times 8, do not reach 2^31.
STEPS = 8350000.0

# The kernel `product` gets an array of int64: OUT gets the tiles FIRST to LAST of MATRIX times each
# of COUNT rows of X (X_ROW bytes apart) or, of a packed matrix, of their RECORDS; or has that added
# (ADDS). OUT_ROW float32 from row to row of OUT, room for whole tiles. SCRATCH: MOST_AT_ONCE * TILE
# float32 of the caller's own.
MATRIX, RECORDS, STEP_SIZES, X, X_ROW, COUNT, OUT, OUT_ROW, FIRST, LAST, SCRATCH = range(11)
# `records`: the rows FIRST to LAST of X, COLUMNS wide, become RECORDS and STEP_SIZES.
WIDTH = 11
# `values`: OUT gets OUT_ROWS rows of weights, of which the tiles FIRST to LAST are made; it begins
# SKIPPED tiles into the matrix.
SKIPPED, OUT_ROWS = 12, 13
ADDS = 14
ARGUMENTS = 16

# A matrix is eight int64: its kind, rows, columns and the addresses of its parts (0: none). A
# matrix of float32 has its first weight at CODES.
KIND, ROWS, COLUMNS, CODES, SCALES, OFFSETS, BIAS = range(7)
MATRIX_SLOTS = 8
