"""LoRA fine-tuning of SmolLM2-135M beside TRL with PEFT: tokens per second and peak memory.

    python bench/adapters.py [--steps 4] [--rows 8] [--rounds 1] [--only NAME ...]

Every contestant is a process of its own, with one thread, on the same conversations (paragraphs of
the Debian handbook, the second part of each to be continued), rank 16 on all linear layers, AdamW,
float32 products; each makes batches as it does by default. Tokens are those of the conversations,
padding not counted. `clock` may be the wall's or the process' own seconds: on a busy machine the
second alone means something. The first step of each is not counted.

The limit of the matrix products: what the products of one forward and one backward with frozen
matrices take by themselves, for as many tokens (padding not counted).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pairs
import real

from lmworks.core.folders import cache_folder

MODEL = "smollm2-135m"
RANK, RATE = 16, 1e-4
OURS = {"lmworks": "float32", "lmworks on Q4_1": "packed", "lmworks on NF4": "nf4"}
THEIRS: dict[str, dict[str, Any]] = {
    "TRL + PEFT": {},
    "TRL + PEFT, nothing recomputed, by length": {
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
    },
}


def conversations() -> list[dict[str, Any]]:
    """Rows of a question and an answer, 69 to 335 tokens long."""
    lines = (line.strip() for line in real.texts(1_000_000)["english"].splitlines())
    paragraphs = [line for line in lines if 200 < len(line) < 1600]
    random.Random(0).shuffle(paragraphs)
    rows = []
    for text in paragraphs:
        cut = text.find(". ", len(text) // 3) + 1
        if cut:
            question = {"role": "user", "content": f"Continue: {text[:cut]}"}
            answer = {"role": "assistant", "content": text[cut + 1 :]}
            rows.append({"messages": [question, answer]})
    return rows[:256]


def folder() -> Path:
    """The model as a folder that transformers reads."""
    path = cache_folder() / "bench" / "smollm2-float32"
    if not path.is_dir():
        from lmworks.models.load import load_model
        from lmworks.models.save import save_model
        from lmworks.tokenizers.load import load_tokenizer

        save_model(load_model(MODEL), path, tokenizer=load_tokenizer(MODEL))
    return path


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Clock:
    """Seconds of steps, of the wall and of the processor; tokens beside them."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.tokens: list[int] = []

    def begin(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.wall.append(time.perf_counter() - self._started[0])
        self.processor.append(time.process_time() - self._started[1])

    def figures(self) -> dict[str, Any]:
        """Without the first step."""
        tokens = sum(self.tokens[1:])
        return {
            "tokens": tokens,
            "tokens_per_s": tokens / sum(self.wall[1:]),
            "tokens_per_processor_s": tokens / sum(self.processor[1:]),
            "peak_bytes": peak_bytes(),
        }


def run_ours(base_type: Any, steps: int, rows: int) -> dict[str, Any]:
    """Our stage's parts: its batches, its objective, its step."""
    import torch

    from lmworks.core.references import resolve
    from lmworks.models.adapters.base import adapter_of
    from lmworks.models.adapters.lora import LoRAConfig
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.adapted import load_to_train
    from lmworks.training.conversations import Conversations
    from lmworks.training.objectives.causal import causal
    from lmworks.training.threads import set_threads

    set_threads(1)
    path = folder() if base_type == "float32" else resolve(MODEL).path
    assert path is not None
    model = load_to_train(path, LoRAConfig(rank=RANK), base_type, 0).train()
    adapter = adapter_of(model)
    assert adapter is not None
    data = Conversations(
        conversations(), load_tokenizer(path), context_length=1024, batch_size=rows, seed=0
    )
    adamw = torch.optim.AdamW(adapter.parameters, lr=RATE, fused=True)
    clock = Clock()
    for step in range(steps + 1):
        batch = data(step)
        clock.tokens.append(_real_tokens(batch))
        clock.begin()
        causal(model, batch).value.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters, 1.0)
        adamw.step()
        adamw.zero_grad()
        clock.end()
    return clock.figures()


def _real_tokens(batch: Any) -> int:
    """Tokens up to the last that counts in each row, as TRL's attention mask counts them."""
    counted = (batch.labels != -100).int()
    return int(counted.flip(1).cumsum(1).gt(0).sum()) + len(counted)


def run_theirs(options: dict[str, Any], steps: int, rows: int) -> dict[str, Any]:
    """TRL's trainer with PEFT's LoRA."""
    import torch

    torch.set_num_threads(1)
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in conversations()]
    )
    arguments = SFTConfig(
        output_dir=str(cache_folder() / "bench" / "trl"),
        per_device_train_batch_size=rows,
        max_steps=steps + 1,
        learning_rate=RATE,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        eos_token="<|im_end|>",
        **options,
    )
    clock = Clock()

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32),
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder()),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"),
        callbacks=[Watch()],
    )
    loss = trainer.compute_loss

    def counted(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        clock.tokens.append(int(inputs["attention_mask"].sum()))
        return loss(model, inputs, *rest, **options)

    trainer.compute_loss = counted
    trainer.train()
    return clock.figures()


def run_limit(num_tokens: int) -> dict[str, Any]:
    """The products with the layers' matrices alone, forward and backward."""
    import torch

    from lmworks.models.load import load_model

    torch.set_num_threads(1)
    matrices = [p.detach() for p in load_model(folder()).layers.parameters() if p.dim() == 2]
    clock = Clock()
    for _ in range(3):
        clock.tokens.append(num_tokens)
        clock.begin()
        for matrix in matrices:
            y = torch.ones(num_tokens, matrix.shape[1]) @ matrix.T
            y @ matrix
        clock.end()
    return clock.figures()


def run(name: str, steps: int, rows: int) -> dict[str, Any]:
    """One contestant in this process."""
    if name in OURS:
        return run_ours(OURS[name], steps, rows)
    if name in THEIRS:
        return run_theirs(THEIRS[name], steps, rows)
    return run_limit(128 * rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="some of the contestants")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(run(given.alone, given.steps, given.rows)))
        return
    folder()
    names = given.only or [*OURS, *THEIRS, "matrix products alone"]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            command = [sys.executable, "-W", "ignore", __file__, "--alone", name]
            command += ["--steps", str(given.steps), "--rows", str(given.rows)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds[name].append(json.loads(out.splitlines()[-1]))
            print(name, rounds[name][-1], flush=True)
    first = names[0]
    rows = {}
    for name, figures in rounds.items():
        row = {key: statistics.median(f[key] for f in figures) for key in figures[0]}
        for key in ("tokens_per_s", "tokens_per_processor_s"):
            ratios = [a[key] / b[key] for a, b in zip(rounds[first], figures, strict=True)]
            row[f"{key}_of_{first}_to_this"] = statistics.median(ratios)
        row["peak_to_first"] = row["peak_bytes"] / rounds[first][0]["peak_bytes"]
        rows[name] = row
        print(
            f"{name:44} {row['tokens_per_processor_s']:7.1f} tokens/processor-s "
            f"{row['tokens_per_s']:7.1f} tokens/s {row['peak_bytes'] / 1e6:6.0f} MB"
        )
    pairs.keep("adapters_lora", rows=rows, rounds=given.rounds, steps=given.steps, batch=given.rows)


if __name__ == "__main__":
    main()
