"""Stage `embed`: an encoder whose vectors are near for texts that belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core import progress
from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.training.fitting import fit_stage, fixed_batches, steps_of
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.embedding_rows import Triples
    from lmworks.training.objectives.base import Objective

_CAREFUL = LoopConfig(
    warmup_steps=20,
    eval_every=50,
    schedule="linear",
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.01),
)
_HELDOUT_ROWS = 512
_ENCODED_ROWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Train an encoder of texts on pairs that belong together.

    Rows are `anchor` (or `query`), `positive` and perhaps `negative`; or conversations, whose
    question belongs to its answer. The folder that comes out is read by sentence-transformers.

    Examples:
        lmworks train embed --model runs/base --pairs runs/questions --out runs/encoder
        lmworks train embed --model bert --pairs pairs.jsonl --dimensions '[256, 128, 64]'
        lmworks train embed --model runs/base --pairs triplets.jsonl --objective triplet
    """

    model: str = option(role=REFERENCE, help="the model to start from: an encoder, or a decoder")
    pairs: str = option(role=REFERENCE, help="folder with train.jsonl, or a .jsonl file")
    objective: Literal["in_batch", "triplet"] = option("in_batch", help="what is learnt")
    pooling: Literal["auto", "mean", "first", "last"] = option(
        "auto", help="which states make the vector; auto: the model's own, else the mean"
    )
    dimensions: list[int] = option([], help="sizes at which vectors can be cut off (Matryoshka)")
    settings: dict[str, Any] = option({}, help="the objective's other settings", flag=False)
    max_length: int = option(256, help="tokens of a text, the rest is cut off")
    skip_bad: bool = option(False, help="leave out and count rows that can't be used")
    heldout: float = option(0.1, help="share to hold out where there is no heldout.jsonl")
    epochs: float = option(1.0, help="passes over the rows, unless --num-steps is given")
    num_steps: int = option(0, help="training steps; 0 derives them from --epochs")
    batch_size: int = option(32, help="rows per step; each is a wrong answer to all others")
    seed: int = option(0, help="same seed, same bytes")
    loop: LoopConfig = option(_CAREFUL, help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("embed", makes="model", many_processes=True)
def embed(config: EmbedConfig, run: Run) -> dict[str, Any]:
    """Train an encoder; see EmbedConfig."""
    from lmworks.models.load import load_single_model
    from lmworks.models.sentence_transformers import save_sentence_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.embedding_rows import Triples, as_triple
    from lmworks.training.row_files import read_split
    from lmworks.training.threads import set_threads

    objective, loop = _objective(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = embedding_model(load_single_model(run.inputs["model"]), config.pooling)
    split = read_split(
        run.inputs["pairs"],
        lambda where, row: [as_triple(where, row)],
        heldout=config.heldout,
        seed=config.seed,
        skip_bad=config.skip_bad,
    )
    length = min(config.max_length, model.config.max_position_embeddings)
    data, heldout = (
        Triples(rows, tokenizer, length=length, batch_size=config.batch_size, seed=config.seed)
        for rows in (split.train, split.heldout[:_HELDOUT_ROWS])
    )
    if data.num_cut:
        progress.say(f"  {data.num_cut} texts are cut at {length} tokens")
    before = retrieval(model, heldout)
    fitted = fit_stage(
        model,
        objective,
        data,
        config,
        work=run.work,
        label="encoder",
        num_steps=steps_of(config, data.order.batches_per_epoch),
        # A batch of a single row says nothing.
        heldout=[batch for batch in fixed_batches(heldout) if batch.num_rows > 1],
        loop=loop,
    )
    metrics = fitted.metrics | {
        "num_rows": len(data),
        "num_heldout": len(heldout),
        "num_bad": split.num_bad,
        "num_cut": data.num_cut,
    }
    after = retrieval(model, heldout)
    metrics |= {f"heldout_{name}_before": value for name, value in before.items()}
    metrics |= {f"heldout_{name}": value for name, value in after.items()}
    for size in config.dimensions:
        found = retrieval(model, heldout, size)
        metrics |= {f"heldout_{name}_{size}": value for name, value in found.items()}
    save_sentence_model(
        model, run.folder, tokenizer=tokenizer, max_length=length, card=_card(config, metrics)
    )
    fitted.write(run.folder)
    return metrics


def _objective(config: EmbedConfig) -> tuple[Objective, LoopConfig]:
    """The objective and the loop; one that needs its batch whole cuts it by itself."""
    from lmworks.training.objectives.base import build_objective

    settings: dict[str, Any] = {"dimensions": config.dimensions, **config.settings}
    loop = config.loop
    if config.objective == "in_batch":
        if config.batch_size < 2:
            raise UserError("batch_size = 1: in a batch of one there is nothing to tell apart")
        settings.setdefault("rows_at_once", loop.micro_batch_size)
        loop = dataclasses.replace(loop, micro_batch_size=0)
    return build_objective(config.objective, settings), loop


def embedding_model(model: Model, pooling: str) -> Model:
    """`model` with a vector of length one for a head.

    Raises: UserError for an encoder-decoder, or a model that reads no text.
    """
    from lmworks.models.config import (
        EmbeddingHeadConfig,
        FirstPooling,
        LastPooling,
        MeanPooling,
        Pooling,
    )
    from lmworks.models.new_head import with_head

    if model.config.encoder is not None or model.config.inputs is not None:
        raise UserError("an encoder of texts is made of an encoder or a decoder of texts")
    poolings: dict[str, Pooling] = {
        "mean": MeanPooling(),
        "first": FirstPooling(),
        "last": LastPooling(),
    }
    own = model.config.head
    if pooling == "auto":
        if isinstance(own, EmbeddingHeadConfig):
            return model
        pooling = "mean"
    return with_head(model, EmbeddingHeadConfig(pooling=poolings[pooling], normalize=True))


def retrieval(model: Model, heldout: Triples, size: int = 0) -> dict[str, float]:
    """How well anchors find their own text among all held-out ones: recall at 1 and 10, MRR.

    Args:
        size: look at the first so many numbers of the vectors; 0 for all.
    """
    ranks = ranks_of(model, heldout, size)
    if not len(ranks):
        return {}
    return {
        "recall_at_1": sum(rank == 1 for rank in ranks) / len(ranks),
        "recall_at_10": sum(rank <= 10 for rank in ranks) / len(ranks),
        "mrr": sum(1 / rank for rank in ranks) / len(ranks),
    }


def ranks_of(model: Model, heldout: Triples, size: int = 0) -> Sequence[int]:
    """Each row's rank of its positive among all distinct texts, from 1; ties count against."""
    import torch
    import torch.nn.functional as F

    if not len(heldout):
        return []
    texts = [*dict.fromkeys(t for row in heldout.rows for t in (row.positive, *row.negatives))]
    place = {text: index for index, text in enumerate(texts)}
    device = next(model.parameters()).device

    def vectors(strings: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(strings), _ENCODED_ROWS):
            part = heldout.texts(strings[start : start + _ENCODED_ROWS]).to(device)
            found.append(model(part.input_ids, attention_mask=part.attention_mask).float())
        return F.normalize(torch.cat(found)[:, : size or None], dim=-1)

    model.eval()
    with torch.no_grad():
        scores = vectors([row.anchor for row in heldout.rows]) @ vectors(texts).T
        own = torch.tensor([place[row.positive] for row in heldout.rows], device=device)
        return (scores >= scores.gather(1, own[:, None])).sum(dim=1).tolist()


def _card(config: EmbedConfig, metrics: Mapping[str, Any]) -> str:
    text = (
        f"An encoder of texts from `{Path(config.model).name}`, trained for "
        f"{metrics['num_steps']} steps on {metrics['num_rows']} rows of "
        f"`{Path(config.pairs).name}` ({config.objective}). Cosines tell what belongs together."
    )
    if "heldout_recall_at_1" in metrics:
        text += (
            f" Of {metrics['num_heldout']} held-out texts {metrics['heldout_recall_at_1']:.1%} "
            f"find their own first ({metrics['heldout_recall_at_1_before']:.1%} before)."
        )
    return text
