"""A model of transformers with random weights against ours, loaded from the folder it was saved to.

`assert_parity` is what every architecture of the table must pass: logits, the states after every
layer, the gradient of every parameter, and greedy decoding with our cache.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from lmworks.models.cache import KVCache
from lmworks.models.load import load_model, open_weights
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.models.weights import bind_weights, read_weights


def randomised(model: Any, *, seed: int = 0, spread: float = 0.1) -> Any:
    """Every parameter moved at random, norms and biases too: all ones prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


def assert_parity(
    theirs: Any,
    folder: Path,
    ids: torch.Tensor,
    *,
    num_greedy: int = 64,
    skip_states: tuple[int, ...] = (),
    first_state: int = 0,
    skip_gradients: tuple[str, ...] = (),
    input_name: str = "input_ids",
    **inputs: torch.Tensor,
) -> Model:
    """Save `theirs` to `folder`, load it, compare; returns ours. Spoils the weights of `theirs`.

    Args:
        num_greedy: tokens that both continue the first row with; 0 for an encoder.
        skip_states: numbers of hidden states (0 is the embedding) that the two define otherwise.
        first_state: number of the state that theirs begin with (1 where the embedding is none).
        skip_gradients: parameters of ours that are no parameters of theirs.
        input_name: what theirs calls the ids (pixel_values).
        inputs: what both take beside the ids (attention_mask, token_type_ids). States and logits
            of padding are not compared: nothing sees them.
    """
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    states = _states(ours)
    logits = ours(ids, **inputs)
    expected = theirs(**{input_name: ids}, output_hidden_states=True, **inputs)
    wanted = expected.logits if "logits" in expected else expected.last_hidden_state
    wanted = wanted.view_as(logits)
    real = _real(inputs.get("attention_mask"))
    if wanted.shape[:2] == ids.shape[:2] and wanted.dim() == 3:
        wanted, logits = wanted * real, logits * real
    assert wanted.std() > 0.05, "these logits are too alike to prove anything"
    assert (logits - wanted).abs().max() < 1e-4
    last = len(states) - (ours.norm is not None)  # theirs comes after the final norm
    compared = zip(states[first_state:last], expected.hidden_states, strict=False)
    for number, (mine, other) in enumerate(compared):
        if number not in skip_states:
            assert ((mine - other) * real).abs().max() < 1e-4, f"hidden state {number}"
    if num_greedy:
        assert greedy(ours, ids[:1], num_greedy) == their_greedy(theirs, ids[:1], num_greedy)
    _assert_gradients(theirs, ours, folder, wanted, logits, skip_gradients)
    return ours


def _real(attention_mask: torch.Tensor | None) -> torch.Tensor:
    """1 where a token is, 0 where padding, for (B, T, ...) tensors."""
    mask = torch.ones(1, 1) if attention_mask is None else attention_mask
    return mask[..., None].float()


def _states(model: Model) -> list[torch.Tensor]:
    """The states that a forward leaves: after the embedding, after each layer."""
    states: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    return states


def _assert_gradients(
    theirs: Any,
    ours: Model,
    folder: Path,
    wanted: torch.Tensor,
    logits: torch.Tensor,
    skipped: tuple[str, ...] = (),
) -> None:
    """The gradients of both, compared by our names: theirs are saved as if they were weights."""
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    (wanted * weight).sum().backward()
    (logits * weight).sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    saved = folder.with_name(f"{folder.name}-gradients")
    theirs.save_pretrained(saved)
    weights = open_weights(saved)
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    # Gradients that are zero by the mathematics (a bias of k without rotary) are noise: they are
    # held against a part of the largest.
    noise = max(float(g.abs().max()) for g in mine.values() if g is not None) * 1e-3
    for bound in bind_weights(weights, ours):
        for name, gradient in read_weights(weights, bound).items():
            if name in skipped:
                continue
            got = mine[name]
            got = torch.zeros_like(gradient) if got is None else got
            scale = gradient.abs().max().clamp(min=noise)
            assert (got - gradient).abs().max() / scale < 1e-3, f"gradient of {name}"


def greedy(model: Model, ids: torch.Tensor, num_new: int) -> list[int]:
    """The likeliest continuation of one row, with our cache: the prompt in two chunks."""
    cache = KVCache(model.config, 1, ids.shape[1] + num_new)
    cache.expect(0, ids.shape[1])
    view = cache.view([0])
    half = ids.shape[1] // 2
    tokens: list[int] = []
    with torch.no_grad():
        model(ids[:, :half], cache=view, last_only=True)
        step = ids[:, half:]
        for _ in range(num_new):
            step = model(step, cache=view, last_only=True)[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(step))
    return tokens


def their_greedy(model: Any, ids: torch.Tensor, num_new: int) -> list[int]:
    """The same by `generate`."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


def assert_written(
    ours: Model,
    folder: Path,
    ids: torch.Tensor,
    model_type: str,
    kind: str = "AutoModelForCausalLM",
    unused: str = r"(?!)",
) -> None:
    """transformers reads what we write as `model_type`, with the same logits; so do we.

    Args:
        kind: the class that reads it.
        unused: pattern of weights that the class has and that no answer depends on.
    """
    import transformers

    save_model(ours, folder, model_type=model_type)
    theirs, report = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    odd = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    odd["missing_keys"] = {key for key in odd["missing_keys"] if not re.fullmatch(unused, key)}
    assert not any(odd.values()), odd
    again = load_model(folder)
    assert again.config == ours.config
    with torch.no_grad():
        answer = theirs.eval()(ids)
        logits = answer.logits if "logits" in answer else answer.last_hidden_state
        assert (logits - ours(ids)).abs().max() < 1e-4
        assert torch.equal(again(ids), ours(ids))
