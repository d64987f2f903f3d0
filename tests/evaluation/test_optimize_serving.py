"""The search on made-up times, and the stage with real processes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.evaluation import optimize_serving
from lmworks.evaluation.optimize_serving import AS_IT_IS, OptimizeConfig, optimize
from lmworks.evaluation.serving_search import ServingSearch, ServingSetting, Space
from lmworks.evaluation.timed_models import Job
from lmworks.serving.model_specs import read_pool_spec

SPACE = Space(
    format=(AS_IT_IS, "Q8_0", "Q4_0"),
    threads=(2, 1),
    max_batch=(4, 2),
    turn_tokens=(0, 32, 512),
    speculate=("", "lookup"),
    cache_type=("f32", "q8_0"),
)


@dataclasses.dataclass
class Machine:
    """Times that are products of what each choice costs, with a little noise."""

    costs: dict[str, dict[object, float]]
    random: np.random.Generator
    calls: int = 0

    def time(self, setting: ServingSetting) -> float:
        self.calls += 1
        factors = [self.costs[name][value] for name, value in vars(setting).items()]
        return float(np.prod(factors) * (1 + 0.001 * self.random.random()))


def _machine(seed):
    random = np.random.default_rng(seed)
    costs = {
        field.name: {value: random.uniform(0.5, 1) for value in getattr(SPACE, field.name)}
        for field in dataclasses.fields(SPACE)
    }
    return Machine(costs, random)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.sampled_from(["Q8_0", "Q4_0"])))
def test_races_come_to_what_all_combinations_come_to(seed, bad):
    """Within the margins of the races, 3 % for each question."""
    machine = _machine(seed)
    search = ServingSearch(time=machine.time, good_enough=lambda name, _: name not in bad)
    found = search.run(SPACE)
    timed = machine.calls
    machine.calls = 0
    best = ServingSearch(time=machine.time, good_enough=lambda name, _: name not in bad).exhaustive(
        SPACE
    )
    assert found.format not in bad and best.format not in bad
    assert machine.time(found) <= machine.time(best) * 1.04**5
    assert timed < machine.calls or bad


def test_quality_is_asked_of_the_fastest_first_and_never_of_the_model_itself():
    machine = _machine(0)
    machine.costs["format"] = {AS_IT_IS: 1.0, "Q8_0": 0.7, "Q4_0": 0.5}
    search = ServingSearch(
        time=machine.time, good_enough=lambda name, cache: (name, cache) == ("Q4_0", "f32")
    )
    machine.costs["cache_type"] = {"f32": 1.0, "q8_0": 0.5}
    best = search.run(SPACE)
    assert (best.format, best.cache_type) == ("Q4_0", "f32")
    assert search.asked == {("Q4_0", "f32"): True, ("Q4_0", "q8_0"): False}
    search = ServingSearch(time=machine.time, good_enough=lambda *_: False)
    assert search.run(SPACE).format == AS_IT_IS
    formats = {name for name, cache in search.asked if cache == "f32"}
    assert formats == {"Q4_0", "Q8_0"} and not any(search.asked.values())


@pytest.mark.parametrize("search", ["run", "exhaustive"])
def test_without_the_model_itself_each_format_is_asked(search):
    space = dataclasses.replace(SPACE, format=("Q8_0", "Q4_0"))
    machine = _machine(0)
    machine.costs["format"] = {"Q8_0": 0.5, "Q4_0": 1.0}
    good = ServingSearch(time=machine.time, good_enough=lambda name, _: name == "Q4_0")
    assert getattr(good, search)(space).format == "Q4_0"
    none = ServingSearch(time=machine.time, good_enough=lambda *_: False)
    with pytest.raises(UserError, match="none of Q8_0, Q4_0 is within the bounds"):
        getattr(none, search)(space)


def test_luck_does_not_unseat_the_usual_setting():
    random = np.random.default_rng(3)
    search = ServingSearch(
        time=lambda setting: 1 + 0.02 * float(random.random()), good_enough=lambda *_: True
    )
    assert search.run(SPACE) == SPACE.start()


def test_words_of_a_setting():
    setting = ServingSetting(format="Q4_0", threads=1, max_batch=4, turn_tokens=32)
    assert setting.words() == (
        "Q4_0, 1 thread, 4 answers at the same time, 32 prompt tokens between steps"
    )
    assert setting.engine() == {"max_batch": 4, "turn_tokens": 32}


class _Instant:
    """Stands for a process: Q4_0 is fast, guesses are slow."""

    def __init__(self, job):
        self.job = job
        self.loaded = {"weight_bytes": 1, "not_fused": ""}
        self.peak_memory_bytes = 1

    def wait(self):
        pass

    def round(self):
        speed = 3.0 if "Q4_0" in self.job.model else 1.0
        return 0.1 / speed, 0.2 / speed * (2 if self.job.speculate else 1)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _optimize(reference, texts_file, tmp_path, **changes):
    config = OptimizeConfig(
        model=str(reference),
        text=str(texts_file),
        **{"types": ["Q8_0", "Q4_0"], "max_loss": 0.0} | changes,
    )
    return optimize(config, tmp_path / "serving", replace=True)


@pytest.mark.parametrize("search", ["races", "exhaustive"])
def test_a_serving_config_that_serves(reference, texts_file, tmp_path, monkeypatch, search):
    monkeypatch.setattr("lmworks.evaluation.timed_models.TimedModel", _Instant)
    made = _optimize(reference, texts_file, tmp_path, search=search, users=2)
    spec = read_pool_spec(made.path / "models.yaml")
    (name, served), *_ = spec.models.items()
    assert name == "base-q4_0" and served.model == str(made.path / "base-q4_0")
    assert served.max_batch == 2 and not served.speculate and spec.threads >= 1
    assert made.metrics["speedup"] == pytest.approx(3)
    found = json.loads((made.path / "optimized.json").read_text())
    assert found["best"]["format"] == "Q4_0" and found["start"]["format"] == AS_IT_IS
    everything = len(found["timed"]) == found["combinations"]
    assert everything == (search == "exhaustive")
    page = (made.path / "report.html").read_text()
    assert "3.00 times as fast" in page and "models.yaml" in page and "<script" not in page


def test_a_bound_that_no_type_meets_leaves_the_model_as_it_is(
    reference, texts_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("lmworks.evaluation.timed_models.TimedModel", _Instant)
    made = _optimize(reference, texts_file, tmp_path, max_kl=1e-9)
    written = yaml.safe_load((made.path / "models.yaml").read_text())
    assert written["models"]["base"]["model"] == str(reference)
    found = json.loads((made.path / "optimized.json").read_text())
    assert [row["format"] for row in found["quality"]] == ["Q4_0"]  # Q8_0 is no faster here
    assert all("KL may be" in row["broken"][0] for row in found["quality"])
    assert made.metrics["speedup"] == 1.0


def test_what_is_not_shown_to_be_faster_is_not_taken(reference, texts_file, tmp_path, monkeypatch):
    class Lucky(_Instant):
        """Fast in the races, and as fast as the others when it is measured again."""

        raced = 0

        def round(self):
            Lucky.raced += "Q4_0" in self.job.model
            return (0.1, 0.2) if Lucky.raced > 4 else super().round()

    monkeypatch.setattr("lmworks.evaluation.timed_models.TimedModel", Lucky)
    made = _optimize(reference, texts_file, tmp_path, types=["Q4_0"], rounds=1)
    found = json.loads((made.path / "optimized.json").read_text())
    assert found["fastest"]["format"] == "Q4_0" and found["best"] == found["start"]
    assert made.metrics["speedup"] == 1.0 and "shows nothing" in made.metrics["summary"]
    assert list(yaml.safe_load((made.path / "models.yaml").read_text())["models"]) == ["base"]
    assert "that shows nothing" in (made.path / "report.html").read_text()


@pytest.mark.parametrize("search", ["races", "exhaustive"])
def test_a_size_that_the_model_itself_exceeds(reference, texts_file, tmp_path, monkeypatch, search):
    """The bound on quality holds for what is left, and speed is still told against the model."""
    monkeypatch.setattr("lmworks.evaluation.timed_models.TimedModel", _Instant)
    small = {"max_size": "200kB", "search": search}
    made = _optimize(reference, texts_file, tmp_path, **small)
    found = json.loads((made.path / "optimized.json").read_text())
    assert found["start"]["format"] == AS_IT_IS and found["best"]["format"] == "Q4_0"
    assert "Q4_0" in [row["format"] for row in found["quality"]]
    assert made.metrics["speedup"] == pytest.approx(3)
    made = _optimize(reference, texts_file, tmp_path, types=["Q8_0"], **small)
    found = json.loads((made.path / "optimized.json").read_text())
    assert found["best"] == found["fastest"] and found["best"]["format"] == "Q8_0"  # no faster
    assert made.metrics["speedup"] == pytest.approx(1)
    with pytest.raises(UserError, match="within the bounds on quality"):
        _optimize(reference, texts_file, tmp_path, max_kl=1e-9, **small)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"types": ["Q9"]}, "type 'Q9'"),
        ({"users": 0}, "needs a user"),
        ({"max_kl": -1.0}, "from 0 up"),
        ({"max_size": "1kB"}, "the smallest is Q4_0"),
    ],
)
def test_says_what_does_not_fit(reference, texts_file, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        _optimize(reference, texts_file, tmp_path, **changes)


def test_a_process_runs_what_its_setting_says(reference, texts_file, tokenizer):
    from lmworks.evaluation.sample_texts import sample_texts

    setting = ServingSetting(
        format="Q4_0", threads=3, max_batch=2, turn_tokens=32, speculate="lookup", cache_type="f16"
    )
    config = OptimizeConfig(model=str(reference), users=3, prompt_tokens=7, answer_tokens=5)
    texts = sample_texts(texts_file, tokenizer)
    job = optimize_serving._job(config, {"Q4_0": reference}, texts, setting)
    assert (job.model, job.threads, job.speculate) == (str(reference), 3, "lookup")
    assert job.engine == {"max_batch": 2, "turn_tokens": 32, "cache_type": "f16"}
    assert [len(prompt) for prompt in job.prompts] == [7, 7, 7] and job.answer_tokens == 5
    assert len(set(job.prompts)) == 3


def test_processes_that_were_asked_least_lately_go(reference, texts_file, tmp_path, monkeypatch):
    closed = []

    class Counted(_Instant):
        def close(self):
            closed.append(self.job.threads)

    monkeypatch.setattr("lmworks.evaluation.timed_models.TimedModel", Counted)
    job = Job(model="m", prompts=((1,),))
    monkeypatch.setattr(optimize_serving, "_job", lambda *_: dataclasses.replace(job, threads=_[3]))
    runners = optimize_serving._Runners(None, {}, None)
    monkeypatch.setattr(optimize_serving, "_MOST_PROCESSES", 2)
    for setting in (1, 2, 1, 3):
        runners.time(setting)
    assert closed == [2]
    runners.close()
    assert sorted(closed) == [1, 2, 3]


@pytest.mark.slow
def test_the_stage_with_real_processes(reference, texts_file, tmp_path):
    made = _optimize(
        reference, texts_file, tmp_path, types=["Q4_0"], prompt_tokens=8, answer_tokens=3, rounds=1
    )
    assert made.metrics["speedup"] > 0 and read_pool_spec(made.path / "models.yaml").models
