"""A merge as a model in memory, for what tries many: nothing is written."""

from __future__ import annotations

from typing import Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.config import ModelConfig
from lmworks.models.merging.execute import bands
from lmworks.models.merging.folder import config_values
from lmworks.models.merging.plan import Plan
from lmworks.models.model import Model
from lmworks.models.skeleton import skeleton
from lmworks.models.weights import fresh


def merged_model(plan: Plan, *, seed: int = 0) -> Model:
    """The model of a plan, float32, in eval mode.

    Raises: UserError for an architecture that is not known here, or what `bands` refuses.
    """
    values = config_values(plan)
    layout = architecture(str(values["model_type"])).layout("hf")
    config: Any = layout.read_config(values)
    if not isinstance(config, ModelConfig):
        raise UserError(f"{plan.lead.reference} holds no single model")
    layout = layout.of_file({output.name: output for output in plan.outputs})
    outputs = {output.name: output for output in plan.outputs}
    model = skeleton(config)
    for bound in layout.bind(dict(model.named_parameters()), config):
        theirs = [
            torch.cat([rows.float() for rows in bands(plan, outputs[name], seed=seed)])
            if outputs[name].shape
            else next(bands(plan, outputs[name], seed=seed)).float()
            for name in bound.foreign
        ]
        state = {name: fresh(tensor, theirs) for name, tensor in bound.to_own(theirs).items()}
        model.load_state_dict(state, strict=False, assign=True)
    model.model_type = str(values["model_type"])
    return model.eval()
