"""Stage `upcycle`: a dense model in, one with experts out, which at first says the same.

Every expert begins as a copy of the dense feed-forward, and a fresh router sends each token to some
of them; their weights sum to 1, so nothing changes until training lets the experts part.
Source: Komatsuzaki et al. 2022, "Sparse upcycling", arXiv 2212.05055. Left out: noise on the
copies, which their ablations found of no use.

With `experts`, each is the feed-forward of another fine-tune of the same base, and the rest is the
model's own (Sukhbaatar et al. 2024, "Branch-Train-MiX", arXiv 2403.07816, without the training that
follows there). With `texts`, one folder or file for each, the routers are read off the states that
the texts give (see `routers`) and need no training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import torch

    from lmworks.models.config import LayerConfig, ModelConfig
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

_MOST_TEXTS, _LONGEST = 64, 256  # texts for a router, and tokens of each
_SMALLEST = 1e-6  # spread of a state that never moves


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """Make a model with experts out of a dense one, to go on training.

    It says what the dense one says until it is trained.

    Examples:
        lmworks model upcycle --model runs/base --out runs/experts
        lmworks model upcycle --model smollm2-135m --num-experts 4 --every 2 --out runs/experts
        lmworks model upcycle --model runs/base --experts '[runs/code, runs/law]' \\
            --texts '[runs/code-corpus, runs/law-corpus]' --num-experts-per-tok 1 --out runs/both
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    num_experts: int = option(8, help="copies of each feed-forward")
    experts: list[str] = option(
        [], role=REFERENCE, help="fine-tunes of the model: each gives an expert, none is copied"
    )
    texts: list[str] = option(
        [], role=REFERENCE, help="what each expert is for: corpora, to make the routers of"
    )
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

    tokenizer = load_tokenizer(run.inputs["model"])
    paths = [run.inputs[f"experts.{number}"] for number in range(len(config.experts))]
    texts = [run.inputs[f"texts.{number}"] for number in range(len(config.texts))]
    if texts and len(texts) != len(paths):
        raise UserError(f"{len(texts)} texts for {len(paths)} experts: give one for each")
    made = upcycle(
        load_language_model(run.inputs["model"]),
        num_experts=len(paths) or config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        every=config.every,
        seed=config.seed,
        experts=[lambda path=path: load_language_model(path) for path in paths],  # type: ignore[misc]
        rows=[token_rows(path, tokenizer) for path in texts],
    )
    cost = compute(made.config)
    names = ", ".join(Path(name).name for name in config.experts) or "copies of it"
    card = (
        f"Made of {Path(config.model).name}: each feed-forward became "
        f"{len(paths) or config.num_experts} experts ({names}), of which a token goes through "
        f"{config.num_experts_per_tok}. It was not trained after that.\n"
    )
    save_model(made, run.folder, tokenizer=tokenizer, card=card)
    return {"num_parameters": cost.num_parameters, "active_parameters": cost.active_parameters}


