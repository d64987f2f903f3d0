"""`compare`: two models on the same tokens, the first operation that differs, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.config import ModelConfig
from lmworks.models.parity.differences import NOISE as TOLERANCES
from lmworks.models.parity.differences import difference
from lmworks.models.parity.explain import Explained, explain
from lmworks.models.parity.facts import FieldFact, TensorFact, config_facts, tensor_facts
from lmworks.models.parity.pair import Known, Pair
from lmworks.models.parity.report import DIFFERS, EQUAL, NOISE, Operation, Report
from lmworks.models.parity.sides import Port, Side, open_sides
from lmworks.models.parity.trial import NO_CHANGE, stage_names, stage_of
from lmworks.models.parity.verdict import lines_of, verdict

TEXT = "The parser reads 3 words, then it stops: is that right? Yes, “naïve” counts as one word."
LENGTH = 24  # tokens, unless a window asks for more
_MOST_FOR_WINDOW = 300


def compare(
    a: str | Path | nn.Module | Port,
    b: str | Path | nn.Module | Port,
    *,
    text: str = "",
    input_ids: Sequence[int] = (),
    length: int = 0,
    seed: int = 0,
    names: tuple[str, str] = ("", ""),
) -> Report:
    """Run both and find the first operation that differs, with tested causes.

    Args:
        a, b: a reference to weights (a GGUF file ending in `:packed` is run packed),
            `transformers:REF`, a `Model`, a module of transformers, or (one of them) a `Port`.
        text: what is read, by the tokenizer of a; a built-in text by default, or ids drawn with
            `seed` where a has no tokenizer.
        input_ids: token ids instead of a text.
        length: how many tokens; by default 24, or enough to leave a sliding window.
        names: what the two are called in the report.
    Raises: UserError for a reference that gives no weights, an architecture that isn't known, or
        token ids outside the vocabulary.
    """
    side_a, side_b = open_sides(a, b, names)
    ids = _token_ids(side_a, side_b, a, text, input_ids, length, seed)
    traces = [_trace(side, ids) for side in (side_a, side_b)]
    known = [_known(side) for side in (side_a, side_b)]
    facts = _facts(*known)
    pair = Pair(
        ids=ids,
        names=(side_a.name, side_b.name),
        traces=(traces[0], traces[1]),
        known=(known[0], known[1]),
        rounded=tuple(fact.name for fact in facts[1] if fact.rounding),
    )
    return _judge(pair, facts)


def _trace(side: Side, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def record(name: str, value: torch.Tensor) -> None:
        found.setdefault(name, value)

    side.run(ids, record)
    return found


def _known(side: Side) -> Known:
    return Known(config=side.config, state=side.state(), own=side.own)


def _facts(a: Known, b: Known) -> tuple[list[FieldFact], list[TensorFact]]:
    fields = config_facts(a.config, b.config) if a.config and b.config else []
    tensors = tensor_facts(a.state, b.state) if a.state and b.state else []
    return fields, tensors


def _judge(pair: Pair, facts: tuple[list[FieldFact], list[TensorFact]]) -> Report:
    operations: list[Operation] = []
    explained: Explained | None = None
    for name in _order(pair):
        one, other = (trace[name] for trace in pair.traces)
        found = difference(one, other)
        status = EQUAL if found.relative <= TOLERANCES[other.dtype] else DIFFERS
        if status == DIFFERS and explained is None:
            if _carried(name, pair):
                status = NOISE
            else:
                explained = explain(name, pair)
        size = one.shape[-1] if one.dim() == 4 else None
        operations.append(Operation(name=name, status=status, difference=found, head_dim=size))
    if not operations:
        raise UserError("the two have no operation in common: are the names of the port right?")
    first = next((o for o in operations if o.status == DIFFERS), None)
    return Report(
        a=pair.names[0],
        b=pair.names[1],
        tokens=tuple(pair.ids[0].tolist()),
        operations=tuple(operations),
        first=first.name if first else "",
        causes=tuple(explained.causes) if explained else (),
        facts=tuple(lines_of(*facts)),
        verdict=verdict(operations, first, explained, facts),
        tried=explained.tried if explained else 0,
    )


def _order(pair: Pair) -> list[str]:
    """The operations of both, in the order in which a model of ours computes them."""
    leading = 1 if pair.known[1].own and not pair.known[0].own else 0
    return [name for name in pair.traces[leading] if name in pair.traces[1 - leading]]


def _carried(operation: str, whole: Pair) -> bool:
    """Whether the operation is the same if both sides are given what the port was given."""
    pair, operation = whole.around(operation)
    name = stage_of(operation)
    for reference in (0, 1):
        stage = pair.stage(name, reference)
        apart = (stage.run(NO_CHANGE) or {}) if stage and not stage.skipped else {}
        local = stage_names(operation, name)
        if local in apart:
            return apart[local] <= TOLERANCES[pair.traces[1 - reference][operation].dtype]
    return False


def _token_ids(
    side_a: Side,
    side_b: Side,
    a: Any,
    text: str,
    input_ids: Sequence[int],
    length: int,
    seed: int,
) -> torch.Tensor:
    configs = [side.config for side in (side_a, side_b) if side.config is not None]
    vocab_size = min(config.vocab_size for config in configs)
    wanted = length or _length(configs)
    ids = list(input_ids)
    if not ids:
        ids = _read(a, text)
    if not ids:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocab_size, (wanted,), generator=generator).tolist()
    if not input_ids:
        ids = (ids * (wanted // len(ids) + 1))[:wanted]
    if max(ids) >= vocab_size or min(ids) < 0:
        raise UserError(
            f"token id {max(ids)} is outside the vocabulary of {vocab_size}: are these the "
            "tokens of the models' own tokenizer?"
        )
    while len(ids) > 1 and len(ids) in _sizes(configs):
        ids = ids[:-1]  # so that positions are not taken for heads
    return torch.tensor([ids])


def _sizes(configs: Sequence[ModelConfig]) -> set[int]:
    mixers: list[Any] = [layer.mixer for config in configs for layer in config.layers]
    names = ("num_attention_heads", "num_key_value_heads")
    return {getattr(mixer, name, 0) for mixer in mixers for name in names}


def _length(configs: Sequence[ModelConfig]) -> int:
    """24, more where a window can be left by it, less where there are not so many positions."""
    patterns = [getattr(x.mixer, "pattern", None) for c in configs for x in c.layers]
    windows = [getattr(pattern, "window", 0) for pattern in patterns]
    near = [window for window in windows if 0 < window <= _MOST_FOR_WINDOW - 8]
    most = min(config.max_position_embeddings for config in configs)
    return max(1, min(max([LENGTH, *(window + 8 for window in near)]), most))


def _read(a: Any, text: str) -> list[int]:
    """The text's ids by the tokenizer of a, or [] where it has none."""
    from lmworks.tokenizers.load import load_tokenizer

    if isinstance(a, nn.Module | Port):
        if text:
            raise UserError("a module has no tokenizer: give input_ids instead of a text")
        return []
    try:
        tokenizer = load_tokenizer(str(a).removeprefix("transformers:").removesuffix(":packed"))
    except UserError:
        if text:
            raise
        return []
    return list(tokenizer.encode(text or TEXT))
