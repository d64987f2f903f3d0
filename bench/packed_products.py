"""What a product with packed blocks costs beside one with the same matrix in float32.

In turns, one thread, processor time (other programs matter little), the least of the rounds:

    python bench/packed_products.py --rounds 15
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from lmworks.core.gguf import GGUFTensor
from lmworks.core.quantizers import quantize
from lmworks.models.packed import PackedMatrix

SHAPE = (1536, 768)


def packed(kind: str) -> PackedMatrix:
    array = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    data = quantize(array, kind).reshape(-1)
    return PackedMatrix(GGUFTensor(name="w", shape=SHAPE, type=kind, data=data))


def seconds(work: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times


def products(matrix: PackedMatrix, weight: torch.Tensor, rows: int) -> list[Callable[[], object]]:
    """Forward in float32 and packed, gradient of the inputs in float32 and packed."""
    x, upstream = torch.randn(rows, SHAPE[1]), torch.randn(rows, SHAPE[0])
    return [
        lambda: x @ weight.T,
        lambda: matrix.product(x.numpy()),
        lambda: upstream @ weight,
        lambda: matrix.gradient(upstream),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512, 2048])
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("time over that of float32, forward and gradient of the inputs (products a second)")
    for kind in options.types:
        matrix = packed(kind)
        weight = torch.from_numpy(matrix.dequantized())
        cells = []
        for rows in options.rows:
            works = products(matrix, weight, rows)
            times = max(1, 256 // rows)
            taken = [[seconds(work, times) for work in works] for _ in range(options.rounds)]
            best = np.array(taken).min(axis=0)
            rate = rows * SHAPE[0] * SHAPE[1] / best[1] / 1e9
            cells.append(
                f"{rows} rows {best[1] / best[0]:.2f} {best[3] / best[2]:.2f} ({rate:.0f} G/s)"
            )
        print(f"{kind}  " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
