"""Record what TRL's SFTTrainer does on the setup: `python -m tests.training.record_sft tiny`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.training import sft_setup as setup


def record(kind: str) -> dict[str, Any]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer

    folder = Path(tempfile.mkdtemp())
    if kind == "tiny":
        tokenizer = setup.tiny_tokenizer()
        model = setup.tiny_model(tokenizer.vocab_size)
    else:
        model, tokenizer = load_language_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    save_model(model, folder / "model", tokenizer=tokenizer, card="")
    losses: list[float] = []

    class Recording(SFTTrainer):  # type: ignore[misc]
        """Rows in their order; losses as they are."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    theirs = AutoTokenizer.from_pretrained(folder / "model")
    theirs.chat_template = setup.TAGGED
    learner = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    # SmolLM2 pads with <|im_end|>, which ends every answer: transformers' embedding gives the row
    # of the padding no gradient, wherever it stands. Here it learns as any other.
    learner.get_input_embeddings().padding_idx = None
    trainer = Recording(
        model=learner,
        processing_class=theirs,
        train_dataset=Dataset.from_list([{"messages": row} for row in setup.rows(kind)]),
        args=SFTConfig(
            output_dir=str(folder / "out"),
            assistant_only_loss=True,
            per_device_train_batch_size=setup.ROWS_PER_STEP[kind],
            max_steps=setup.NUM_STEPS,
            learning_rate=setup.RATES[kind],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            seed=0,
        ),
    )
    trainer.train()
    norms = [float(log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    return {"versions": versions, "loss": losses, "grad_norm": norms}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[1:]:
        setup.ORACLES.mkdir(exist_ok=True)
        path = setup.ORACLES / f"sft_{kind}.json"
        path.write_text(json.dumps(record(kind), indent=1) + "\n")
        print(path)
