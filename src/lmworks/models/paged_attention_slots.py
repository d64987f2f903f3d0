"""Where the kernels of paged attention find their arguments; read by both sides of a call.

A kernel gets one array of int64: addresses (0: not given), distances between rows in numbers,
sizes, and FIRST and LAST, the parts (row of the batch, key-value head) that it works on.
"""

# extend: POOL (pages, HEADS, PAGE, SIZE), NEW (B, HEADS, T, SIZE) at its strides, OUT (B, HEADS,
# SEEN, SIZE) or 0. TABLE (B, TABLE_ROW) int32, STARTS (B,) int64.
FIRST, LAST, TABLE, TABLE_ROW, STARTS, NUM_NEW, HEADS, SIZE = range(8)
POOL, NEW, NEW_ROW, NEW_HEAD, NEW_STEP, OUT, SEEN = range(8, 15)

# attend: the above for the keys, and for the values; QUERIES (B, HEADS * GROUP, T, SIZE) at its
# strides, OUT (B, T, HEADS * GROUP, SIZE), SCALE one float32, SCRATCH for the queries of a part
# and their scores, SCORES_ROW of them each.
VALUES_POOL, VALUES_NEW, VALUES_ROW, VALUES_HEAD, VALUES_STEP = range(15, 20)
QUERIES, QUERIES_ROW, QUERIES_HEAD, QUERIES_STEP, GROUP = range(20, 25)
SCALE, SCRATCH, SCORES_ROW = range(25, 28)

ARGUMENTS = 28
