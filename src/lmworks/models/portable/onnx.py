"""ONNX graphs of decoders, for ONNX Runtime; needs the extra `onnx`.

Inputs: `input_ids` (1, new) int64 and, for each layer i, `past_keys_i` and `past_values_i`
(1, heads, past, size) float32. Outputs: `logits` (1, new, vocabulary) and `present_keys_i`,
`present_values_i` (1, heads, past + new, size), to be given back with the next tokens.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from lmworks.core.errors import MissingExtra
from lmworks.models.model import Model
from lmworks.models.portable.decoder import PortableDecoder

OPSET = 21  # 4-bit products are of the runtime's own domain
Weights = Literal["float32", "int8", "int4"]
GRAPH = "model.onnx"


def export_onnx(model: Model, folder: Path, *, length: int, weights: Weights = "float32") -> Path:
    """Write `folder`/model.onnx, and its weights beside it where they are large.

    Args:
        model: of float modules; it is used up.
        length: the longest sequence that the tables of positions reach.
        weights: int8: products with bytes, activations rounded as they come; int4: blocks of 32 of
            each row with a scale and a zero, activations float32.
    Raises: UserError for a model that can't be written out, or without the extra.
    """
    _check_installed()
    import onnx

    decoder = PortableDecoder(model, length)
    names = [f"past_{n}_{i}" for i in range(len(decoder.shapes)) for n in ("keys", "values")]
    past = decoder.past(3)
    new, held = torch.export.Dim("new", min=1), torch.export.Dim("past", min=0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            decoder,
            (torch.zeros(1, 2, dtype=torch.long), past),
            dynamo=True,
            dynamic_shapes=({1: new}, [{2: held}] * len(past)),
            input_names=["input_ids", *names],
            output_names=["logits", *(name.replace("past", "present", 1) for name in names)],
            opset_version=OPSET,
            optimize=False,  # by onnxscript, in minutes; the runtime does it in a second
            verbose=False,
        )
    assert program is not None
    graph: Any = program.model_proto
    if weights != "float32":
        _turn_constants(graph)
    if weights == "int4":
        graph = _four_bits(graph)
    path = folder / GRAPH
    if weights == "int8":
        _eight_bits(graph, path)
    else:
        onnx.save(graph, path, save_as_external_data=True, location=f"{GRAPH}.data")
    return path


def _turn_constants(model: Any) -> None:
    """Transpose weights once, here: quantisers look for products with a constant."""
    from onnx import numpy_helper

    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose"]:
        if node.input[0] not in held:
            continue
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        turned = numpy_helper.to_array(held[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(turned.copy(), node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _four_bits(graph: Any) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    rounded = MatMulNBitsQuantizer(graph, bits=4, block_size=32, is_symmetric=False)
    rounded.process()
    return rounded.model.model


def _eight_bits(graph: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        graph, path, op_types_to_quantize=["MatMul"], per_channel=True,
        weight_type=QuantType.QInt8, use_external_data_format=True,
    )  # fmt: skip


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "onnx", "onnx", "an ONNX bundle") from error
