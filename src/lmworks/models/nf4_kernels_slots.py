"""Where NF4's kernel finds its arguments; read by both sides of a call."""

CODES, SCALES, PAIRS, OUT, FIRST, LAST = range(6)
ARGUMENTS = 6
