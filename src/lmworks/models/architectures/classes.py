"""Heads for classes, rewards and values, as transformers' configs tell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.values import Values
from lmworks.models.config import (
    ClassHeadConfig,
    FirstPooling,
    HeadConfig,
    LastPooling,
    LMHeadConfig,
    ModelConfig,
    ValueHeadConfig,
)


def architecture_class(read: Values) -> str:
    """The class that `architectures` names first, or ""."""
    names = read.items("architectures", [])
    return str(names[0]) if names else ""


def num_classes(read: Values) -> int:
    """How many labels the config names; 2 if it says nothing, as transformers has it."""
    labels = read.raw("id2label", None)
    return len(labels) if isinstance(labels, Mapping) else read.count("num_labels", 2)


def decoder_head(
    read: Values, head: LMHeadConfig | None = None, *, tied: bool = False
) -> dict[str, Any]:
    """`head` and `tie_word_embeddings` of a decoder, for `ModelConfig`.

    A decoder for sequences pools its last token: classes, or a reward where there is one label.

    Args:
        head: what it is of a language model.
        tied: whether that shares the embedding where the config says nothing.
    """
    name = architecture_class(read)
    if name.endswith("ForSequenceClassification"):
        count = num_classes(read)
        last = LastPooling()
        found: HeadConfig = ValueHeadConfig(pooling=last)
        if count > 1:
            found = ClassHeadConfig(num_classes=count, pooling=last, bias=False)
    elif name.endswith("ForTokenClassification"):
        found = ClassHeadConfig(num_classes=num_classes(read))
    else:
        tie = read.flag("tie_word_embeddings", tied)
        return {"head": head or LMHeadConfig(), "tie_word_embeddings": tie}
    return {"head": found, "tie_word_embeddings": False}


def decoder_head_to_hf(config: ModelConfig, hf_class: str) -> dict[str, Any]:
    """The class of a decoder by its head, and its labels; `hf_class` is that of a language model.

    Raises: TypeError for a head that decoders of transformers do not have.
    """
    head = config.head
    if isinstance(head, LMHeadConfig):
        return {"architectures": [hf_class]}
    if not isinstance(head, ClassHeadConfig | ValueHeadConfig):
        raise TypeError(f"no decoder of transformers ends in {head!r}")
    base = hf_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    task = "ForSequenceClassification" if head.pooling else "ForTokenClassification"
    count = head.num_classes if isinstance(head, ClassHeadConfig) else 1
    return {"architectures": [base + task], **labels_to_hf(count)}


def labels_to_hf(count: int) -> dict[str, Any]:
    """Labels by transformers' own names for them, which is how it counts classes."""
    labels = {str(i): f"LABEL_{i}" for i in range(count)}
    return {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}


def pooled_by_first(read: Values, transform: str) -> ClassHeadConfig:
    """An encoder's classes of a sequence: its first state, through a square layer."""
    return ClassHeadConfig(
        num_classes=num_classes(read), pooling=FirstPooling(), transform=transform
    )
