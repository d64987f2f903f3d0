"""Name maps: how our parameters are stored elsewhere, as rules that work both ways.

A rule leads from some of our names to some of theirs, `{}` standing for the number of a layer (or
more numbers, in order). Most are one name to one; others transpose, cut a fused matrix, or stack
the matrices of experts. Rules work on tensors without memory as well, which is how the shapes that
a file must hold are known before anything is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lmworks.models.config import ModelConfig

Tensors = list["torch.Tensor"]
# (tensors, config, numbers in the names) -> tensors
Convert = Callable[[Tensors, "ModelConfig", tuple[int, ...]], Tensors]
# (config, numbers in the names) -> for each of our rows the row of theirs, or None for "the same"
RowOrder = Callable[["ModelConfig", tuple[int, ...]], "torch.Tensor | None"]


def _unchanged(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
    return tensors


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Some of our parameters, some of their tensors, and the way between.

    `row_order` is set where the two differ by an order of rows alone, so that quantised rows can
    change places as they are; `plain` where they are equal up to that.
    """

    own: tuple[str, ...]
    foreign: tuple[str, ...]
    to_own: Convert = _unchanged
    to_foreign: Convert = _unchanged
    row_order: RowOrder | None = None
    plain: bool = False
    # Where the number of foreign tensors depends on ours: (own tensors) -> how many.
    count: Callable[[Tensors], int] | None = None
    # Whether the rule holds for a config, where names depend on one; None: for all.
    when: Callable[[ModelConfig], bool] | None = None


def same(own: str, foreign: str) -> Rule:
    """One tensor under another name."""
    return Rule(own=(own,), foreign=(foreign,), plain=True)


def with_ones(own: str, foreign: str, count: int = 1) -> Rule:
    """The same values; theirs has `count` dimensions of size 1 before ours."""

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [tensor[(0,) * count] for tensor in tensors]

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [tensor[(None,) * count] for tensor in tensors]

    return Rule(own=(own,), foreign=(foreign,), to_own=to_own, to_foreign=to_foreign)


def only_when(holds: Callable[[ModelConfig], bool], rules: Sequence[Rule]) -> list[Rule]:
    """`rules` for the configs of which `holds` is true, beside what they ask for already."""

    def both(first: Callable[[ModelConfig], bool] | None) -> Callable[[ModelConfig], bool]:
        return lambda config: holds(config) and (first is None or first(config))

    return [dataclasses.replace(rule, when=both(rule.when)) for rule in rules]


