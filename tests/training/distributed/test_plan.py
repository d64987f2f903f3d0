"""Plans: what multiplies, what a model and a batch must be for it, and who does what when."""

from __future__ import annotations

import pytest

from lmworks.core.errors import UserError
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.training.distributed.pipeline import tasks
from lmworks.training.distributed.plan import (
    ParallelConfig,
    check_model,
    check_rows,
    layers_of_stage,
    resolved,
)


def plan(**sizes: int) -> ParallelConfig:
    return ParallelConfig(**{"data": 1, **sizes})  # type: ignore[arg-type]


def test_data_takes_what_the_others_leave() -> None:
    assert resolved(ParallelConfig(tensor=2), 6).data == 3
    assert str(resolved(ParallelConfig(shard=2, tensor=2), 4)) == "shard 2 x tensor 2 (ZeRO-3)"
    assert str(resolved(ParallelConfig(), 1)) == "one process"


@pytest.mark.parametrize(
    ("config", "processes", "words"),
    [
        (ParallelConfig(tensor=2), 3, "data 1 x shard 1 x tensor 2 x pipeline 1 = 2 processes"),
        (ParallelConfig(data=2, tensor=2), 1, "1 process was started"),
        (ParallelConfig(tensor=0), 2, "parallel.tensor = 0"),
        (ParallelConfig(shard=2, pipeline=2), 4, "zero=1"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    config: ParallelConfig, processes: int, words: str
) -> None:
    with pytest.raises(UserError, match="parallel") as caught:
        resolved(config, processes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "layers", "words"),
    [
        ({"tensor": 3}, "attention", "take tensor from 1, 2, 4"),
        ({"tensor": 2}, "mamba", "layer 0 mixes by mamba"),
        ({"tensor": 2}, "attention+moe", "layer 0 has a moe"),
        ({"pipeline": 5}, "attention", "the model has 4 layers"),
    ],
)
def test_a_model_that_can_not_be_cut_is_refused_by_name(
    sizes: dict[str, int], layers: str, words: str
) -> None:
    config = decoder_config(
        layers,
        depth=4,
        vocab_size=64,
        sizes=Sizes(hidden_size=32, num_attention_heads=4, num_key_value_heads=2),
    )
    with pytest.raises(UserError) as caught:
        check_model(plan(**sizes), config)
    assert words in str(caught.value)


def test_rows_that_can_not_be_split_name_numbers_that_can() -> None:
    check_rows(plan(data=2, shard=2), 8)
    with pytest.raises(UserError, match="take a batch size of 8 or 12"):
        check_rows(plan(data=2, shard=2), 10)
    with pytest.raises(UserError, match="take a batch size of 4"):
        check_rows(plan(data=2, shard=2), 3)
    with pytest.raises(UserError, match="take one of 1, 2, 4, 8"):
        check_rows(plan(pipeline=2, micro_batches=3), 8)


def test_every_layer_has_one_stage() -> None:
    for layers, stages in ((4, 2), (7, 3), (5, 4), (3, 3), (30, 8)):
        ranges = layers_of_stage(layers, stages)
        assert [i for r in ranges for i in r] == list(range(layers))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert [len(r) for r in layers_of_stage(6, 4)] == [1, 2, 2, 1]  # the ends do more besides


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "parts"), [(2, 1), (2, 4), (4, 2), (4, 8)])
def test_a_schedule_does_everything_once_and_holds_no_more_than_it_must(
    schedule: str, stages: int, parts: int
) -> None:
    for stage in range(stages):
        order = list(tasks(schedule, stage, stages, parts))
        assert sorted(order) == sorted(
            (k, i) for k in ("forward", "backward") for i in range(parts)
        )
        held = most = 0
        for kind, index in order:
            held += 1 if kind == "forward" else -1
            most = max(most, held)
            if kind == "backward":
                assert order.index(("forward", index)) < order.index(("backward", index))
        assert most == (min(stages - stage, parts) if schedule == "1f1b" else parts)
