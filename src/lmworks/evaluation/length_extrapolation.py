"""Stage `length_extrapolation`: how far beyond its context each way of telling positions carries.

One small model is trained per scheme and seed, all on the same batches at a short context, and
measured on the same long windows of held-out text: bits per byte by position. The scalings of
rotary positions are put into the models trained with them, without more training.

A window that is read whole gives one loss for each position, with all before it in sight; what a
model that knows its way gains from a longer past shows as a falling curve. Windows follow each
other in the held-out text; those of one document are drawn together for the intervals.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError, unknown_name
from lmworks.core.stages import Run, stage
from lmworks.evaluation.position_schemes import SCHEMES
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_HEAD_DIM = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthExtrapolationConfig:
    """Train one small model per position scheme, and measure far beyond the trained context.

    Examples:
        lmworks eval positions --corpus runs/corpus --tokenizer runs/tokenizer --out runs/positions
        lmworks eval positions --corpus runs/corpus --tokenizer runs/tokenizer \\
            --context-length 64 --test-length 512 --num-steps 200 --seeds 2
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    schemes: list[str] = option(
        [*SCHEMES], help="to train; the scalings of rope come with it, untrained"
    )
    context_length: int = option(128, help="tokens of a training row")
    test_length: int = option(1024, help="tokens of a test window")
    depth: int = option(3, help="layers of each model; width is 64 x depth")
    num_steps: int = option(400, help="training steps of each model")
    batch_size: int = option(16, help="rows per step")
    seeds: int = option(3, help="models per scheme")
    max_windows: int = option(48, help="test windows, evenly over the held-out text; 0 takes all")
    seed: int = option(0, help="of the first model; same seed, same bytes")
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("length_extrapolation", makes="report")
def length_extrapolation(config: LengthExtrapolationConfig, run: Run) -> dict[str, Any]:
    """Train, measure, compare; see LengthExtrapolationConfig."""
    from lmworks.evaluation.length_report import Measured, summary, write
    from lmworks.evaluation.variants import measured_once
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    _check(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["tokenizer"])
    windows = long_windows(run.inputs["corpus"] / "heldout.jsonl", tokenizer, config)
    found: dict[str, list[Any]] = {}
    for scheme in config.schemes:
        for number in range(config.seeds):
            bits_of = measured_once(
                run,
                f"{scheme}-{number}",
                lambda s=scheme, n=number: _measured(config, run, tokenizer, windows, s, n),  # type: ignore[misc]
            )
            for name, bits in bits_of.items():
                found.setdefault(name, []).append(bits)
    measured = Measured.of(found, windows, config.context_length)
    write(run.folder, measured, config)
    return summary(measured)


def _check(config: LengthExtrapolationConfig) -> None:
    from lmworks.evaluation.variants import check_names

    for scheme in config.schemes:
        if scheme not in SCHEMES:
            raise unknown_name("position scheme", scheme, SCHEMES)
    check_names("schemes", config.schemes, config.seeds)
    if config.max_windows < 0:
        raise UserError("max_windows must be 0 (all) or more")
    if config.context_length < 8 or config.test_length % config.context_length:
        raise UserError(
            f"test_length {config.test_length} must be a multiple of context_length "
            f"{config.context_length}, and that at least 8"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongWindows:
    """Long stretches of held-out text.

    Attributes:
        ids: (windows, test_length + 1) int64; the first token of each is only read.
        num_bytes: (windows, test_length) bytes of each token that is predicted; 0: not counted.
        groups: (windows,) the document in which each begins.
    """

    ids: np.ndarray
    num_bytes: np.ndarray
    groups: np.ndarray


def long_windows(
    path: Path, tokenizer: PipelineTokenizer, config: LengthExtrapolationConfig
) -> LongWindows:
    """Windows that follow each other, evenly drawn if there are too many.

    Raises: UserError when the held-out text is shorter than one window.
    """
    import numpy as np

    from lmworks.data.documents import read_documents
    from lmworks.training.tokens import document_separator

    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`")
    separator = document_separator(tokenizer)
    documents = list(read_documents(path))
    encoded = [[separator, *ids] for ids in tokenizer.encode_batch([d.text for d in documents])]
    stream = np.array([i for ids in encoded for i in ids], dtype=np.int64)
    owner = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
    count = (len(stream) - 1) // config.test_length
    if not count:
        raise UserError(
            f"{path} has {len(stream)} tokens, fewer than one window of {config.test_length}: "
            "add text, or lower --test-length"
        )
    picked = np.arange(count)
    if config.max_windows and config.max_windows < count:
        picked = np.linspace(0, count - 1, config.max_windows).round().astype(int)
    starts = picked * config.test_length
    ids = np.stack([stream[at : at + config.test_length + 1] for at in starts])
    sizes = np.zeros(int(stream.max()) + 1, dtype=np.int64)
    for token_id in np.unique(stream).tolist():
        if token_id != separator:
            sizes[token_id] = len(tokenizer.token_bytes(token_id))
    names = [documents[i].group or documents[i].id for i in owner[starts]]
    return LongWindows(ids=ids, num_bytes=sizes[ids[:, 1:]], groups=np.array(names, dtype=str))


def _measured(
    config: LengthExtrapolationConfig,
    run: Run,
    tokenizer: PipelineTokenizer,
    windows: LongWindows,
    scheme: str,
    number: int,
) -> dict[str, np.ndarray]:
    """name -> (windows, test_length) bits, of one model and what is made of it."""
    from lmworks.evaluation.position_schemes import scalings, stretched

    model = _trained(config, run, tokenizer, scheme, number)
    models = {scheme: model}
    if scheme == "rope":
        stretches = scalings(config.context_length, config.test_length)
        models |= {f"rope, {name}": stretched(model, how) for name, how in stretches.items()}
    return {name: _bits(each, windows) for name, each in models.items()}


def _bits(model: Model, windows: LongWindows) -> np.ndarray:
    """(windows, test_length) float64: what each token costs; 0 where it is not counted."""
    import math

    import numpy as np

    from lmworks.inference.logprobs import decoder_logprobs

    nats = decoder_logprobs(model, window=windows.num_bytes.shape[1])([*windows.ids])
    bits: np.ndarray = -np.stack(nats) / math.log(2) * (windows.num_bytes > 0)
    return bits


def _trained(
    config: LengthExtrapolationConfig,
    run: Run,
    tokenizer: PipelineTokenizer,
    scheme: str,
    number: int,
) -> Model:
    import torch

    from lmworks.evaluation.position_schemes import with_scheme
    from lmworks.evaluation.variants import train
    from lmworks.models.model import Model
    from lmworks.training.pretrain import model_config

    settings = _settings(config, number)
    plain = model_config(settings, tokenizer.vocab_size)
    model = Model(with_scheme(plain, scheme, config.test_length))
    model.reset_parameters(torch.Generator().manual_seed(settings.seed))
    label = f"{scheme}, seed {settings.seed}"
    name = f"{scheme}-{number}"
    train(settings, run, tokenizer, name=name, label=label, model=model, looks=False)
    return model


def _settings(config: LengthExtrapolationConfig, number: int) -> PretrainConfig:
    """The training of model `number`; heads are small, so that ALiBi has several slopes."""
    heads = 64 * config.depth // _HEAD_DIM
    return PretrainConfig(
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        depth=config.depth,
        context_length=config.context_length,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed + number,
        shape=Shape(num_attention_heads=heads, num_key_value_heads=heads),
        loop=config.loop,
    )
