"""A float twin of a quantised model: the same function, whose weights lie on no grid of blocks.

The real models at hand come as 4-bit files. Quantising one of them once more flatters: a block of
32 whose numbers were rounded to 16 levels is rounded to them again at no cost. So the channels are
shuffled, which changes no result: those of the residual stream (with random signs, which RMS norms
let through), the inner ones of each MLP and the value channels within each head. A block of 32 then
holds numbers of up to 32 old blocks, each with its own scale and shift.

    python bench/twins.py smollm2-135m OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lmworks.models.config import AttentionConfig, MLPConfig, RMSNormConfig
from lmworks.models.load import load_language_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.load import load_tokenizer

_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # of the residual stream


def shuffle(model: Model, seed: int = 0) -> None:
    """Shuffle the channels of a decoder with RMS norms and gated MLPs, in place."""
    random = torch.Generator().manual_seed(seed)
    config = model.config
    width = config.hidden_size
    order = torch.randperm(width, generator=random)
    signs = torch.randint(0, 2, (width,), generator=random).float() * 2 - 1
    assert isinstance(config.norm, RMSNormConfig)
    model.embed_tokens.weight.data = model.embed_tokens.weight.data[:, order] * signs
    model.norm.weight.data = model.norm.weight.data[order]
    if model.lm_head is not None:
        model.lm_head.weight.data = model.lm_head.weight.data[:, order] * signs
    for layer, about in zip(model.layers, config.layers, strict=True):
        mixer, mlp = about.mixer, about.feed_forward
        assert isinstance(mixer, AttentionConfig) and isinstance(mlp, MLPConfig) and mlp.gated
        for name, parameter in layer.named_parameters():
            part = name.split(".")[-2]
            if part in _READERS and name.endswith("weight"):
                parameter.data = parameter.data[:, order] * signs
            elif part in ("o_proj", "down_proj"):
                across = parameter.data[order]
                parameter.data = across * (signs if across.ndim == 1 else signs[:, None])
            elif parameter.ndim == 1 and len(parameter) == width and "norm" in part:
                parameter.data = parameter.data[order]
        inner = torch.randperm(mlp.intermediate_size, generator=random)
        for part in (layer.feed_forward.gate_proj, layer.feed_forward.up_proj):
            part.weight.data = part.weight.data[inner]
        down = layer.feed_forward.down_proj
        down.weight.data = down.weight.data[:, inner]
        _shuffle_values(layer.mixer, mixer, random)


def _shuffle_values(attention: torch.nn.Module, about: AttentionConfig, random: torch.Generator):
    size, groups = about.head_dim, about.num_attention_heads // about.num_key_value_heads
    rows, columns = [], []
    for head in range(about.num_key_value_heads):
        order = torch.randperm(size, generator=random)
        rows.append(head * size + order)
        columns += [(head * groups + query) * size + order for query in range(groups)]
    value, out = attention.v_proj, attention.o_proj
    value.weight.data = value.weight.data[torch.cat(rows)]
    if value.bias is not None:
        value.bias.data = value.bias.data[torch.cat(rows)]
    out.weight.data = out.weight.data[:, torch.cat(columns)]


def make(reference: str, out: Path, seed: int = 0) -> float:
    """Write the twin of a model as a folder.

    Returns: the largest difference of its logits, over the largest logit.
    """
    model, tokenizer = load_language_model(reference), load_tokenizer(reference)
    ids = torch.randint(0, 1000, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = model(ids)
        shuffle(model, seed)
        after = model(ids)
    assert not torch.equal(before, after)
    save_model(model, out, tokenizer=tokenizer)
    return float((after - before).abs().max() / before.abs().max())


if __name__ == "__main__":
    difference = make(sys.argv[1], Path(sys.argv[2]))
    print(f"{sys.argv[2]}: logits differ by {difference:.1e} of the largest")
