"""Stage `merge_adapter`: an adapter and its base in, one model out that says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeAdapterConfig:
    """Fold an adapter into the weights of its base.

    LoRA, DoRA and (IA)3 can be folded in, ours and PEFT's. The result is a model folder with
    float32 weights, whatever the base was.

    Examples:
        lmworks model merge-adapter --adapter runs/adapter --out runs/merged
        lmworks model merge-adapter --adapter theirs --base smollm2-135m --out runs/merged
    """

    adapter: str = option(role=REFERENCE, help="folder of the adapter")
    base: str = option("", role=REFERENCE, help="its base, if not the one that it names")


@stage("merge_adapter", makes="model")
def merge_adapter(config: MergeAdapterConfig, run: Run) -> dict[str, Any]:
    """Load, fold, save; see MergeAdapterConfig."""
    from lmworks.models.adapters.base import adapter_of, is_adapter
    from lmworks.models.adapters.files import read_adapter_config
    from lmworks.models.load import load_single_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer

    folder = run.inputs["adapter"]
    if not is_adapter(folder):
        raise UserError(f"{folder} is no adapter: it holds no adapter_config.json")
    base = run.inputs.get("base", "")
    model = load_single_model(folder, base=base)
    left = adapter_of(model)
    if left is not None:
        raise UserError(f"{folder}: {left.config.kind} adapters can't be folded into weights")
    values = read_adapter_config(folder)
    name = config.base or values["base_model_name_or_path"]
    card = f"`{Path(name).name}` with the adapter `{Path(config.adapter).name}` folded in.\n"
    tokenizer = load_tokenizer(base or folder)
    save_model(model, run.folder, tokenizer=tokenizer, card=card)
    return {"num_parameters": sum(parameter.numel() for parameter in model.parameters())}
