"""A plan tried out on this machine: its real processes, with a narrow model of the same layers.

`python -m lmworks.training.distributed.rehearsal SPEC.json` is one process of it. In one go it

1. trains a few steps in double precision, for the losses to be held against those of one process;
2. counts what it holds and sends in a step;
3. measures what a micro-batch keeps for its backward at three widths, which tells how that grows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lmworks.core import processes
from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.model import Model
from lmworks.training.batches import Batch
from lmworks.training.distributed.narrow import narrowed
from lmworks.training.objectives.causal import causal
from lmworks.training.strategy import Compute, OneProcess
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig

STEPS = 5
# Widths (of a head) and batches at which activations are measured: two tell the line, the third
# checks it with other rows and another length. No width is a multiple of these numbers of tokens,
# so that what a token keeps is never taken for a copy of a weight.
MEASURED = ((4, 1, 19), (8, 1, 19), (12, 2, 23))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What all processes of a rehearsal are told.

    Attributes:
        model: the config as JSON, already of as many layers as are rehearsed.
        loop: the training's loop, with the plan.
        rows: of a step, of all processes together; a micro-batch has one.
    """

    model: str
    loop: LoopConfig
    rows: int


def rehearse(spec: Spec) -> dict[str, Any]:
    """This process's findings; see the module."""
    from lmworks.models.architectures.own import config_from_hf

    config = cast("ModelConfig", config_from_hf(json.loads(spec.model)))
    torch.set_num_threads(1)
    counted = [
        _measure(config, head_dim, rows, length, spec.loop) for head_dim, rows, length in MEASURED
    ]
    return {"losses": _losses(config, spec), "counted": _count(config, spec), "measured": counted}


def _model(config: ModelConfig, head_dim: int, dtype: torch.dtype) -> Model:
    model = Model(narrowed(config, head_dim)).to(dtype)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def _batch(config: ModelConfig, number: int, rows: int, length: int) -> Batch:
    random = torch.Generator().manual_seed(number)
    vocab = narrowed(config, MEASURED[0][0]).vocab_size
    ids = torch.randint(0, vocab, (rows, length + 1), generator=random)
    return Batch(input_ids=ids[:, :-1], labels=ids[:, 1:])


def _losses(config: ModelConfig, spec: Spec) -> list[float]:
    """Of a few steps in double precision, through the trainer."""
    loop = dataclasses.replace(spec.loop, precision="float32", device="cpu", compile=False)
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(
            _model(config, MEASURED[0][0], torch.float64),
            causal,
            lambda step: _batch(config, step, spec.rows, MEASURED[0][2]),
            loop,
            num_steps=STEPS,
            work=Path(work),
            checkpoint_every_s=1e9,
            strategy=None if processes.several() else OneProcess(),
        )
        return trainer.fit("rehearsing").loss


def _strategy(loop: LoopConfig) -> Any:
    from lmworks.training.distributed.strategy import Distributed

    return Distributed(loop.parallel) if processes.several() else OneProcess()


def _count(config: ModelConfig, spec: Spec) -> dict[str, Any]:
    """What is held and sent in the second step of a training in single precision."""
    strategy = _strategy(spec.loop)
    head_dim, _, length = MEASURED[1]
    model = _model(config, head_dim, torch.float32)
    trained = strategy.prepare(model, spec.loop)
    trained.checkpoint_layers = spec.loop.activation_checkpointing
    trained.train()
    optimizer = strategy.optimizer(trained, spec.loop.optimizer)
    compute = Compute(micro_batch_size=1)
    found: dict[str, Any] = {}
    for number in range(2):
        trained.zero_grad(set_to_none=True)
        batch = _batch(config, number, spec.rows, length)
        with _traffic(strategy) as sent:
            strategy.gradients(trained, causal, batch, compute)
            if number == 1:
                held = _held(trained)
                found = {
                    "weights": sum(p.nbytes for p in held),
                    "gradients": sum(_gradient_bytes(p) for p in trained.parameters()),
                }
            optimizer.step(1.0)
        found["sent"] = dict(sent)
    found["optimizer"] = optimizer.state_bytes
    return found


