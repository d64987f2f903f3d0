"""The model card that `save_model` writes: what the folder holds, in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmworks.models.config import (
    AttentionConfig,
    ClassHeadConfig,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    TwoTowerConfig,
)

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.models.two_tower import TwoTower


def model_card(model: Model | TwoTower, text: str) -> str:
    """Markdown: the task, a table of sizes, and `text` after it."""
    config = model.config
    count = f"{sum(p.numel() for p in model.parameters()):,}"
    facts: dict[str, Any] = {"parameters": count}
    if isinstance(config, TwoTowerConfig):
        task, title = "zero-shot-image-classification", "A text and a vision encoder"
        for name, tower in {"text": config.text, "vision": config.vision}.items():
            facts |= {f"{name}: {key}": value for key, value in _facts(tower).items()}
    else:
        task, title = _task(config), _title(config)
        facts |= _facts(config)
    facts["weights"] = "float32 safetensors"
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    head = f"---\nlibrary_name: transformers\npipeline_tag: {task}\n---\n\n"
    body = f"{head}# {title}\n\n| | |\n|---|---|\n{table}\n"
    return body + (f"\n{text.strip()}\n" if text.strip() else "")


def _facts(config: ModelConfig) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
    }
    for layer in config.layers[:1]:
        if isinstance(layer.mixer, AttentionConfig):
            mixer = layer.mixer
            facts["attention heads"] = (
                f"{mixer.num_attention_heads} ({mixer.num_key_value_heads} for keys and values)"
            )
        if isinstance(layer.feed_forward, MLPConfig):
            facts["feed-forward size"] = layer.feed_forward.intermediate_size
        if isinstance(layer.feed_forward, MoEConfig):
            moe = layer.feed_forward
            facts["experts"] = f"{moe.num_experts} ({moe.num_experts_per_tok} for each token)"
            facts["expert size"] = moe.intermediate_size
    if config.vocab_size:
        facts["vocabulary"] = config.vocab_size
    facts["context"] = f"{config.max_position_embeddings} " + (
        "positions" if config.inputs else "tokens"
    )
    return facts


def _is_causal(config: ModelConfig) -> bool:
    return all(getattr(layer.mixer, "causal", True) for layer in config.layers)


def _task(config: ModelConfig) -> str:
    """What the Hugging Face Hub calls it."""
    if isinstance(config.head, LMHeadConfig):
        if config.encoder is not None:
            return (
                "automatic-speech-recognition" if config.encoder.inputs else "text2text-generation"
            )
        return "text-generation" if _is_causal(config) else "fill-mask"
    if isinstance(config.head, ClassHeadConfig):
        if config.inputs:
            return "image-classification"
        return "text-classification" if config.head.pooling else "token-classification"
    return "feature-extraction"


def _title(config: ModelConfig) -> str:
    """What kinds of layers there are, in the order in which they first come."""
    mixers = list(dict.fromkeys(layer.mixer.kind for layer in config.layers))
    feeds = dict.fromkeys(x.feed_forward.kind for x in config.layers if x.feed_forward)
    kind = "A decoder" if _is_causal(config) else "An encoder"
    if config.encoder is not None:
        kind = "An encoder and a decoder"
    return f"{kind} of {' and '.join([*mixers, *feeds])} layers"
