"""A model of transformers with random weights against ours, loaded from the folder it was saved to.

`assert_parity` is what every architecture of the table must pass: logits, the states after every
layer, the gradient of every parameter, and greedy decoding with our cache.
"""

from __future__ import annotations

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
    **inputs: torch.Tensor,
) -> Model:
    """Save `theirs` to `folder`, load it, compare; returns ours. Spoils the weights of `theirs`.

    Args:
        num_greedy: tokens that both continue the first row with; 0 for an encoder.
        skip_states: numbers of hidden states (0 is the embedding) that the two define otherwise.
        first_state: number of the state that theirs begin with (1 where the embedding is none).
        inputs: what both take beside the ids (attention_mask, token_type_ids).
    """
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    states = _states(ours)
    logits = ours(ids, **inputs)
    expected = theirs(input_ids=ids, output_hidden_states=True, **inputs)
    wanted = expected.logits if "logits" in expected else expected.last_hidden_state
    assert wanted.std() > 0.05, "these logits are too alike to prove anything"
    assert (logits - wanted).abs().max() < 1e-4
    compared = zip(states[first_state:], expected.hidden_states[:-1], strict=False)
    for number, (mine, other) in enumerate(compared):  # their last one is normed
        if number not in skip_states:
            assert (mine - other).abs().max() < 1e-4, f"hidden state {number}"
    if num_greedy:
        assert greedy(ours, ids[:1], num_greedy) == their_greedy(theirs, ids[:1], num_greedy)
    _assert_gradients(theirs, ours, folder, wanted, logits)
    return ours


def _states(model: Model) -> list[torch.Tensor]:
    """The states that a forward leaves: after the embedding, after each layer."""
    states: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output))
    return states


def _assert_gradients(
    theirs: Any, ours: Model, folder: Path, wanted: torch.Tensor, logits: torch.Tensor
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
            got = mine[name]
            got = torch.zeros_like(gradient) if got is None else got
            scale = gradient.abs().max().clamp(min=noise)
            assert (got - gradient).abs().max() / scale < 1e-3, f"gradient of {name}"


def greedy(model: Model, ids: torch.Tensor, num_new: int) -> list[int]:
    """The likeliest continuation of one row, with our cache: the prompt in two chunks."""
    view = KVCache(model.config, 1, ids.shape[1] + num_new).view([0])
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


def assert_written(ours: Model, folder: Path, ids: torch.Tensor, model_type: str) -> None:
    """transformers reads what we write as `model_type`, with the same logits; so do we."""
    import transformers

    save_model(ours, folder, model_type=model_type)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    odd = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(odd.values()), odd
    again = load_model(folder)
    assert again.config == ours.config
    with torch.no_grad():
        assert (theirs.eval()(ids).logits - ours(ids)).abs().max() < 1e-4
        assert torch.equal(again(ids), ours(ids))
