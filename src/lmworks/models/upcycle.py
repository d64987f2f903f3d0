"""Stage `upcycle`: a dense model in, one with experts out, which at first says the same.

Every expert begins as a copy of the dense feed-forward, and a fresh router sends each token to some
of them; their weights sum to 1, so nothing changes until training lets the experts part.
Source: Komatsuzaki et al. 2022, "Sparse upcycling", arXiv 2212.05055. Left out: noise on the
copies, which their ablations found of no use.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import torch

    from lmworks.models.config import LayerConfig, ModelConfig
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """Make a model with experts out of a dense one, to go on training.

    It says what the dense one says until it is trained.

    Examples:
        lmworks model upcycle --model runs/base --out runs/experts
        lmworks model upcycle --model smollm2-135m --num-experts 4 --every 2 --out runs/experts
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    num_experts: int = option(8, help="copies of each feed-forward")
    num_experts_per_tok: int = option(2, help="experts that a token goes through")
    every: int = option(1, help="experts in every n-th layer, counted from the last")
    seed: int = option(0, help="of the routers; same seed, same bytes")


@stage("upcycle", makes="model")
def upcycle_stage(config: UpcycleConfig, run: Run) -> dict[str, Any]:
    """Copy, save; see UpcycleConfig."""
    from lmworks.models.compute import compute
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer

    made = upcycle(
        load_language_model(run.inputs["model"]),
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        every=config.every,
        seed=config.seed,
    )
    cost = compute(made.config)
    card = (
        f"Made of {Path(config.model).name}: each feed-forward became {config.num_experts} "
        f"experts, copies of it, of which a token goes through {config.num_experts_per_tok}. "
        "It was not trained after that.\n"
    )
    save_model(made, run.folder, tokenizer=load_tokenizer(run.inputs["model"]), card=card)
    return {"num_parameters": cost.num_parameters, "active_parameters": cost.active_parameters}


def upcycle(
    model: Model, *, num_experts: int, num_experts_per_tok: int, every: int = 1, seed: int = 0
) -> Model:
    """A new model in eval mode whose logits are those of `model`.

    Args:
        every: experts in every n-th layer, the last among them.
        seed: of the routers' weights.
    Raises: UserError for a model without dense feed-forwards, or numbers that fit no model.
    """
    import torch

    from lmworks.models.model import Model

    if every < 1:
        raise UserError(f"every = {every}: give a whole number from 1 up")
    config = _config(model.config, num_experts, num_experts_per_tok, every)
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(seed))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    copied = {n: _taken(n, state, t.shape) for n, t in made.state_dict().items()}
    made.load_state_dict({n: t for n, t in copied.items() if t is not None}, strict=False)
    return made.eval()


def _config(
    config: ModelConfig, num_experts: int, num_experts_per_tok: int, every: int
) -> ModelConfig:
    from lmworks.models.config import MLPConfig, MoEConfig

    def changed(layer: LayerConfig) -> LayerConfig:
        dense = layer.feed_forward
        assert isinstance(dense, MLPConfig)
        experts = MoEConfig(
            num_experts=num_experts,
            num_experts_per_tok=num_experts_per_tok,
            intermediate_size=dense.intermediate_size,
            activation=dense.activation,
            gated=dense.gated,
        )
        return dataclasses.replace(layer, feed_forward=experts)

    last = len(config.layers) - 1
    chosen = [
        isinstance(layer.feed_forward, MLPConfig)
        and not layer.feed_forward.bias
        and (last - number) % every == 0
        for number, layer in enumerate(config.layers)
    ]
    if not any(chosen):
        raise UserError("this model has no dense feed-forward without biases to make experts of")
    layers = zip(config.layers, chosen, strict=True)
    return dataclasses.replace(
        config, layers=tuple(changed(layer) if yes else layer for layer, yes in layers)
    )


def _taken(name: str, state: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor | None:
    """The parameter `name` out of a dense model; None for a router's."""
    import torch

    if name in state:
        return state[name]
    block, _, kind = name.partition("experts.")
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(kind, (kind,))
    if not all(f"{block}{part}.weight" in state for part in parts):
        return None
    return torch.cat([state[f"{block}{part}.weight"] for part in parts]).mT.expand(shape)
