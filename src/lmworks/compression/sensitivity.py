"""How much a model's answers change with an error in one matrix, measured by gradients.

Where y is drawn from the model's own distribution p, the mean of g g^T with g the gradient of
-log p(y) at some output is the Fisher information there, and a small error e of that output changes
p by KL = e F e / 2. Taken along its diagonal, and with the error's mean square for e^2, that is a
number for each row of each matrix. Layers go backwards one by one, so that one is in memory; each
is computed once more from the states before it. Sources: Martens 2014, arXiv 1412.1193, section 9;
Kim et al. 2023, SqueezeLLM, arXiv 2306.07629, for its use in mixing precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.compression.layer_inputs import LayerInputs, LayerWalk, linear_paths
from lmworks.compression.layer_quantizer import encode_matrix
from lmworks.compression.layer_source import AFTER, BEFORE, LayerSource
from lmworks.compression.methods.base import Matrix, Method
from lmworks.core.gguf import dequantize
from lmworks.core.progress import track

if TYPE_CHECKING:
    from lmworks.models.model import Model

TOKENS = 2048  # of the calibration text that are looked at
_SAMPLE = 32  # rows of a matrix that are tried in each type
_LOGIT_TOKENS = 256  # whose logits are there at once

Costs = dict[str, dict[str, float]]


def measure_costs(
    source: LayerSource,
    rows: Sequence[np.ndarray],
    how: Method,
    kinds: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    damping: float = 0.0,
) -> Costs:
    """By tensor and type: what that choice is predicted to add to the KL divergence.

    Args:
        kinds: by tensor, the types to try. How matrices are rounded says `how`.
        seed: of the rows that are tried, and of what is drawn from the model.
    Returns: nats per token; 0 for vectors. A matrix that no linear module holds (experts) costs
        what its relative error costs on average elsewhere.
    """
    return _Measurement(source, how, kinds, seed, damping).run(_some(rows, TOKENS))


def _some(rows: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    taken: list[np.ndarray] = []
    for row in rows:
        if count <= 0:
            break
        taken.append(row[:count])
        count -= len(taken[-1])
    return taken


class _Measurement:
    def __init__(
        self,
        source: LayerSource,
        how: Method,
        kinds: Mapping[str, Sequence[str]],
        seed: int,
        damping: float,
    ) -> None:
        self.source, self.kinds, self.damping = source, kinds, damping
        self.rounding = how.rounding()
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.tried: dict[str, _Tried] = {}

    def run(self, rows: Sequence[np.ndarray]) -> Costs:
        model, source = self.source.model, self.source
        count = len(model.layers)
        with track("weighing tensors", total=2 * count + 1) as bar:
            source.load(BEFORE)
            walk = LayerWalk(model, rows)
            source.drop(BEFORE)
            before = []
            for index, layer in enumerate(model.layers):
                source.load(index)
                before.append(walk.batches())
                inputs = walk.inputs(index, linear_paths(layer, f"layers.{index}"))
                self._try(index, inputs)
                walk.advance(index)
                source.drop(index)
                bar.advance()
            source.load(BEFORE)
            source.load(AFTER)
            gradients, weights = head_gradients(model, walk.batches(), self.generator)
            self._try_head(walk.final(), weights)
            source.drop(BEFORE)
            source.drop(AFTER)
            bar.advance()
            for index in reversed(range(count)):
                source.load(index)
                gradients, found = layer_gradients(model, index, walk, before.pop(), gradients)
                for path, squares in found.items():
                    self._weigh(f"{path}.weight", squares)
                source.drop(index)
                bar.advance()
        return self._costs()

    def _try(self, index: int, inputs: Mapping[str, LayerInputs]) -> None:
        """Round a sample of each matrix of a layer to each type."""
        for name, values, bound in self.source.tensors(index):
            if values.ndim < 2:
                continue
            flat = values.reshape(-1, values.shape[-1])
            known = inputs.get(bound.own[0].rpartition(".")[0])
            if known is not None and len(known.mean_square) != flat.shape[1]:
                known = None
            at = np.unique(np.linspace(0, len(flat) - 1, _SAMPLE).astype(int))
            order = self.source.row_order(bound)
            own = at if order is None else order[at]
            owns = bound.own if bound.rule.plain else ()
            self._round(name, flat, known, at, own, owns)

    def _try_head(self, inputs: LayerInputs, weights: np.ndarray) -> None:
        """The same for the head, with rows drawn by their weight: those of words that are used."""
        tied = self.source.config.tie_word_embeddings
        for group in (BEFORE, AFTER):
            for name, values, bound in self.source.tensors(group):
                if values.ndim < 2:
                    continue
                is_head = bound.own[0] == ("embed_tokens.weight" if tied else "lm_head.weight")
                if is_head and len(inputs.mean_square) == values.shape[1]:
                    share = weights / weights.sum()
                    at = self.random.choice(len(values), 4 * _SAMPLE, p=share)
                    self._round(name, values, inputs, at, at, bound.own)
                    tried = self.tried[name]
                    tried.weights = np.ones(len(at))
                    tried.total = float(weights.sum())
                else:
                    at = np.linspace(0, len(values) - 1, _SAMPLE).astype(int)
                    self._round(name, values, None, at, at, ())

    def _round(
        self, name: str, values: np.ndarray, inputs: LayerInputs | None, at: np.ndarray,
        own: np.ndarray, owns: Sequence[str],
    ) -> None:  # fmt: skip
        weight = np.ascontiguousarray(values[at])
        matrix = Matrix(name=name, weight=weight, inputs=inputs, damping=self.damping)
        errors, relative = {}, {}
        size = float(np.square(weight).sum()) or 1.0
        for kind in self.kinds[name]:
            tensor = encode_matrix(matrix, weight.shape, kind, self.rounding)
            change = dequantize(tensor) - weight
            relative[kind] = float(np.square(change).sum()) / size
            if inputs is not None and inputs.moment is not None:
                errors[kind] = np.einsum("ij,ij->i", change @ inputs.moment, change)
        self.tried[name] = _Tried(errors, relative, own, tuple(owns))

    def _weigh(self, own: str, squares: np.ndarray) -> None:
        for tried in self.tried.values():
            if own in tried.owns and tried.errors:
                tried.weights = squares[tried.rows]
                tried.total = float(squares.sum())

    def _costs(self) -> Costs:
        known = {name: one.costs() for name, one in self.tried.items() if one.weights is not None}
        ratios = [
            cost / self.tried[name].relative[kind]
            for name, costs in known.items()
            for kind, cost in costs.items()
            if self.tried[name].relative[kind] > 0
        ]
        usual = float(np.mean(ratios)) if ratios else 1.0
        return {
            name: known[name]
            if name in known
            else {kind: usual * error for kind, error in one.relative.items()}
            for name, one in self.tried.items()
        } | {
            name: dict.fromkeys(kinds, 0.0)
            for name, kinds in self.kinds.items()
            if name not in self.tried
        }


class _Tried:
    """What types did to a sample of a matrix's rows.

    Attributes:
        errors: by type, (S,) mean square errors of the outputs; relative: of the weights.
        rows: (S,) of our own parameter `owns[0]`.
        weights: (S,) mean square gradients there; total: their sum over all rows.
    """

    def __init__(
        self, errors: dict[str, np.ndarray], relative: dict[str, float], rows: np.ndarray,
        owns: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.errors, self.relative, self.rows, self.owns = errors, relative, rows, owns
        self.weights: np.ndarray | None = None
        self.total = 0.0

    def costs(self) -> dict[str, float]:
        weights = self.weights
        assert weights is not None
        size = float(weights.sum()) or 1.0
        return {
            kind: 0.5 * self.total * float((weights * errors).sum()) / size
            for kind, errors in self.errors.items()
        }


def head_gradients(
    model: Model, states: Sequence[tuple[torch.Tensor, torch.Tensor]], generator: torch.Generator
) -> tuple[list[torch.Tensor], np.ndarray]:
    """What comes back to the states behind the last layer.

    Args:
        states: (B, T, H) and where tokens are, (B, T), of each batch.
    Returns: the gradients of -log p(y), y drawn from p at each token, (B, T, H) each; and for each
        word of the vocabulary the mean of p (1 - p), (V,) float64.
    """
    gradients, weights, count = [], torch.zeros(model.config.vocab_size, dtype=torch.float64), 0
    for x, seen in states:
        found = torch.zeros_like(x)
        inner = []
        for some in x[seen].split(_LOGIT_TOKENS):
            here = some.clone().requires_grad_()
            with torch.enable_grad():
                hidden = here if model.norm is None else model.norm(here)
                logprobs = model.logits(hidden).log_softmax(-1)
                p = logprobs.detach().exp()
                drawn = torch.multinomial(p, 1, generator=generator)
                (-logprobs.gather(-1, drawn).sum()).backward()
            weights += (p * (1 - p)).sum(0).double()
            count += len(here)
            assert here.grad is not None
            inner.append(here.grad)
        found[seen] = torch.cat(inner)
        gradients.append(found)
    return gradients, (weights / count).numpy()


def layer_gradients(
    model: Model,
    index: int,
    walk: LayerWalk,
    states: Sequence[tuple[torch.Tensor, torch.Tensor]],
    gradients: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], dict[str, np.ndarray]]:
    """One layer backwards.

    Returns: the gradients of the states before it; and by path the mean squares of those of each
        linear module's outputs, (out,).
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0

    def watch(path: str) -> Callable[..., None]:
        def add(gradient: torch.Tensor) -> None:
            square = gradient.reshape(-1, gradient.shape[-1]).square().sum(0).double()
            sums[path] = sums[path] + square if path in sums else square

        def see(module: Any, arguments: Any, out: torch.Tensor) -> None:
            out.register_hook(add)  # type: ignore[no-untyped-call]

        return see

    handles: list[Any] = [
        model.get_submodule(path).register_forward_hook(watch(path))
        for path in linear_paths(model.layers[index], f"layers.{index}")
    ]
    back = []
    try:
        for number, ((x, seen), gradient) in enumerate(zip(states, gradients, strict=True)):
            here = x.clone().requires_grad_()
            with torch.enable_grad():
                walk.through(number, here, index).backward(gradient)
            assert here.grad is not None
            back.append(here.grad)
            count += int(seen.sum())
    finally:
        for handle in handles:
            handle.remove()
    return back, {path: (total / count).numpy() for path, total in sums.items()}