@contextlib.contextmanager
def _traffic(strategy: Any) -> Iterator[Counter[str]]:
    from lmworks.training.distributed.traffic import Traffic

    if isinstance(strategy, OneProcess):
        yield Counter()
        return
    with Traffic(strategy.grid) as traffic:
        yield traffic.sent


def _held(model: nn.Module) -> list[torch.Tensor]:
    from lmworks.training.distributed.shard import local

    return [local(p) for p in model.parameters()]


def _gradient_bytes(parameter: nn.Parameter) -> int:
    from lmworks.training.distributed.shard import local_gradient

    grad = local_gradient(parameter)
    return 0 if grad is None else grad.nbytes


def _measure(
    config: ModelConfig, head_dim: int, rows: int, length: int, loop: LoopConfig
) -> dict[str, Any]:
    """Bytes that one micro-batch keeps for its backward: of each layer, and outside of layers."""
    strategy = _strategy(loop)
    model = strategy.prepare(_model(config, head_dim, torch.float32), loop)
    model.checkpoint_layers = loop.activation_checkpointing
    model.train()
    model.logits = model.logits  # the plain way, as on a GPU; see `vocabulary_loss`
    plan = loop.parallel
    groups = plan.row_groups if processes.several() else 1
    batch = _batch(config, 0, rows * groups, length)
    ledger = _Ledger(model)
    with ledger:
        compute = Compute(precision=loop.precision, micro_batch_size=rows)
        strategy.gradients(model, causal, batch, compute)
    return {
        "head_dim": head_dim,
        "tokens": rows * length,
        "layers": ledger.layers,
        "outside": ledger.outside,
        "copies": ledger.copies,
    }


class _Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd saves, each memory once, weights apart.

    Attributes:
        copies: of weights, which autocast makes in a lower precision.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.layers = [0] * len(model.layers)  # type: ignore[arg-type]
        self.outside = self.copies = 0
        self._where: int | None = None
        self._seen: set[int] = set()
        self._kept: list[torch.Tensor] = []  # so that no address is used twice
        for module in model.modules():  # tables that all layers and micro-batches share
            if (rotary := getattr(module, "rotary", None)) is not None:
                tables = rotary.tables(1, torch.device("cpu"))
                self._seen |= {table.untyped_storage().data_ptr() for table in tables}
        self._shapes = {s for p in model.parameters() for s in (p.shape, p.shape[::-1])}
        for index, layer in enumerate(model.layers):  # type: ignore[arg-type]
            layer.register_forward_pre_hook(lambda *_, i=index: self._enter(i))
            layer.register_forward_hook(lambda *_: self._enter(None))

    def _enter(self, where: int | None) -> None:
        self._where = where

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        base = tensor._base if tensor._is_view() else tensor
        storage = tensor.untyped_storage()
        if isinstance(base, nn.Parameter) or storage.data_ptr() in self._seen:
            return tensor
        self._seen.add(storage.data_ptr())
        self._kept.append(tensor.detach())
        if tensor.dtype in (torch.bfloat16, torch.float16) and tensor.shape in self._shapes:
            self.copies += storage.nbytes()
        elif self._where is None:
            self.outside += storage.nbytes()
        else:
            self.layers[self._where] += storage.nbytes()
        return tensor


def main(path: Path) -> int:
    """One process of a rehearsal; the main one writes everybody's findings."""
    spec = from_mapping(Spec, json.loads(path.read_text()))
    try:
        with processes.watching("the rehearsal has failed"):
            everybody = processes.exchange(rehearse(spec))
    except UserError as error:
        print(f"lmworks: error: {error}", file=sys.stderr)
        return error.exit_code
    if processes.is_main():
        path.with_suffix(".found.json").write_text(json.dumps(everybody))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
