"""One training step (forward, backward, clip, AdamW): ours beside transformers' Llama.

    python bench/training_step.py

The same weights, shapes and batches: hidden 256, 4 layers, 256 tokens, 8 rows, vocabulary 2048.
"""

from __future__ import annotations

import tempfile

import torch
from pairs import report, take_turns
from transformers import AutoModelForCausalLM

from lmworks.models.save import save_model
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig, build_optimizer
from lmworks.training.pretrain import PretrainConfig, new_model
from lmworks.training.threads import set_threads
from lmworks.training.tokens import Batch

ROUNDS, VOCAB = 9, 2048


def main() -> None:
    threads = set_threads(0)
    config = PretrainConfig(corpus="-", tokenizer="-", depth=4)
    ours = new_model(config, VOCAB)
    with tempfile.TemporaryDirectory() as folder:
        save_model(ours, folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(VOCAB, (8, 257), generator=torch.Generator().manual_seed(0))
    batch = Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())
    adamw = build_optimizer(ours, OptimizerConfig(name="adamw"))
    plain = torch.optim.AdamW(theirs.parameters(), lr=3e-3, fused=True)
    tuned = new_model(config, VOCAB)
    muon = build_optimizer(tuned, OptimizerConfig(name="muon"))

    def step_ours(model, optimizer) -> None:  # type: ignore[no-untyped-def]
        model.zero_grad(set_to_none=True)
        causal(model, batch).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1.0)

    def step_theirs() -> None:
        theirs.zero_grad(set_to_none=True)
        logits = theirs(batch.input_ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        plain.step()

    seconds = take_turns(
        {
            "lmworks, AdamW": lambda: step_ours(ours, adamw),
            "transformers, AdamW": step_theirs,
            "lmworks, Muon": lambda: step_ours(tuned, muon),
        },
        ROUNDS,
    )
    report("training_step", "tokens/s", batch.labels.numel(), seconds, threads=threads)


if __name__ == "__main__":
    main()
