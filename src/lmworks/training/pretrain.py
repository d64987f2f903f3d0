"""Stage `pretrain`: a corpus and a tokenizer in, a decoder trained from scratch out.

One dial, `depth`: width, heads and feed-forward follow from it. `shape` overrides any of them.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core import processes
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json
from lmworks.core.stages import Run, stage
from lmworks.training.curriculum_config import Curriculum, MixtureConfig, PacingConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.config import ModelConfig
    from lmworks.models.config.patterns import Sizes
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.curriculum import Windows
    from lmworks.training.history import History

_HELDOUT_WINDOWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that override what `depth` implies; 0 leaves a size to the dial."""

    hidden_size: int = option(0, help="width of the residual stream")
    num_attention_heads: int = option(0, help="query heads")
    num_key_value_heads: int = option(0, help="key and value heads (fewer: grouped-query)")
    intermediate_size: int = option(0, help="width of the feed-forward")
    window: int = option(0, help="positions of a sliding window (a quarter of the context)")
    num_experts: int = option(8, help="experts of a layer that has some")
    num_experts_per_tok: int = option(2, help="experts that a token goes through")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a decoder from scratch on a corpus: Llama's layers, or any pattern of others.

    Examples:
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer --out runs/base
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer --depth 6 --epochs 2
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --set loop.optimizer.name=adamw
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --layers 'window*3,attention'
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --layers attention+moe --set shape.num_experts=16
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --curriculum mixture --set 'mixture.weights={chat: 1, "*": 9}' \\
            --set 'mixture.final_weights={chat: 1}' --set mixture.change_from=0.8
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    depth: int = option(4, help="layers; the one dial of size: width is 64 x depth")
    layers: str = option("attention", help="pattern of layers, gone through to the depth")
    context_length: int = option(256, help="tokens the model can look back")
    epochs: float = option(1.0, help="passes over the corpus, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(8, help="rows of context_length tokens per step")
    seed: int = option(0, help="same seed, same bytes")
    curriculum: Curriculum = option("uniform", help="what the order of the text follows")
    curriculum_reference: str = option(
        "",
        role=REFERENCE,
        help="perplexity: a model to read with (else an n-gram); quality: a file of scores",
    )
    pacing: PacingConfig = option(PacingConfig(), help="how fast the text opens", flag=False)
    mixture: MixtureConfig = option(MixtureConfig(), help="parts of sources", flag=False)
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


def model_config(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    """The architecture that the dial, the pattern and the overrides describe.

    Width is 64 x depth; the rest follows, see `models.config.patterns.Sizes`.
    """
    from lmworks.models.config.patterns import decoder_config

    return decoder_config(
        config.layers, depth=config.depth, vocab_size=vocab_size, sizes=sizes_of(config)
    )


def sizes_of(config: PretrainConfig) -> Sizes:
    """What the dial and its overrides say of the sizes."""
    from lmworks.models.config.patterns import HEAD_DIM, Sizes

    shape = config.shape
    return Sizes(
        hidden_size=shape.hidden_size or HEAD_DIM * config.depth,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        intermediate_size=shape.intermediate_size,
        context_length=config.context_length,
        window=shape.window,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
    )


def new_model(config: PretrainConfig, vocab_size: int) -> Model:
    """The model before training; its weights depend only on the config and the seed."""
    import torch

    from lmworks.models.model import Model

    model = Model(model_config(config, vocab_size))
    model.reset_parameters(torch.Generator().manual_seed(config.seed))
    return model


@stage("pretrain", makes="model", many_processes=True)
def pretrain(config: PretrainConfig, run: Run) -> dict[str, Any]:
    """Train from scratch; see PretrainConfig."""
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    threads = set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["tokenizer"])
    tokens, batches, num_steps = text_of(config, run, tokenizer)
    heldout = cached_stream(run.inputs["corpus"] / "heldout.jsonl", tokenizer, run.work)
    model = new_model(config, tokenizer.vocab_size)
    started = time.monotonic()
    history = fit(
        model,
        batches,
        heldout,
        config,
        num_steps=num_steps,
        work=run.work,
        label="pre-training",
        tokenizer=tokenizer,
    )
    seconds = time.monotonic() - started
    metrics = summary(history, model, num_steps=num_steps, seconds=seconds, threads=threads)
    read = num_steps * config.batch_size * config.context_length
    metrics["epochs"] = round(read / len(tokens), 3)
    metrics["corpus_tokens"] = len(tokens)
    save_model(model, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    write_json(run.folder / "history.json", dataclasses.asdict(history))
    return metrics


def text_of(
    config: PretrainConfig, run: Run, tokenizer: Tokenizer, *, work: Path | None = None
) -> tuple[np.ndarray, Windows, int]:
    """The corpus's tokens, the windows that each step reads, and how many steps there are.

    Args:
        work: keeps what the curriculum makes, if not in the run's own; tokens are the run's.
    """
    from lmworks.data.documents import read_documents
    from lmworks.training.curriculum import with_curriculum
    from lmworks.training.tokens import PackedWindows

    path = run.inputs["corpus"] / "train.jsonl"
    tokens = cached_stream(path, tokenizer, run.work)
    plain = PackedWindows(
        tokens,
        context_length=config.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    num_steps = config.num_steps or max(1, round(config.epochs * plain.batches_per_epoch))
    windows = with_curriculum(
        config,
        plain,
        lambda: list(read_documents(path)),
        tokens,
        tokenizer,
        num_steps=num_steps,
        reference=run.inputs.get("curriculum_reference"),
        work=work or run.work,
    )
    return tokens, windows, num_steps


def fit(
    model: Model,
    batches: Windows,
    heldout: np.ndarray,
    config: PretrainConfig,
    *,
    num_steps: int,
    work: Path,
    label: str,
    tokenizer: Tokenizer | None = None,
) -> History:
    """Train `model` in place on next tokens, with a look at held-out text now and then.

    Args:
        heldout: (N,) held-out tokens; their first windows are looked at.
        work: folder of checkpoints, gone on from if there are some.
        tokenizer: to show batches and samples as text.
    """
    from lmworks.training.callbacks.samples import watch_text
    from lmworks.training.objectives.causal import causal
    from lmworks.training.tokens import leading_windows
    from lmworks.training.trainer import Trainer

    windows = leading_windows(heldout, context_length=config.context_length, count=_HELDOUT_WINDOWS)
    return Trainer(
        model,
        causal,
        batches,
        config.loop,
        num_steps=num_steps,
        heldout=windows,
        work=work,
        seed=config.seed,
        checkpoint_every_s=config.checkpoint_every_s,
        **(watch_text(tokenizer, windows, config.loop) if tokenizer else {}),
    ).fit(label)


def cached_stream(path: Path, tokenizer: Tokenizer, work: Path) -> np.ndarray:
    """`token_stream` of a corpus file, kept in `work` so that a resume need not tokenize again."""
    import numpy as np

    from lmworks.core.files import atomic_open
    from lmworks.data.documents import read_documents
    from lmworks.training.tokens import token_stream

    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`")
    cache = work / f"{path.stem}.npy"
    with processes.main_first():
        if not cache.is_file():
            tokens = token_stream(read_documents(path), tokenizer)
            with atomic_open(cache) as file:
                np.save(file, tokens)
    stream: np.ndarray = np.load(cache, mmap_mode="r", allow_pickle=False)
    return stream


def summary(
    history: History, model: Model, *, num_steps: int, seconds: float, threads: int
) -> dict[str, Any]:
    """The figures of a training that its manifest keeps. Losses in nats per target token."""
    recent = history.loss[-max(1, len(history.loss) // 20) :]
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": num_steps,
        "num_targets": history.num_targets,
        "train_loss": sum(recent) / len(recent),
        "heldout_loss": history.heldout_loss[-1] if history.heldout_loss else None,
        "targets_per_s": round(history.num_targets / max(seconds, 1e-9), 1),
        "threads": threads,
    }


def _card(config: PretrainConfig, metrics: dict[str, Any]) -> str:
    return (
        f"A decoder ({config.layers}) with {metrics['num_parameters'] / 1e6:.1f} M parameters, "
        f"trained from scratch for {metrics['num_steps']} steps "
        f"({metrics['num_targets']:,} tokens) on the corpus "
        f"`{Path(config.corpus).name}`. It is a base model: it continues text."
    )
