"""How much memory a merge takes, in units of its largest tensor, method by method.

    python bench/merging_memory.py --megabytes 64 --models 3

Checkpoints of two matrices are drawn; each method merges them in a process of its own, which has
merged a tiny one before, so that what is counted is the merge and not the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch

EACH = {"weight": 0.5, "density": 0.5, "gamma": 0.1, "epsilon": 0.1}


def write_models(folder: Path, megabytes: float, count: int) -> list[str]:
    """Checkpoints whose largest tensor has so many megabytes (float32)."""
    from safetensors.torch import save_file

    rows = int(megabytes * 1e6 / 4 / 1024)
    names = []
    for number in range(count):
        random = torch.Generator().manual_seed(number)
        state = {
            "model.embed_tokens.weight": torch.randn(rows, 1024, generator=random),
            "model.layers.0.mlp.up_proj.weight": torch.randn(rows // 2, 1024, generator=random),
            "model.norm.weight": torch.randn(1024, generator=random),
        }
        path = folder / f"m{number}"
        path.mkdir(parents=True)
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        settings = {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": True}
        (path / "config.json").write_text(json.dumps(settings))
        names.append(str(path))
    return names


def recipe(name: str, models: list[str]) -> dict[str, Any]:
    """Settings of the stage for one method."""
    from lmworks.models.merging.base import method

    chosen = method(name)
    parameters: dict[str, Any] = {
        key: EACH[key] for key, one in chosen.parameters.items() if key in EACH
    }
    if "t" in chosen.parameters:
        parameters["t"] = 0.3
    if "select_topk" in chosen.parameters:
        parameters["select_topk"] = 0.5
    rescaled = {"rescale": True} if "rescale" in chosen.parameters else {}
    base = {"base_model": models[0]} if chosen.base != "unused" else {}
    count = (chosen.most + bool(base)) if chosen.most else len(models)
    return {
        "merge_method": name,
        "models": models[:count],
        "parameters": parameters | rescaled,
        **base,
    }


def measure(name: str, tiny: list[str], models: list[str], out: str, queue: Any) -> None:
    """Peak of a merge over what the process held before, in bytes."""
    from lmworks.core.config import from_mapping
    from lmworks.core.machine import PeakMemory
    from lmworks.models.merging.folder import write_folder
    from lmworks.models.merging.stage import MergeConfig, _plan

    torch.set_num_threads(1)

    def run(given: list[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        config = from_mapping(MergeConfig, recipe(name, given))
        plan, _ = _plan(config, {key: Path(path) for key, path in config.inputs.items()})
        write_folder(plan, folder, seed=0, shard_bytes=1 << 40)

    run(tiny, Path(out) / "tiny")
    before = resident()
    with PeakMemory() as peak:
        run(models, Path(out) / "large")
    queue.put(peak.bytes - before)


def resident() -> int:
    """What this process holds now, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this script reads /proc: run it on Linux")


def main() -> None:
    """Print a line for each method."""
    from lmworks.models.merging.base import METHODS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--models", type=int, default=3, help="beside the base")
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny = write_models(folder / "tiny", 0.1, given.models + 1)
        models = write_models(folder / "large", given.megabytes, given.models + 1)
        for name in given.methods.split(","):
            queue = context.Queue()
            with tempfile.TemporaryDirectory(dir=folder) as out:
                process = context.Process(target=measure, args=(name, tiny, models, out, queue))
                process.start()
                peak = queue.get(timeout=600)
                process.join()
            print(f"{name:18} {peak / given.megabytes / 1e6:5.2f} x the largest tensor", flush=True)


if __name__ == "__main__":
    main()
