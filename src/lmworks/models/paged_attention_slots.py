"""Where the kernels of paged attention find their arguments; read by both sides of a call.

A kernel gets one array of int64: addresses (0: not given), distances between rows in numbers,
sizes, and FIRST and LAST, the parts (row of the batch, key-value head) that it works on.
"""

# Both: TABLE (B, TABLE_ROW) int32, STARTS (B,) int64.
FIRST, LAST, TABLE, TABLE_ROW, STARTS, NUM_NEW, HEADS, SIZE = range(8)

# attend: QUERIES (B, HEADS * GROUP, T, SIZE) at its strides, SCALE one float32, SCRATCH for the
# queries of a part and their scores, SCORES_ROW of them each.
# extend: SEEN positions in OUT.
GROUP, SCALE, SCRATCH, SCORES_ROW, SEEN = range(8, 13)

# attend, of a pool that is coded (see `cache_types`): CODING, the bytes of a row of the pool, and
# room for a decoded page, PAGE * SIZE float32. NEW is 0 then: the rows were written before.
CODING, ROW_BYTES, DECODED = range(13, 16)

# What every layer has of its own, side by side from TENSORS on.
# extend: POOL (pages, HEADS, PAGE, SIZE), NEW (B, HEADS, T, SIZE) at its strides, OUT (B, HEADS,
# SEEN, SIZE) or 0.
# attend: the same for keys and for values, queries, and OUT (B, T, HEADS * GROUP, SIZE).
TENSORS = 16
OUT, POOL, NEW, NEW_ROW, NEW_HEAD, NEW_STEP = range(16, 22)
VALUES_POOL, VALUES_NEW, VALUES_ROW, VALUES_HEAD, VALUES_STEP = range(22, 27)
QUERIES, QUERIES_ROW, QUERIES_HEAD, QUERIES_STEP = range(27, 31)

ARGUMENTS = 31
