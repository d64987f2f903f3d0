"""Stage `pretrain`: a corpus and a tokenizer in, a model trained from scratch out.

One dial, `depth`: width, heads and feed-forward follow from it. `shape` overrides any of them. What
is learnt is an objective; which kind of model learns it follows from that (`training.learning`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core import processes
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.training.curriculum.config import Curriculum, MixtureConfig, PacingConfig
from lmworks.training.fitting import fit_stage
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.config import ModelConfig
    from lmworks.models.config.patterns import Sizes
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.batches import Rows
    from lmworks.training.curriculum.base import Windows
    from lmworks.training.history import History
    from lmworks.training.objectives.base import Objective

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

    def sizes(self, depth: int, context_length: int) -> Sizes:
        """All sizes of a model of `depth` layers."""
        from lmworks.models.config.patterns import HEAD_DIM, Sizes

        values = dataclasses.asdict(self)
        values["hidden_size"] = self.hidden_size or HEAD_DIM * depth
        return Sizes(context_length=context_length, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a model from scratch on a corpus: Llama's layers, or any pattern of others.

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
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --objective masked --set settings.whole_words=true --packing documents
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    depth: int = option(4, help="layers; the one dial of size: width is 64 x depth")
    layers: str = option("attention", help="pattern of layers, gone through to the depth")
    objective: str = option(
        "causal",
        help="causal, masked, prefix, permutation, replaced_token or span_corruption",
    )
    architecture: Literal["auto", "decoder", "encoder", "encoder-decoder"] = option(
        "auto", help="kind of model; auto takes the objective's own"
    )
    packing: Literal["stream", "documents"] = option(
        "stream", help="whether documents in a row see each other, or each only itself"
    )
    settings: dict[str, Any] = option({}, help="of the objective, such as share=0.3", flag=False)
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
    """The architecture that objective, dial, pattern and overrides describe.

    Width is 64 x depth; the rest follows, see `models.config.patterns.Sizes`. Of a generator and a
    discriminator it is the latter's.
    """
    from lmworks.training.learning import config_for, objective_for

    return config_for(config, *objective_for(config), vocab_size)


def sizes_of(config: PretrainConfig) -> Sizes:
    """What the dial and its overrides say of the sizes."""
    return config.shape.sizes(config.depth, config.context_length)


def new_model(config: PretrainConfig, vocab_size: int) -> Any:
    """The model before training; its weights depend only on the config and the seed.

    Returns: a `Model`, or a `GeneratorDiscriminator` where tokens are replaced.
    """
    import torch

    from lmworks.training.learning import build_model

    model = build_model(config, vocab_size)
    model.reset_parameters(torch.Generator().manual_seed(config.seed))
    return model


@stage("pretrain", makes="model", many_processes=True)
def pretrain(config: PretrainConfig, run: Run) -> dict[str, Any]:
    """Train from scratch; see PretrainConfig."""
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.callbacks.samples import watch_text
    from lmworks.training.learning import heldout_metrics, prepare, save
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    learning = prepare(config, load_tokenizer(run.inputs["tokenizer"]))
    tokenizer = learning.tokenizer
    model = new_model(config, tokenizer.vocab_size)
    tokens, windows, num_steps = text_of(config, run, tokenizer)
    heldout = cached_stream(run.inputs["corpus"] / "heldout.jsonl", tokenizer, run.work)
    batches = learning.batches(windows, config.seed)
    looked = learning.heldout(heldout, context_length=config.context_length, count=_HELDOUT_WINDOWS)
    fitted = fit_stage(
        model,
        learning.objective,
        batches,
        config,
        work=run.work,
        label="pre-training",
        num_steps=num_steps,
        heldout=looked,
        **watch_text(tokenizer, looked, config.loop),
    )
    metrics = fitted.metrics
    read = num_steps * config.batch_size * config.context_length
    metrics["epochs"] = round(read / len(tokens), 3)
    metrics["corpus_tokens"] = len(tokens)
    metrics |= heldout_metrics(model, learning, looked)
    save(model, run.folder, learning, _card(config, learning.architecture, metrics))
    fitted.write(run.folder)
    return metrics


def text_of(
    config: PretrainConfig, run: Run, tokenizer: Tokenizer, *, work: Path | None = None
) -> tuple[np.ndarray, Windows, int]:
    """The corpus's tokens, the windows that each step reads, and how many steps there are.

    Args:
        work: keeps what the curriculum makes, if not in the run's own; tokens are the run's.
    """
    from lmworks.data.documents import read_documents
    from lmworks.training.curriculum.base import with_curriculum
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
    model: Any,
    batches: Callable[[int], Rows],
    heldout: np.ndarray | Sequence[Rows],
    config: PretrainConfig,
    *,
    objective: Objective | None = None,
    num_steps: int,
    work: Path,
    label: str,
    tokenizer: Tokenizer | None = None,
) -> History:
    """Train `model` in place, with a look at held-out text now and then.

    Args:
        heldout: fixed batches; or (N,) held-out tokens, whose first windows are looked at.
        objective: what is learnt; next tokens by default.
        work: folder of checkpoints, gone on from if there are some.
        tokenizer: to show batches and samples as text.
    """
    from lmworks.training.callbacks.samples import watch_text
    from lmworks.training.objectives.causal import causal
    from lmworks.training.tokens import leading_windows

    windows: Any = heldout
    if not isinstance(heldout, Sequence):
        windows = leading_windows(
            heldout, context_length=config.context_length, count=_HELDOUT_WINDOWS
        )
    return fit_stage(
        model,
        objective or causal,
        batches,
        config,
        work=work,
        label=label,
        num_steps=num_steps,
        heldout=windows,
        **(watch_text(tokenizer, windows, config.loop) if tokenizer else {}),
    ).history


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


def _card(config: PretrainConfig, architecture: str, metrics: dict[str, Any]) -> str:
    from lmworks.training.learning import KINDS

    article = "An" if architecture[0] == "e" else "A"
    learnt = "" if config.objective == "causal" else f", objective {config.objective},"
    return (
        f"{article} {architecture} ({config.layers}){learnt} with "
        f"{metrics['num_parameters'] / 1e6:.1f} M parameters, trained from scratch for "
        f"{metrics['num_steps']} steps ({metrics['num_targets']:,} tokens) on the corpus "
        f"`{Path(config.corpus).name}`. {KINDS[architecture]}"
    )