def transposed(own: str, foreign: str) -> Rule:
    """(out, in) here, (in, out) there, as GPT-2's Conv1D."""

    def swap(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [tensor.mT for tensor in tensors]

    return Rule(own=(own,), foreign=(foreign,), to_own=swap, to_foreign=swap)


def shifted(own: str, foreign: str, by: float) -> Rule:
    """Theirs is ours plus `by`: Gemma's norms in GGUF files hold 1 + weight."""

    def down(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [tensor - by for tensor in tensors]

    def up(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [tensor + by for tensor in tensors]

    return Rule(own=(own,), foreign=(foreign,), to_own=down, to_foreign=up)


def reordered(own: str, foreign: str, order: RowOrder) -> Rule:
    """The same rows in another order: `theirs[order]` is ours."""

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        rows = order(config, numbers)
        return tensors if rows is None else [tensor[rows] for tensor in tensors]

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        rows = order(config, numbers)
        return tensors if rows is None else [tensor[rows.argsort()] for tensor in tensors]

    return Rule(
        own=(own,),
        foreign=(foreign,),
        to_own=to_own,
        to_foreign=to_foreign,
        row_order=order,
        plain=True,
    )


def fused(
    own: Sequence[str],
    foreign: str,
    *,
    sizes: Callable[[Any, tuple[int, ...]], Sequence[int]],
    conv1d: bool = False,
) -> Rule:
    """Several of our matrices (or biases) as one of theirs, one after the other.

    Args:
        sizes: (config, numbers) -> the rows of each of ours.
        conv1d: theirs is transposed, as in GPT-2.
    """

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        whole = tensors[0].mT if conv1d else tensors[0]
        return list(whole.split(list(sizes(config, numbers))))

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        import torch

        whole = torch.cat(tensors)
        return [whole.mT if conv1d else whole]

    return Rule(own=tuple(own), foreign=(foreign,), to_own=to_own, to_foreign=to_foreign)


def fused_per_head(
    own: Sequence[str], foreign: str, *, heads: Callable[[ModelConfig], int]
) -> Rule:
    """Several of ours as one of theirs that takes turns head by head (GPT-NeoX, BLOOM).

    Args:
        heads: (config) -> how many heads each of ours has.
    """

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        whole = tensors[0]
        parts = whole.reshape(heads(config), len(own), -1, *whole.shape[1:])
        return [part.reshape(-1, *whole.shape[1:]) for part in parts.unbind(1)]

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        import torch

        rest = tensors[0].shape[1:]
        parts = [tensor.reshape(heads(config), -1, *rest) for tensor in tensors]
        return [torch.stack(parts, dim=1).reshape(-1, *rest)]

    return Rule(own=tuple(own), foreign=(foreign,), to_own=to_own, to_foreign=to_foreign)


def stacked(own: str, foreign: str) -> Rule:
    """One of ours (experts, out, in) as many of theirs; the last `{}` counts the experts."""

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        import torch

        return [torch.stack(tensors)]

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return list(tensors[0].unbind())

    return Rule(
        own=(own,),
        foreign=(foreign,),
        to_own=to_own,
        to_foreign=to_foreign,
        count=lambda tensors: len(tensors[0]),
    )


def experts(own: str, foreign: Sequence[str]) -> Rule:
    """One of ours (experts, in, out) as matrices (out, in) of each expert, side by side in ours.

    `foreign` are the names of one expert's; the last `{}` in each counts the experts.
    """

    def to_own(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        import torch

        count = len(tensors) // len(foreign)
        return [torch.stack([torch.cat(tensors[i::count]) for i in range(count)]).mT]

    def to_foreign(tensors: Tensors, config: ModelConfig, numbers: tuple[int, ...]) -> Tensors:
        return [one for part in tensors[0].mT.chunk(len(foreign), 1) for one in part.unbind()]

    return Rule(
        own=(own,),
        foreign=tuple(foreign),
        to_own=to_own,
        to_foreign=to_foreign,
        count=lambda tensors: len(tensors[0]),
    )


def for_kinds(own: str, foreign: str, kinds: Sequence[str] = ("weight", "bias")) -> list[Rule]:
    """`same` for the weight and the bias of a module."""
    return [same(f"{own}.{kind}", f"{foreign}.{kind}") for kind in kinds]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A rule with its numbers filled in, for one model."""

    rule: Rule
    config: Any
    numbers: tuple[int, ...]
    own: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def row_order(self) -> torch.Tensor | None:
        """(rows,) int64: for each of our rows the row of theirs; None: the same."""
        order = self.rule.row_order
        return None if order is None else order(self.config, self.numbers)

    def to_own(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Their tensors, in the order of `foreign`, as our parameters."""
        ours = self.rule.to_own(tensors, self.config, self.numbers)
        return dict(zip(self.own, ours, strict=True))

    def to_foreign(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Our parameters, in the order of `own`, as their tensors."""
        theirs = self.rule.to_foreign(tensors, self.config, self.numbers)
        return dict(zip(self.foreign, theirs, strict=True))


def bind(rules: Sequence[Rule], parameters: Mapping[str, Any], config: Any) -> Iterator[Bound]:
    """The rules that hold for a model with these parameters, each name in one of them.

    Raises: KeyError for a parameter that no rule speaks of.
    """
    valid = [rule for rule in rules if rule.when is None or rule.when(config)]
    by_template = {name: rule for rule in valid for name in rule.own}
    done: set[str] = set()
    for name in parameters:
        if name in done:
            continue
        template, numbers = template_of(name)
        rule = by_template[template]
        own = tuple(_fill(part, numbers) for part in rule.own)
        done.update(own)
        if rule.count is None:
            foreign = tuple(_fill(part, numbers) for part in rule.foreign)
        else:
            count = rule.count([parameters[part] for part in own])
            foreign = tuple(
                _fill(part, (*numbers, i)) for part in rule.foreign for i in range(count)
            )
        yield Bound(rule=rule, config=config, numbers=numbers, own=own, foreign=foreign)


def template_of(name: str) -> tuple[str, tuple[int, ...]]:
    """`a.12.b` as (`a.{}.b`, (12,))."""
    numbers = re.findall(r"(?<=\.)(\d+)(?=\.)", name)
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), tuple(map(int, numbers))


def _fill(template: str, numbers: tuple[int, ...]) -> str:
    return template.format(*numbers[: template.count("{}")])
