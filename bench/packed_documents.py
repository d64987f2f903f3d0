"""Four exact ways to keep packed documents apart in attention, forward and backward, in turns.

    python bench/packed_documents.py

Ours takes documents of one length together; beside it documents of about one length, padded, a mask
over the whole row, a call for each document, and PyTorch's nested tensors; and attention that lets
documents see each other, which is what packing costs otherwise. One layer's attention without its
projections: 8 heads of 64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pairs import compared, keep, take_turns

from lmworks.models.documents import Documents
from lmworks.training.threads import set_threads

HEADS, SIZE = 8, 64


def drawn(rows: int, length: int, mean: float, seed: int = 0) -> torch.Tensor:
    """(rows, length) document numbers; lengths are drawn as texts' are, from a long-tailed law."""
    random = np.random.default_rng(seed)
    numbers = []
    for _ in range(rows):
        sizes: list[int] = []
        while sum(sizes) < length:
            sizes.append(max(2, int(random.lognormal(np.log(mean) - 0.5, 1.0))))
        numbers.append(np.repeat(np.arange(len(sizes)), sizes)[:length])
    return torch.from_numpy(np.stack(numbers))


def ways(rows: int, length: int, mean: float) -> dict[str, Callable[[], torch.Tensor]]:
    numbers = drawn(rows, length, mean)
    q, k, v = (torch.randn(rows, length, HEADS, SIZE, requires_grad=True) for _ in range(3))

    def causal(*parts: torch.Tensor) -> torch.Tensor:
        turned = (part.transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2)

    def apart() -> torch.Tensor:
        return Documents(numbers).apart(lambda bucket, *parts: causal(*parts), q, k, v)

    def padded() -> torch.Tensor:
        read = lambda bucket, *parts: causal(*parts)  # noqa: E731
        return Documents(numbers).apart(read, q, k, v, padded=True)

    def mask() -> torch.Tensor:
        same = (numbers[:, :, None] == numbers[:, None]).tril()[:, None]
        added = torch.zeros(same.shape).masked_fill(~same, -torch.inf)
        turned = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*turned, attn_mask=added).transpose(1, 2)

    def loop() -> torch.Tensor:
        found = []
        for row in range(rows):
            sizes = torch.unique_consecutive(numbers[row], return_counts=True)[1].tolist()
            parts = (part[row : row + 1].split(sizes, dim=1) for part in (q, k, v))
            found.append(torch.cat([causal(*part) for part in zip(*parts)], dim=1))
        return torch.cat(found)

    def nested() -> torch.Tensor:
        sizes = [torch.unique_consecutive(row, return_counts=True)[1] for row in numbers]
        offsets = F.pad(torch.cat(sizes).cumsum(0), (1, 0))
        parts = (
            torch.nested.nested_tensor_from_jagged(t.flatten(0, 1), offsets) for t in (q, k, v)
        )
        return causal(*parts).values().unflatten(0, (rows, length))

    def together() -> torch.Tensor:
        return causal(q, k, v)

    upstream = torch.randn(rows, length, HEADS, SIZE)
    wanted = apart().detach()
    found: dict[str, Callable[[], torch.Tensor]] = {
        "by length": apart,
        "padded": padded,
        "mask": mask,
        "loop": loop,
    }
    try:
        torch.autograd.grad(nested(), (q, k, v), upstream)
        found["nested"] = nested
    except (RuntimeError, NotImplementedError) as error:
        print(f"nested tensors: {str(error).splitlines()[0][:90]}")
    for name, way in found.items():
        assert torch.allclose(way(), wanted, atol=1e-5), name
    found["not apart"] = together

    def both(way: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad(way(), (q, k, v), upstream)[0]

    return {name: both(way) for name, way in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    threads = set_threads(arguments.threads)
    found = {}
    for length, rows in ((256, 16), (1024, 4), (2048, 1)):
        for mean in (32, 256):
            name = f"{rows} rows of {length}, documents of {mean}"
            print(name)
            seconds = take_turns(ways(rows, length, mean), arguments.rounds)
            found[name] = compared("tokens/s", rows * length, seconds)
    keep("packed_documents", threads=threads, cases=found)


if __name__ == "__main__":
    main()
