"""Where the kernels of the recurrences find their arguments; read by both sides of a call.

A kernel gets one array of int64: addresses (0: not given), distances between rows in numbers,
sizes, and FIRST and LAST, the blocks of channels that it works on.
"""

LANES = 16  # channels to a vector
CHUNK = 32  # positions between the states that a forward keeps for its backward

# All kernels.
X, Y, X_ROW, WIDTH, LENGTH, FIRST, LAST = range(7)
FIRST_STATE, LAST_STATE, KEPT, SCRATCH = range(7, 11)
GY, GX, G_STATE, G_FIRST = range(11, 15)

# The selective scan. STATES: how many numbers a channel's state has.
DT, Z, A, B, C, D = range(15, 21)
DT_ROW, Z_ROW, B_ROW, C_ROW, STATES = range(21, 26)
GDT, GZ, GA, GB, GC, GD = range(26, 32)

# The short convolution. TAPS: how many positions one result sees. SILU: 1 with that activation.
WEIGHT, BIAS, TAPS, SILU, G_WEIGHT, G_BIAS = range(15, 21)

# RWKV's WKV; X is the keys.
VALUES, DECAY, BONUS, VALUES_ROW = range(15, 19)
G_VALUES, G_DECAY, G_BONUS = range(19, 22)

# Gated linear attention; X is the values. HEADS: heads that share a key. The state of a head is
# STATES rows of HEAD_WIDTH. DECAY_STEP: 1 if each number of a key has a decay, 0 if a head has one.
QUERIES, KEYS, DECAYS = range(15, 18)
QUERIES_ROW, KEYS_ROW, DECAYS_ROW, DECAY_STEP, DECAYS_HEAD, HEAD_WIDTH = range(18, 24)
G_QUERIES, G_KEYS, G_DECAYS, ROW = range(26, 30)
LONG_CHUNK = 256  # positions between two fresh sums of the decays' gradients

ARGUMENTS = 32
