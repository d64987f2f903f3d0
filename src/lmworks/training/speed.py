"""A training's speed in words that compare: tokens per second, the share of what the machine can
multiply (MFU), and where the time went.

Model FLOPs utilisation: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B. Counted is what
the model needs, not what was done: layers that are computed twice to spare memory count once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmworks.core import processes

if TYPE_CHECKING:
    from torch import nn

    from lmworks.training.history import History

_OF_A_STEP = ("data", "forward", "backward", "clip", "optimizer")


def speed(history: History, model: nn.Module) -> dict[str, Any]:
    """Figures of the steps that this process took; empty where it took none.

    Returns: tokens_per_s, over the steps alone (no held-out looks, no checkpoints); mfu and
        gemm_gflops, for models whose operations can be counted; time, the share of each part.
    """
    spent = history.spent
    stepping = sum(spent.get(part, 0.0) for part in _OF_A_STEP)
    if not stepping or not history.tokens:
        return {}
    rate = history.tokens / stepping
    whole = sum(spent.values())
    shares = {part: round(seconds / whole, 4) for part, seconds in spent.items()}
    figures: dict[str, Any] = {"tokens_per_s": round(rate, 1)}
    flops = training_flops(model, history.row_length)
    if flops:
        import torch

        from lmworks.training.machine_speed import matrix_product_limit

        device = next(model.parameters()).device
        # The rate is that of all processes together, each of which has such a device.
        limit = matrix_product_limit(device, getattr(torch, history.precision)) * processes.count()
        figures |= {"mfu": round(flops * rate / limit, 4), "gemm_gflops": round(limit / 1e9, 1)}
    return {**figures, "time": shares}


def training_flops(model: nn.Module, row_length: int) -> float:
    """Operations per token of a forward and a backward over rows of this length; 0 if unknown.

    A backward is one product for the gradient of what went in and one for that of the weights,
    which frozen weights do without.
    """
    from lmworks.models.compute import compute
    from lmworks.models.config import ModelConfig

    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig) or config.encoder or not row_length:
        return 0.0
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, wanted in sizes if wanted) / sum(size for size, _ in sizes)
    return compute(config, row_length).forward_flops * (2 + trained)
