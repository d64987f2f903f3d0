"""The changes that are tried on a stage: from what is known to differ down to what ports get wrong.

Each file `changes_of_*` yields those of one part. They are general: each stands for a whole kind of
mistake, and none knows where it would be made; that is what the trial finds out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models.config import LayerConfig, ModelConfig
from lmworks.models.parity.facts import fields_apart
from lmworks.models.parity.trial import EMBEDDING, END, Change, Stage, State

# Our fields -> what a config.json mostly calls them, for advice.
KEYS = {
    "theta": "rope_theta",
    "scaling": "rope_scaling",
    "fraction": "partial_rotary_factor",
    "eps": "rms_norm_eps (or layer_norm_eps)",
    "activation": "hidden_act",
    "window": "sliding_window",
    "pattern": "sliding_window",
    "bias": "attention_bias",
    "scale": "query_pre_attn_scalar (or the scale in code)",
    "softcap": "attn_logit_softcapping (or final_logit_softcapping)",
    "qk_norm": "use_qk_norm (or the model_type)",
    "rope": "rope_theta (or the model_type)",
}


def changes_of(stage: Stage, other: tuple[ModelConfig | None, State]) -> Iterator[Change]:
    """All that is tried on a stage.

    Args:
        other: the port's config and weights of the same stage, as far as they are known.
    """
    from lmworks.models.parity.changes_of_attention import attention_changes
    from lmworks.models.parity.changes_of_ends import embedding_changes, end_changes
    from lmworks.models.parity.changes_of_feed_forward import feed_forward_changes
    from lmworks.models.parity.changes_of_layers import layer_changes, skipped_layers
    from lmworks.models.parity.changes_of_norms import norm_changes
    from lmworks.models.parity.changes_of_weights import weight_changes

    yield from skipped_layers(stage)
    yield from known_changes(stage, *other)
    if stage.name == EMBEDDING:
        yield from embedding_changes(stage)
    elif stage.name == END:
        yield from end_changes(stage)
    else:
        yield from layer_changes(stage)
        yield from attention_changes(stage)
        yield from feed_forward_changes(stage)
    yield from norm_changes(stage)
    yield from weight_changes(stage)


def known_changes(stage: Stage, config: ModelConfig | None, state: State) -> Iterator[Change]:
    """The port's own fields and tensors, one by one, where they differ from the reference's."""
    if config is not None:
        for path, ours, theirs in _fields(stage.config, config):
            yield Change(
                cause=" ".join(path),
                says=f"has {'.'.join(path)} {told(theirs)} where the other has {told(ours)}",
                fix=f"set {KEYS.get(path[-1], path[-1])} to {told(ours)}",
                config=_setting(path, theirs),
                known=True,
            )
    for name in stage.state:
        if name in state and not _same(stage.state[name], state[name]):
            yield _known_tensor(stage, name, state)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape != b.shape or torch.equal(a, b)


def _known_tensor(stage: Stage, name: str, state: State) -> Change:
    from lmworks.models.parity.facts import _print, tensor_fact

    prints = {key: _print(tensor) for key, tensor in stage.state.items()}
    fact = tensor_fact(name, stage.state[name], state[name], prints)
    relation = fact.relation if fact else "other values"
    return Change(
        cause=f"weights {part_of(name)}",
        says=f"holds another {part_of(name)}: {relation}",
        fix=f"look at how {part_of(name)} is read",
        state=lambda ours: ours | {name: state[name]},
        known=True,
    )


def _fields(a: ModelConfig, b: ModelConfig) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    yield from fields_apart(a, b)
    for path, ours, theirs in fields_apart(a.layers[0], b.layers[0]):
        yield ("layers", *path), ours, theirs


def _setting(path: tuple[str, ...], value: Any) -> Any:
    def change(config: ModelConfig) -> ModelConfig:
        if path[0] == "layers":
            layer = _replaced(config.layers[0], path[1:], value)
            return dataclasses.replace(config, layers=(layer,))
        changed: ModelConfig = _replaced(config, path, value)
        return changed

    return change


def _replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    inner = _replaced(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: inner})


def part_of(name: str) -> str:
    """What a tensor of a stage is called in a sentence: `mixer.q_proj.weight`."""
    return name.removeprefix("layers.0.")


def told(value: Any) -> str:
    """A value of a config as text."""
    if isinstance(value, float):
        return f"{value:g}"
    if dataclasses.is_dataclass(value):
        fields = ", ".join(
            f"{f.name} {told(getattr(value, f.name))}" for f in dataclasses.fields(value)
        )
        return f"{getattr(value, 'kind', type(value).__name__)}({fields})"
    return "none" if value is None else str(value)


def in_layer(**fields: Any) -> Any:
    """The change of a stage's config that sets these fields of its layer."""

    def change(config: ModelConfig) -> ModelConfig:
        layer: LayerConfig = dataclasses.replace(config.layers[0], **fields)
        return dataclasses.replace(config, layers=(layer,))

    return change


def in_part(part: str, **fields: Any) -> Any:
    """The same for fields of its mixer, feed-forward or another part."""

    def change(config: ModelConfig) -> ModelConfig:
        changed = dataclasses.replace(getattr(config.layers[0], part), **fields)
        layer = dataclasses.replace(config.layers[0], **{part: changed})
        return dataclasses.replace(config, layers=(layer,))

    return change
