"""Where a fused step finds its arguments; read by both sides of the call.

STEP arguments: one array of int64 for each thread, alike but for SCRATCH, CALL and STAGE, which
the thread counts up. Buffers are float32, (COUNT, their own width), COUNT = ROWS * NEW.
"""

# fmt: off
(STAGE, THREADS, STAGES, COUNT, ROWS, NEW, HIDDEN, NUM_LAYERS, LAYERS, PLACES) = range(10)
(TABLE, TABLE_ROW, STARTS, CACHE_SLOTS) = range(10, 14)
(X, NORMED, QUERIES, KEYS, VALUES, GATHERED, GATES, INNER, UPDATE, STATES) = range(14, 24)
(RECORDS, STEP_SIZES, SCRATCH, END_NORM, HEAD, LOGITS, LOGITS_ROW, LAST_ONLY) = range(24, 32)
PRODUCT, CALL = 32, 33  # the kernel `product`, and the arguments that this thread gives it
ARGUMENTS = 40
# fmt: on

# Of each layer, for one call (PLACES): where its keys, values and rotary tables lie, and the
# positions of a ring, or 0 for pages.
KEYS_AT, VALUES_AT, COSINES_AT, SINES_AT, RING = range(5)
PLACES_SLOTS = 8
PAGE = 16  # positions, as in `pages`

# A norm: kind (0: none, what comes in goes out), weight, bias, the bits of eps, 1 if the weight is
# counted from 1.
NORM_KIND, NORM_WEIGHT, NORM_BIAS, NORM_EPS, NORM_OFFSET = range(5)
NO_NORM, RMS, LAYER = range(3)
NORM_SLOTS = 8

# A layer: its settings, then its norms, then its matrices (as in `packed_slots`).
HEADS, KV_HEADS, HEAD_DIM, ROTARY_DIM, WINDOW, SCALE, SOFTCAP, ACTIVATION, INTERMEDIATE = range(9)
MIXER_NORM, MIXER_OUTPUT_NORM, QUERY_NORM, KEY_NORM, MLP_NORM, MLP_OUTPUT_NORM = range(16, 64, 8)
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(64, 120, 8)
LAYER_SLOTS = 120

SILU, GELU, GELU_TANH, GELU_QUICK, RELU, RELU_SQUARED, TANH = range(7)
HEAD_DIMS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
MOST_THREADS = 64
STAGES_OF_LAYER = 16  # at most
PIECES = 4  # of a stage, for each thread
SPINS = 2000  # looks at a stage before a thread lets others run
