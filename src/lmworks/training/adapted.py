"""What stages that tune a model share: all of its weights, or an adapter on a base that stays.

    model = load_to_train(run.inputs["model"], config.adapter, config.base_type, config.seed)
    ...
    save_trained(model, run.folder, base=config.model, tokenizer=tokenizer, card=card)

Without an adapter the result is a model folder; with one it is the folder of an adapter, which
loads, serves and merges wherever a model does, as long as its base can be found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError
from lmworks.core.files import write_text

if TYPE_CHECKING:
    from lmworks.models.adapters.base import AdapterConfig
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

BaseType = Literal["float32", "packed", "nf4"]
ADAPTER_HELP = "train an adapter instead of all weights: lora, dora, ia3, bottleneck, prefix"
BASE_TYPE_HELP = "how an adapter's base is held: float32, a GGUF's own blocks (packed), nf4"


def load_to_train(
    path: Path, adapter: AdapterConfig | None, base_type: BaseType, seed: int
) -> Model:
    """The language model at `path`, with a fresh adapter on it if one is asked for.

    Args:
        base_type: how the frozen base is held.
        seed: of the adapter's weights.
    Raises: UserError for a base that can't be trained whole, or an adapter that does not fit it.
    """
    from lmworks.models.adapters.base import adapter_of, add_adapter
    from lmworks.models.load import load_language_model

    if adapter is None and base_type != "float32":
        raise UserError(
            f"base_type = {base_type}: blocks of few bits can't be trained; train an adapter on "
            "them, for example with --adapter lora"
        )
    quantize = "nf4" if base_type == "nf4" else ""
    model = load_language_model(path, packed=base_type == "packed", quantize=quantize)
    if (found := adapter_of(model)) is not None:
        raise UserError(
            f"{path} is an adapter that can't be folded into its base ({found.config.kind}): name "
            "the base itself to train another"
        )
    if adapter is not None:
        add_adapter(model, adapter, seed)
    return model


def adapter_figures(model: Model) -> dict[str, Any]:
    """What a manifest says of the adapter, if there is one."""
    from lmworks.models.adapters.base import adapter_of

    adapter = adapter_of(model)
    if adapter is None:
        return {}
    return {"adapter": adapter.config.kind, "trained_parameters": adapter.num_parameters}


def save_trained(model: Model, folder: Path, *, base: str, tokenizer: Tokenizer, card: str) -> None:
    """Write the model, or the adapter on it, into `folder`.

    Args:
        base: the reference that an adapter's base was loaded by.
        card: Markdown of what was done.
    Raises: UserError for a full disk.
    """
    from lmworks.models.adapters.base import adapter_of
    from lmworks.models.adapters.files import save_adapter
    from lmworks.models.save import save_model, save_tokenizer

    adapter = adapter_of(model)
    if adapter is None:
        save_model(model, folder, tokenizer=tokenizer, card=card)
        return
    save_adapter(adapter, folder, base=base)
    save_tokenizer(tokenizer, folder)
    write_text(folder / "README.md", f"# An adapter ({adapter.config.kind}) for {base}\n\n{card}\n")
