"""NF4: bitsandbytes' values to the bit, products and gradients of the dequantised matrix."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.config import ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.nf4 import NF4Linear, NF4Matrix
from lmworks.models.save import save_model

# Of what bitsandbytes 0.50.2 dequantises (its kernels in PyTorch, which round as its CUDA kernels
# do), after quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4"), for
# matrices drawn one after the other.
RECORDED = {
    (96, 320): "bf027b92c4a10bab",
    (1, 64): "e06c603797dc52bf",
    (5, 100): "bb6b9c8d87b48754",
    (576, 1536): "53f2d084b30e2e6d",
}


def test_values_are_those_of_bitsandbytes_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, digest in RECORDED.items():
        matrix = NF4Matrix(torch.randn(shape, generator=generator) * 0.02)
        values = matrix.dequantized()
        assert tuple(values.shape) == shape
        assert hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16] == digest
    assert matrix.num_bytes * 8 / values.numel() < 4.13


@pytest.mark.parametrize("shape", [(7, 64), (33, 96), (130, 50), (2, 31)])
def test_products_and_gradients_are_those_of_the_values(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmworks.models.nf4._SLICE_WEIGHTS", 2000)  # several slices
    torch.manual_seed(0)
    layer = NF4Linear.of(torch.nn.Linear(shape[1], shape[0]))
    x = torch.randn(3, 5, shape[1], requires_grad=True)
    weight = layer.dequantized()
    expected = x @ weight.T + layer.bias
    assert (layer(x) - expected).abs().max().item() <= 1e-5
    upstream = torch.randn_like(expected)
    (ours,) = torch.autograd.grad(layer(x), x, upstream)
    assert (ours - upstream @ weight).abs().max().item() <= 1e-5
    assert torch.equal(layer(x), layer(x.detach()))


def test_zeros_stay_zeros_and_what_is_not_finite_is_refused() -> None:
    weight = torch.randn(4, 64)
    weight[1] = 0
    assert not NF4Matrix(torch.zeros(4, 64)).dequantized().any()
    layer = torch.nn.Linear(64, 4)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        NF4Linear.of(layer)
    with pytest.raises(UserError, match="takes matrices"):
        NF4Matrix(torch.zeros(4))


def test_a_model_is_quantised_as_it_is_read(
    tiny_model: Model, tiny_config: ModelConfig, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    save_model(tiny_model, tmp_path)
    model = load_model(tmp_path, quantize="nf4")
    kinds = {type(m) for m in model.layers.modules() if hasattr(m, "in_features")}
    assert kinds == {NF4Linear} and type(model.lm_head) is torch.nn.Linear
    plain = load_model(tmp_path)
    for path, module in model.named_modules():
        if isinstance(module, NF4Linear):
            plain.get_submodule(path).weight.data = module.dequantized()
    assert (model(token_ids) - plain(token_ids)).abs().max().item() <= 1e-5
    with pytest.raises(UserError, match="unknown quantisation 'nf5': did you mean 'nf4'"):
        load_model(tmp_path, quantize="nf5")
