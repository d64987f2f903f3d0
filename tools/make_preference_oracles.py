"""Ask TRL for the losses and gradient norms of 50 steps, and keep its answers for the tests.

    python tools/make_preference_oracles.py            # a tiny Llama: seconds
    python tools/make_preference_oracles.py smollm2    # SmolLM2-135M: minutes for each objective

fp32, CPU, one thread, gradients clipped at 1, a constant rate; AdamW without decay for the tiny
model, plain SGD for SmolLM2. Further words are the objectives to ask for, all by default.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests.training import preference_setup as setup  # noqa: E402

ORACLES = ROOT / "tests" / "training" / "oracles"


def trainer_of(name: str) -> tuple[type, type]:
    """Their trainer and its config."""
    if name in ("dpo", "dpo_sft", "ipo"):
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig
    if name == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOTrainer, KTOConfig
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    if name in ("simpo", "cpo_simpo"):
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer, RewardConfig


def ask(name: str, kind: str, folder: Path, out: Path) -> dict[str, list[float]]:
    """Losses and gradient norms, step by step."""
    import transformers
    from datasets import Dataset

    trainer_class, config_class = trainer_of(name)
    losses: list[float] = []
    norms: list[float] = []

    class Recording(trainer_class):  # type: ignore[misc, valid-type]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "grad_norm" in logs:
                norms.append(logs["grad_norm"])
            super().log(logs, *args, **kwargs)

    batch_size = setup.batch_size(name, kind)
    count = batch_size * 10
    make = setup.judged_rows if name == "kto" else setup.rows
    as_text = setup.is_text(name, kind)
    rows = make(count, as_text=as_text)
    arguments = config_class(
        output_dir=str(out),
        max_steps=setup.NUM_STEPS,
        per_device_train_batch_size=batch_size,
        learning_rate=setup.learning_rate(name, kind),
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim=setup.OPTIMIZERS[kind],
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=128,
        seed=0,
        **setup.CASES[name][2],
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if kind == "smollm2":
        # Its own padding also ends answers, and transformers takes a row's last token that is not
        # padding for its end: a reward would be read one token too early.
        tokenizer.pad_token = "<|endoftext|>"
    if as_text and name not in setup.AS_TEXT:
        # Their newer trainers leave the first token to the tokenizer, the older ones put it there.
        for row in rows:
            row["prompt"] = tokenizer.bos_token + row["prompt"]
    if name == "reward":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32
        )
        with torch.no_grad():
            model.score.weight.copy_(setup.reward_head(model.config.hidden_size, kind))
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    # Its row would get no gradient where padding is a token with a meaning, as SmolLM2's is.
    model.get_input_embeddings().padding_idx = None
    trainer = Recording(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return {"loss": losses, "grad_norm": norms}


def main() -> None:
    """Write tests/training/oracles/preference_KIND.json, objective by objective."""
    torch.set_num_threads(1)
    kind = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    names = sys.argv[2:] or list(setup.CASES)
    path = ORACLES / f"preference_{kind}.json"
    ORACLES.mkdir(exist_ok=True)
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept["versions"] = {p: version(p) for p in ("trl", "transformers", "torch")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        if kind == "tiny":
            setup.write_tiny(folder)
        else:
            from lmworks.models.load import load_language_model
            from lmworks.models.save import save_model
            from lmworks.tokenizers.load import load_tokenizer

            tokenizer = load_tokenizer("smollm2-135m")
            save_model(load_language_model("smollm2-135m"), folder, tokenizer=tokenizer)
        for name in names:
            kept[name] = ask(name, kind, folder, Path(place) / "out")
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(name, kept[name]["loss"][:2], kept[name]["loss"][-1], file=sys.stderr)


if __name__ == "__main__":
    main()
