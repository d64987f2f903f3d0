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
from lmworks.models.two_tower import TwoTower
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
    found = states(ours)
    logits = ours(ids, **inputs)
    expected = theirs(**{input_name: ids}, output_hidden_states=True, **inputs)
    wanted = expected.logits if "logits" in expected else expected.last_hidden_state
    wanted = wanted.view_as(logits)
    real = _real(inputs.get("attention_mask"))
    if wanted.shape[:2] == ids.shape[:2] and wanted.dim() == 3:
        wanted, logits = wanted * real, logits * real
    assert wanted.std() > 0.05, "these logits are too alike to prove anything"
    assert (logits - wanted).abs().max() < 1e-4
    assert_states(ours, found[first_state:], expected.hidden_states, real, skip_states)
    if num_greedy:
        assert greedy(ours, ids[:1], num_greedy) == their_greedy(theirs, ids[:1], num_greedy)
    assert_gradients(theirs, ours, folder, wanted, logits, skip_gradients)
    return ours


def assert_encoder_decoder_parity(
    theirs: Any,
    folder: Path,
    source: torch.Tensor,
    ids: torch.Tensor,
    *,
    num_greedy: int = 64,
    source_name: str = "input_ids",
    attention_mask: torch.Tensor | None = None,
    skip_gradients: tuple[str, ...] = (),
    **settings: Any,
) -> Model:
    """`assert_parity` for an encoder-decoder: the states of both stacks, and decoding by both.

    Args:
        source: what the encoder reads, which theirs calls `source_name`.
        settings: what their `generate` takes beside.
    """
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    assert ours.encoder is not None
    found, encoder_found = states(ours), states(ours.encoder)
    encoded = ours.encode(source, attention_mask)
    logits = ours(ids, encoded=encoded)
    inputs = {source_name: source, "attention_mask": attention_mask}
    if attention_mask is None:
        del inputs["attention_mask"]
    expected = theirs(**inputs, decoder_input_ids=ids, output_hidden_states=True)
    wanted = expected.logits if "logits" in expected else expected.last_hidden_state
    assert wanted.std() > 0.05, "these logits are too alike to prove anything"
    assert (logits - wanted).abs().max() < 1e-4
    real = _real(attention_mask)
    assert_states(ours.encoder, encoder_found, expected.encoder_hidden_states, real)
    assert_states(ours, found, expected.decoder_hidden_states, _real(None))
    if num_greedy:
        with torch.no_grad():
            two = attention_mask if attention_mask is None else attention_mask[:2]
            encoded = ours.encode(source[:2], two)
        other = their_greedy(theirs, ids[:2], num_greedy, inputs, **settings)
        assert greedy(ours, ids[:2], num_greedy, encoded=encoded) == other
    assert_gradients(theirs, ours, folder, wanted, logits, skip_gradients)
    return ours


def assert_states(
    model: Model,
    mine: list[torch.Tensor],
    expected: Any,
    real: torch.Tensor,
    skipped: tuple[int, ...] = (),
) -> None:
    last = len(mine) - (model.norm is not None)  # theirs comes after the final norm
    for number, (state, other) in enumerate(zip(mine[:last], expected, strict=False)):
        if number not in skipped:
            assert ((state - other) * real).abs().max() < 1e-4, f"hidden state {number}"


def _real(attention_mask: torch.Tensor | None) -> torch.Tensor:
    """1 where a token is, 0 where padding, for (B, T, ...) tensors."""
    mask = torch.ones(1, 1) if attention_mask is None else attention_mask
    return mask[..., None].float()


def states(model: Model) -> list[torch.Tensor]:
    """The states that a forward leaves: after the embedding, after each layer."""
    found: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, output: found.append(output))
    return found


def assert_gradients(
    theirs: Any,
    ours: Model | TwoTower,
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


def greedy(model: Model, ids: torch.Tensor, num_new: int, **inputs: Any) -> list[list[int]]:
    """The likeliest continuation of each row, with our cache: the prompt in two chunks."""
    cache = KVCache(model.config, len(ids), ids.shape[1] + num_new)
    for slot in range(len(ids)):
        cache.expect(slot, ids.shape[1])
    view = cache.view(range(len(ids)))
    half = ids.shape[1] // 2
    tokens: list[torch.Tensor] = []
    with torch.no_grad():
        if half:
            model(ids[:, :half], cache=view, last_only=True, **inputs)
        step = ids[:, half:]
        for _ in range(num_new):
            logits = model(step, cache=view, last_only=True, **inputs)
            step = logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(step)
    found: list[list[int]] = torch.cat(tokens, dim=1).tolist()
    return found


def their_greedy(
    model: Any,
    ids: torch.Tensor,
    num_new: int,
    inputs: dict[str, torch.Tensor] | None = None,
    **settings: Any,
) -> list[list[int]]:
    """The same by `generate`; `inputs` are the encoder's, and `ids` then the decoder's."""
    given = inputs or {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if inputs:
        given = {name: value[: len(ids)] for name, value in inputs.items()}
        # Rows that begin otherwise would be given another token before them.
        assert bool((ids[:, 0] == ids[0, 0]).all())
        settings |= {"decoder_input_ids": ids, "decoder_start_token_id": int(ids[0, 0])}
    out = model.generate(
        **given,
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        **settings,
    )
    tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
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