def token_rows(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The first texts of a corpus as token ids. Raises: UserError for one without texts."""
    from lmworks.data.documents import read_documents

    file = path if path.is_file() else path / "train.jsonl"
    if not file.is_file():
        raise UserError(f"{file} is missing: name a corpus, or a .jsonl file with `text`")
    kept = itertools.islice((one.text for one in read_documents(file) if one.text), _MOST_TEXTS)
    rows = [ids[:_LONGEST] for ids in tokenizer.encode_batch(kept)]
    if not any(rows):
        raise UserError(f"{file} holds no text, so there is nothing to make a router of")
    return [row for row in rows if row]


def upcycle(
    model: Model,
    *,
    num_experts: int,
    num_experts_per_tok: int,
    every: int = 1,
    seed: int = 0,
    experts: Sequence[Callable[[], Model]] = (),
    rows: Sequence[Sequence[Sequence[int]]] = (),
) -> Model:
    """A new model in eval mode whose logits are those of `model`, unless `experts` are given.

    Args:
        every: experts in every n-th layer, the last among them.
        seed: of the routers' weights.
        experts: makes each model whose feed-forwards become experts; one is held at a time.
        rows: token ids of the texts that each expert is for; routers are made of them.
    Raises: UserError for a model without dense feed-forwards, numbers that fit no model, or experts
        of other shapes.
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
    for number, load in enumerate(experts):
        _put_expert(made, number, load())
    if rows:
        with torch.inference_mode():
            for name, weight in routers(model, made, rows).items():
                made.get_parameter(name).copy_(weight)
    return made.eval()


def _put_expert(made: Model, number: int, source: Model) -> None:
    """The feed-forwards of `source` as the expert `number`, everywhere."""
    state = {name: tensor.detach() for name, tensor in source.state_dict().items()}
    for name, parameter in made.named_parameters():
        if "experts." not in name:
            continue
        taken = _expert(name, state)
        if taken is None or taken.shape != parameter.shape[1:]:
            raise UserError(f"expert {number + 1} is another kind of model: {name} does not fit")
        parameter.data[number] = taken


def routers(
    model: Model, made: Model, rows: Sequence[Sequence[Sequence[int]]]
) -> dict[str, torch.Tensor]:
    """Router weights by name, for experts that are each for a kind of text.

    A router scores a state by its place between the kinds' mean states m_e, in units of the spread
    within the kinds: w_e = (m_e - m) / s^2, the linear discriminant with a diagonal covariance. It
    has offsets, a router has none: what of w_e lies along m is taken out, so that all kinds draw
    at m, midway between them. Source: Hastie et al. 2009, "The Elements of Statistical Learning",
    section 4.3.

    Args:
        model: dense; its states where a feed-forward begins are what routers will see.
        rows: token ids of texts, for each expert.
    Returns: (experts, hidden) each.
    """

    paths = [
        name.removesuffix(".router.weight")
        for name, _ in made.named_parameters()
        if name.endswith(".router.weight")
    ]
    sums = [_state_sums(model, paths, kind) for kind in rows]
    return {f"{path}.router.weight": _discriminant([one[path] for one in sums]) for path in paths}


Sums = tuple[int, "torch.Tensor", "torch.Tensor"]  # how many states, their sum, that of squares


def _state_sums(
    model: Model, paths: Sequence[str], rows: Sequence[Sequence[int]]
) -> dict[str, Sums]:
    """Of what the modules `paths` are given on some texts."""
    import torch

    found: dict[str, Sums] = {}

    def looking_at(path: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def look(module: Any, inputs: tuple[Any, ...]) -> None:
            states = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            count, total, squares = found.get(path, (0, 0.0, 0.0))
            found[path] = (
                count + len(states),
                total + states.sum(0),
                squares + states.square().sum(0),
            )

        return look

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(looking_at(path)) for path in paths
    ]
    try:
        for row in rows:
            model(torch.tensor([list(row)]))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _discriminant(parts: Sequence[Sums]) -> torch.Tensor:
    import torch

    means = torch.stack([total / count for count, total, _ in parts])
    within = torch.stack([squares / count for count, _, squares in parts]) - means.square()
    spread = within.mean(0).clamp(min=_SMALLEST)
    middle = means.mean(0)
    weights = (means - middle) / spread
    along = (weights @ middle) / middle.square().sum().clamp(min=_SMALLEST)
    return (weights - along[:, None] * middle).float()


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
    if name in state:
        return state[name]
    found = _expert(name, state)
    return None if found is None else found.expand(shape)


def _expert(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """(in, out): one expert of the parameter `name` out of a dense model; None if it has none."""
    import torch

    block, _, kind = name.partition("experts.")
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(kind, (kind,))
    if not all(f"{block}{part}.weight" in state for part in parts):
        return None
    return torch.cat([state[f"{block}{part}.weight"] for part in parts]).mT
