"""Mixture of experts: a router, many feed-forwards of which each token goes through a few.

The products are in `grouped_experts.py`, the choice of experts in `routing.py`. A layer keeps its
last routing while training, with its graph: the auxiliary loss comes from it, and so do the loads
that are shown. Losses count each layer by itself (Fedus et al. 2021), so that no layer can be out
of balance at another's expense; transformers throws all layers together, which
`model_load_balancing_loss` does too.
"""

from __future__ import annotations

import torch
from torch import nn

from lmworks.models.config import MLPConfig, ModelConfig, MoEConfig
from lmworks.models.context import Context
from lmworks.models.feed_forward import MLP, activation
from lmworks.models.grouped_experts import grouped_experts
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.routing import (
    Routing,
    expert_load,
    load_balancing_loss,
    route,
    router_z_loss,
)

# How hard the load pulls at the routers' bias. Adam makes steps of one size of it anyhow; it is
# small so that the norm of all gradients, which is clipped, doesn't feel it.
_BIAS_PULL = 1e-3


class Experts(nn.Module):
    """The experts' weights, (experts, in, out): `gate_up_proj` (E, H, 2 I), or `up_proj` (E, H, I)
    if not gated, and `down_proj` (E, I, H)."""

    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        count, inner = config.num_experts, config.intermediate_size
        self.up = "gate_up_proj" if config.gated else "up_proj"
        width = inner * 2 if config.gated else inner
        self.register_parameter(self.up, nn.Parameter(torch.empty(count, hidden_size, width)))
        self.down_proj = nn.Parameter(torch.empty(count, inner, hidden_size))
        self.activation = activation(config.activation)

    def forward(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """(N, H) -> (N, H)."""
        up = self.get_parameter(self.up)
        return grouped_experts(
            x, routing.experts, routing.weights, up, self.down_proj, self.activation
        )


class MoE(nn.Module):
    """The experts' weighted sum, and what a shared one adds to it.

    Attributes:
        auxiliary_loss: (), what training adds to the loss; None in eval mode.
        load: (E,), the share of the last batch's tokens that went to each expert; None likewise.
    """

    def __init__(self, config: MoEConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.config = config
        self.router = nn.Linear(hidden, config.num_experts, bias=False)
        self.router_bias = None
        if config.router.bias:
            self.router_bias = nn.Parameter(torch.zeros(config.num_experts))
        self.experts = Experts(config, hidden)
        self.shared_expert = self.shared_gate = None
        if config.shared_intermediate_size:
            shared = MLPConfig(
                intermediate_size=config.shared_intermediate_size,
                activation=config.activation,
                gated=config.gated,
            )
            self.shared_expert = MLP(shared, model)
        if config.shared_gate:
            self.shared_gate = nn.Linear(hidden, 1, bias=False)
        alike = [layer for layer in model.layers if isinstance(layer.feed_forward, MoEConfig)]
        self._share = 1 / max(1, len(alike))
        self.auxiliary_loss: torch.Tensor | None = None
        self.load: torch.Tensor | None = None
        self.routing: Routing | None = None

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        rows = x.reshape(-1, x.shape[-1])
        logits = self.router(rows)
        context.note("feed_forward.router", logits)
        routing = self.route(logits)
        self._look(logits, routing, context)
        y = self.experts(rows, routing).view_as(x)
        if self.shared_expert is None:
            return y
        shared: torch.Tensor = self.shared_expert(x, context)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x).sigmoid()
        return y + shared

    def route(self, logits: torch.Tensor) -> Routing:
        """(N, E) -> where the tokens go."""
        router = self.config.router
        groups = (router.num_groups, router.num_groups_per_tok, router.num_best)
        return route(
            logits,
            num_experts_per_tok=self.config.num_experts_per_tok,
            scoring=router.scoring,
            normalize=router.norm_topk_prob,
            scale=router.scale,
            bias=None if self.router_bias is None else self.router_bias.detach(),
            groups=groups if router.num_groups > 1 else None,
        )

    def _look(self, logits: torch.Tensor, routing: Routing, context: Context) -> None:
        """Keep the routing, its load and its loss for the training step."""
        self.auxiliary_loss = self.load = self.routing = None
        if not self.training:
            return
        mask = None if context.padding is None else context.padding.reshape(-1)
        self.routing = routing
        self.load = expert_load(routing.experts, self.config.num_experts, mask)
        losses = self._losses(logits, routing, mask)
        self.auxiliary_loss = self._share * torch.stack(losses).sum() if losses else None

    def train(self, mode: bool = True) -> MoE:
        """As for any module; what the last step left is forgotten."""
        self.auxiliary_loss = self.load = self.routing = None
        return super().train(mode)

    def _losses(
        self, logits: torch.Tensor, routing: Routing, mask: torch.Tensor | None
    ) -> list[torch.Tensor]:
        router, losses = self.config.router, []
        if router.aux_loss_coef:
            scores = routing.scores
            if router.scoring == "sigmoid":  # DeepSeek-V3, equation 19
                scores = scores / scores.sum(-1, keepdim=True)
            balance = load_balancing_loss([scores], [routing.experts], mask)
            losses.append(router.aux_loss_coef * balance)
        if router.z_loss_coef:
            losses.append(router.z_loss_coef * router_z_loss(logits, mask))
        if self.router_bias is not None and self.load is not None:
            # Zero, with a gradient that is positive for the experts that have too much to do.
            pull = (self.router_bias - self.router_bias.detach()) * (self.load - self.load.mean())
            losses.append(_BIAS_PULL * pull.sum())
        return losses

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights; no expert is preferred."""
        init_linear(self.router, generator, INIT_STD)
        up = self.experts.get_parameter(self.experts.up)
        nn.init.normal_(up, std=INIT_STD, generator=generator)
        nn.init.normal_(self.experts.down_proj, std=output_std, generator=generator)
        if self.router_bias is not None:
            nn.init.zeros_(self.router_bias)
        if self.shared_expert is not None:
            self.shared_expert.reset_parameters(generator, output_std=output_std)
        if self.shared_gate is not None:
            init_linear(self.shared_gate, generator, INIT_STD)


def expert_loads(model: nn.Module) -> list[torch.Tensor]:
    """The load (E,) of each layer with experts in the last training step."""
    blocks = [module for module in model.modules() if isinstance(module, MoE)]
    return [block.load for block in blocks if block.load is not None]


def model_load_balancing_loss(
    model: nn.Module, mask: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The loss of the last training step with all layers as one batch; None without experts.

    Args: mask (B * T,) bool, the tokens that count.
    Checked: transformers' `aux_loss` of Mixtral and OLMoE, 1e-5.
    """
    blocks = [module for module in model.modules() if isinstance(module, MoE)]
    kept = [block.routing for block in blocks if block.routing is not None]
    if not kept:
        return None
    return load_balancing_loss([r.scores for r in kept], [r.experts for r in kept], mask)
