"""GraphFormers: a text encoder whose layers exchange what the texts of a graph say.

Rows of a batch are the texts of graphs, M of each: its centre first, then its neighbours. Before a
text attends to itself, the first states ([CLS]) of the graph's texts attend to each other, and what
that gives a text is one more position for it to look at. The first layer stays plain: nothing has
been read yet. `graph_former` makes one of a trained encoder.

Source: Yang et al. 2021, GraphFormers: GNN-nested transformers for representation learning on
textual graph, arXiv 2105.02605, section 3.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.attention import Attention, attend
from lmworks.models.config import AttentionConfig, GraphAttentionConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.model import Model

# Two texts of a graph: both its centre, centre and neighbour, both neighbours.
_RELATIONS = 3


class GraphAttention(Attention):
    """(B, T, H) -> (B, T, H), where the B rows are the texts of B / M graphs.

    Without `Context.nodes` every text stands alone, and this is plain attention.
    """

    vectors = ("graph_bias",)

    def __init__(self, config: GraphAttentionConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        config.kept(model)  # checks the sizes
        self.every_node = config.every_node
        hidden = model.hidden_size
        self.graph_q_proj = nn.Linear(hidden, hidden)
        self.graph_k_proj = nn.Linear(hidden, hidden)
        self.graph_v_proj = nn.Linear(hidden, hidden)
        self.graph_bias = nn.Parameter(torch.zeros(_RELATIONS, config.num_attention_heads))

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """See the class."""
        nodes = context.nodes
        if nodes is None:
            return super().forward(x, context)
        source = torch.cat((self.exchange(x[:, 0], nodes)[:, None], x), dim=1)
        k, v = self.keys(source), self.values(source)
        y = attend(
            self.queries(x), k, v, self.config, mask=self._mask(x, context, nodes), is_causal=False
        )
        return self._output(y, context)

    def exchange(self, first: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Texts' first states (G * M, H) -> what each gets of those in its graph, the same shape.

        `nodes` (G, M) is True where a text is.
        """
        q, k, v = (
            projection(first).view(*nodes.shape, -1, self.config.head_dim).transpose(1, 2)
            for projection in (self.graph_q_proj, self.graph_k_proj, self.graph_v_proj)
        )  # (G, N, M, D)
        kind = (torch.arange(nodes.shape[1], device=first.device) > 0).long()
        bias = self.graph_bias[kind[:, None] + kind].permute(2, 0, 1)  # (N, M, M)
        mask = bias.masked_fill(~nodes[:, None, None, :], torch.finfo(torch.float32).min)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).reshape(first.shape)

    def _mask(self, x: torch.Tensor, context: Context, nodes: torch.Tensor) -> torch.Tensor:
        """What is added to the scores, (B, 1, 1, 1 + T) or (B, N, T, 1 + T) with a bias."""
        taken_in = nodes.clone() if self.every_node else torch.zeros_like(nodes)
        taken_in[:, 0] = True
        tokens = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        seen = torch.cat(
            (taken_in.view(-1, 1), tokens if context.padding is None else context.padding), dim=1
        )[:, None, None, :]
        mask = torch.zeros(seen.shape, device=x.device)
        if context.bias is not None:  # a text's neighbours stand at no distance
            mask = mask + nn.functional.pad(context.bias, (1, 0))
        return mask.masked_fill(~seen, torch.finfo(torch.float32).min)

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        super().reset_parameters(generator, output_std=output_std)
        self.reset_exchange(generator)

    def reset_exchange(self, generator: torch.Generator | None) -> None:
        """Draw what plain attention does not have."""
        for projection in (self.graph_q_proj, self.graph_k_proj, self.graph_v_proj):
            init_linear(projection, generator, INIT_STD)
        nn.init.zeros_(self.graph_bias)


def graph_config(encoder: ModelConfig, *, every_node: bool = False) -> ModelConfig:
    """`encoder` with graph attention in all layers but the first.

    Raises: UserError for an encoder with other mixers, or with a single layer.
    """
    if len(encoder.layers) < 2:
        raise UserError("a GraphFormer needs at least two layers: the first reads texts alone")
    layers = [encoder.layers[0]]
    for layer in encoder.layers[1:]:
        if type(layer.mixer) is not AttentionConfig:
            raise UserError(f"a GraphFormer is made of attention layers, not {layer.mixer.kind}")
        values = {f.name: getattr(layer.mixer, f.name) for f in dataclasses.fields(layer.mixer)}
        mixer = GraphAttentionConfig(**values, every_node=every_node)
        layers.append(dataclasses.replace(layer, mixer=mixer))
    return dataclasses.replace(encoder, layers=tuple(layers))


def graph_former(
    encoder: Model, *, every_node: bool = False, generator: torch.Generator | None = None
) -> Model:
    """A GraphFormer with the weights of a trained encoder; what is new is drawn.

    Raises: UserError as `graph_config` does.
    """
    model = Model(graph_config(encoder.config, every_node=every_node))
    model.load_state_dict(encoder.state_dict(), strict=False)
    for module in model.modules():
        if isinstance(module, GraphAttention):
            module.reset_exchange(generator)
    return model
