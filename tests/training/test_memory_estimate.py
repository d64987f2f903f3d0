"""Steps of shapes take what real steps take, block by block; the heap plays malloc's rules."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lmworks.cli.main import _start_for_training
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor
from lmworks.models import kernel_calls
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model
from lmworks.models.nf4 import NF4Linear
from lmworks.models.packed import PackedMatrix
from lmworks.models.skeleton import skeleton
from lmworks.training import memory_estimate, threads
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.heap import Heap, peak_resident
from lmworks.training.memory_estimate import estimate
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.shape_tensors import MemoryRecord, shape_twin
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

ADAMW = OptimizerConfig(name="adamw")
TRAININGS = {
    "plain": ("attention", LoopConfig(optimizer=ADAMW)),
    "muon": ("attention", LoopConfig()),
    "accumulated": ("attention", LoopConfig(micro_batch_size=2, optimizer=ADAMW)),
    "computed again": ("attention", LoopConfig(activation_checkpointing=True, optimizer=ADAMW)),
    "averaged": ("attention", LoopConfig(ema=0.9, optimizer=ADAMW)),
    "window": ("window", LoopConfig(optimizer=ADAMW)),
    "recurrent": ("mamba,gla", LoopConfig(optimizer=ADAMW)),
    "others": ("mamba2,rwkv,convolution", LoopConfig(optimizer=ADAMW)),
}


def batch(masked: bool = False) -> Batch:
    ids = torch.randint(300, (4, 65), generator=torch.Generator().manual_seed(0))
    labels = ids[:, 1:].clone()
    if masked:
        labels[:, ::3] = IGNORED
    return Batch(input_ids=ids[:, :-1].contiguous(), labels=labels)


def live_peak(record: MemoryRecord) -> int:
    live = most = 0
    for event in record.events:
        live += event.num_bytes
        most = max(most, live)
    return most


def really(model: Model, rows: Batch, loop: LoopConfig, work: Path) -> int:
    """The bytes of tensors at the fullest moment of two real steps."""
    with MemoryRecord(real=True) as record:
        for parameter in model.parameters():
            record.take(parameter)
        trainer = Trainer(model, causal, lambda number: rows, loop, num_steps=3, work=work)
        model.train()
        for step in range(2):
            trainer.take_step(step)
    return live_peak(record)


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("masked", [False, True])
def test_shapes_take_what_tensors_take(tmp_path: Path, name: str, masked: bool) -> None:
    layers, loop = TRAININGS[name]
    config = decoder_config(layers, depth=3, vocab_size=300, sizes=Sizes(hidden_size=64))
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    rows = batch(masked)
    told = estimate(skeleton(config), causal, rows, loop)
    taken = really(model, rows, loop, tmp_path)
    assert told.live == pytest.approx(taken, rel=0.02)
    assert sum(told.parts.values()) == told.live
    weights = sum(4 * p.numel() for p in model.parameters())
    assert told.parts["weights"] == weights
    assert told.parts["optimizer"] >= weights


def test_the_model_is_left_alone_and_its_own_weights_serve() -> None:
    config = decoder_config("attention", depth=1, vocab_size=300, sizes=Sizes(hidden_size=64))
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert estimate(model, causal, batch(), LoopConfig()) == estimate(
        skeleton(config), causal, batch(), LoopConfig()
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_weights_have_neither_gradient_nor_state() -> None:
    model = skeleton(
        decoder_config("attention", depth=2, vocab_size=300, sizes=Sizes(hidden_size=64))
    )
    loop = LoopConfig(optimizer=ADAMW)
    whole = estimate(model, causal, batch(), loop)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    frozen = estimate(model, causal, batch(), loop)
    assert frozen.parts.get("optimizer", 0) < whole.parts["optimizer"] / 20
    assert frozen.live < whole.live


def test_tokens_are_spread_over_experts() -> None:
    ids = shape_twin(torch.nn.Linear(64, 16)).weight.reshape(-1).long()
    counts = torch.bincount(ids, minlength=8)
    assert counts.sum() == 1024 and len(counts) == 8
    assert 48 <= counts.min() < 100 < 150 < counts.max() <= 208


def test_experts_are_taken_to_be_used() -> None:
    config = decoder_config("attention+moe", depth=2, vocab_size=300, sizes=Sizes(hidden_size=64))
    told = estimate(skeleton(config), causal, batch(), LoopConfig())
    assert told.live > 3 * told.parts["weights"]


def test_a_heap_uses_again_what_is_large_enough() -> None:
    heap = Heap(map_threshold=1 << 20)
    for block in range(4):
        heap.take(block, 10_000)
    full = heap.peak
    heap.give_back(1)
    heap.give_back(2)  # neighbours: one hole
    heap.take(9, 19_500)  # an aligned block needs a little more than itself
    assert heap.peak == full
    heap.take(10, 20_000)  # no hole is left
    assert heap.peak > full
    heap.take(11, 1 << 20)
    grown = heap.peak
    heap.give_back(11)  # mapped apart, so given back
    assert heap.resident == grown - (1 << 20) - 4096  # its header took a page


def test_a_hole_between_blocks_is_lost_for_larger_ones() -> None:
    sizes = [(0, 50_000), (1, 10_000), (0, -50_000), (2, 60_000)]
    assert peak_resident(sizes, 1 << 20) > 115_000


def test_ends_that_a_thread_keeps_spoil_the_hole_beside_them() -> None:
    """A block that is freed serves the next of its size, unless its ends were kept apart."""
    steps = [(0, 100_000), (1, 3000), (0, -100_000), (2, 100_000), (3, 3000), (2, -100_000)]
    steps += [(4, 100_000)]
    plain = peak_resident(steps, 1 << 20)
    assert plain < 110_000
    assert peak_resident(steps, 1 << 20, cached=7) > plain + 90_000


def test_small_blocks_beside_large_ones_are_counted() -> None:
    steps = [(number, 5000) for number in range(10)]
    more = peak_resident(steps, 1 << 20, beside=(1000, 1000)) - peak_resident(steps, 1 << 20)
    assert 20_000 <= more <= 21_000


def test_kernels_that_would_run_belong_to_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def told(module: str, name: str) -> int:
        asked.append((module, name))
        return 1000

    monkeypatch.setattr(memory_estimate, "kernel_bytes", told)
    for layers, least in (("attention", 0), ("mamba", 2)):
        asked.clear()
        config = decoder_config(layers, depth=1, vocab_size=300, sizes=Sizes(hidden_size=64))
        found = estimate(skeleton(config), causal, batch(), LoopConfig(), baseline=5)
        assert found.baseline == 5 + 1000 * len(asked) and len(asked) >= least
    assert {module for module, _ in asked} >= {"lmworks.models.selective_scan_kernels"}


def test_a_process_is_started_once_more_where_its_threads_keep_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "is_glibc", lambda: True)
    monkeypatch.setenv(threads.TUNABLES, "glibc.malloc.arena_max=1")
    environment = threads.without_kept_chunks()
    assert environment is not None
    assert environment[threads.TUNABLES] == "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0"
    monkeypatch.setenv(threads.TUNABLES, environment[threads.TUNABLES])
    assert threads.without_kept_chunks() is None and not threads.small_chunks_kept()
    monkeypatch.setenv(threads.TUNABLES, "glibc.malloc.tcache_count=3")
    assert threads.without_kept_chunks() is None and threads.small_chunks_kept()
    monkeypatch.setattr(threads, "is_glibc", lambda: False)
    monkeypatch.delenv(threads.TUNABLES)
    assert threads.without_kept_chunks() is None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["train", "sft"], True),
        (["--quiet", "run", "legal"], True),
        (["train", "sft", "--help"], False),
        (["generate", "train"], False),
        ([], False),
    ],
)
def test_only_commands_that_train_start_anew(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: bool
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(threads, "without_kept_chunks", lambda: {"A": "B"})
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "lmworks.cli.main", *arguments])
    monkeypatch.setattr(sys, "argv", [__file__, *arguments])
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(words))
    _start_for_training(arguments)
    assert started == ([[sys.executable, "-m", "lmworks.cli.main", *arguments]] if wanted else [])


@pytest.mark.parametrize("case", ["as called", "from a program", "from stdin", "once"])
def test_a_process_starts_anew_once_and_only_where_it_comes_out_the_same(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arguments = ["train", "sft", "--data", "a b"]
    script = "-" if case == "from stdin" else __file__
    started: list[dict[str, str]] = []
    monkeypatch.delenv("LMWORKS_STARTED_ANEW", raising=False)
    monkeypatch.setattr(threads, "without_kept_chunks", lambda: {"A": "B"})
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python", script, *arguments])
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(environment))
    if case == "from a program":
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    if case == "once":  # what started it took the setting away again
        monkeypatch.setenv("LMWORKS_STARTED_ANEW", str(os.getpid()))
    _start_for_training(arguments)
    assert len(started) == (case == "as called")
    assert all(e["LMWORKS_STARTED_ANEW"] == str(os.getpid()) for e in started)


def test_memory_that_is_used_again_does_not_come_from_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_calls, "_LOCAL", threading.local())
    codes = np.zeros(8192 * TYPES["Q8_0"].num_bytes, dtype=np.uint8)
    matrix = PackedMatrix(GGUFTensor(name="w", shape=(1024, 256), type="Q8_0", data=codes))
    upstream = torch.ones(2, 1024)
    with MemoryRecord(), contextlib.suppress(RuntimeError):
        matrix.gradient(upstream)
    assert torch.equal(matrix.gradient(upstream), torch.zeros(2, 256))


def test_a_model_in_four_bits_trains_after_its_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_calls, "_LOCAL", threading.local())
    torch.manual_seed(0)
    layer = NF4Linear.of(torch.nn.Linear(64, 32, bias=False))
    x = torch.ones(2, 64, requires_grad=True)
    with kernel_calls.not_running(), MemoryRecord():
        shape_twin(layer)(torch.empty(64, 64))
    assert type(kernel_calls.work_space(1)) is torch.Tensor  # of shapes alone, it would end us
    assert torch.allclose(layer(x), x @ layer.dequantized().T)
