# uses: lmworks.models.kernel_vectors lmworks.models.kernel_slots
# kernels: forward backward
"""silu(gate) * up, times the weight of the row, compiled; forward and backward.

X holds rows of WIDTH numbers of the gate and then as many of the other, WEIGHT one number a row.
"""

from __future__ import annotations

from lmworks.models.kernel_slots import *
from lmworks.models.kernel_vectors import *


def forward(a):
    """Y, rows of WIDTH."""
    x, y, weight, width = floats(a[X]), floats(a[Y]), floats(a[WEIGHT]), a[WIDTH]
    for row in range(a[FIRST], a[LAST]):
        w, gates, out = spread(weight[row]), row * 2 * width, row * width
        for lane in range(0, width, LANES):
            g = load(x, gates + lane)
            store(y, out + lane, g * sigmoid(g) * load(x, gates + width + lane) * w)
    return 0


def backward(a):
    """From GY, the gradient of Y: that of X and of the weights, and Y itself once more."""
    x, y, weight, width = floats(a[X]), floats(a[Y]), floats(a[WEIGHT]), a[WIDTH]
    gy, gx, g_weight = floats(a[GY]), floats(a[GX]), floats(a[G_WEIGHT])
    one = spread(1.0)
    for row in range(a[FIRST], a[LAST]):
        w, gates, out = spread(weight[row]), row * 2 * width, row * width
        product = spread(0.0)
        for lane in range(0, width, LANES):
            g, up = load(x, gates + lane), load(x, gates + width + lane)
            s = sigmoid(g)
            activated = g * s
            inner, grad = activated * up, load(gy, out + lane)
            product = product + grad * inner
            grad = grad * w
            store(y, out + lane, inner * w)
            store(gx, gates + lane, grad * up * s * (one + g * (one - s)))
            store(gx, gates + width + lane, grad * activated)
        g_weight[row] = total(product)
    return 0
