"""The analyzer end to end on a tiny model, and its parts one by one."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmworks.compression.measure import Speedup
from lmworks.core.errors import UserError
from lmworks.evaluation import timed_models, timed_worker
from lmworks.evaluation.choices import answered, answers, continuations
from lmworks.evaluation.kl_forecast import fit_forecast
from lmworks.evaluation.noise_sensitivity import kind_of, sensitivities, weighed_error
from lmworks.evaluation.pareto_picture import pareto_picture
from lmworks.evaluation.quality_speed import AnalyzeConfig, analyze, prompt
from lmworks.evaluation.sample_texts import sample_texts
from lmworks.evaluation.statistics import Interval
from lmworks.evaluation.timed_models import Job, TimedModel, time_in_turns
from lmworks.evaluation.variant_figures import (
    Bounds,
    VariantFigures,
    VariantSpeed,
    dominated_by,
    recommend,
)
from lmworks.evaluation.weight_errors import rounding_errors, weight_errors
from lmworks.models.save import save_model


def _analyze(reference, texts_file, tmp_path, **settings):
    config = AnalyzeConfig(
        reference=str(reference),
        text=str(texts_file),
        **{"rounds": 0, "max_questions": 8, "threads": 1} | settings,
    )
    return analyze(config, tmp_path / "analysis", replace=True)


@pytest.mark.parametrize("rounds", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_variants_made_and_given_and_a_recommendation(reference, texts_file, tmp_path, rounds):
    from lmworks.compression.quantize import QuantizeConfig, quantize

    given = quantize(QuantizeConfig(model=str(reference), type="Q4_0"), tmp_path / "four").path
    made = _analyze(
        reference,
        texts_file,
        tmp_path,
        models=[str(given)],
        types=["Q8_0"],
        rounds=rounds,
        prompt_tokens=8,
        answer_tokens=3,
        max_loss=50,
    )
    found = json.loads((made.path / "analysis.json").read_text())
    rows = {row["name"]: row for row in found["variants"]}
    assert list(rows) == ["reference", "four", "Q8_0"]
    assert 0 < rows["Q8_0"]["kl"]["estimate"] < rows["four"]["kl"]["estimate"]
    assert 1 < rows["reference"]["perplexity"] < 10_000
    assert rows["four"]["perplexity"] / rows["reference"]["perplexity"] == pytest.approx(
        rows["reference"]["perplexity"] ** rows["four"]["loss_growth"]["estimate"], rel=1e-6
    )
    assert rows["Q8_0"]["weight_error"] < rows["four"]["weight_error"]
    assert rows["four"]["file_bytes"] == (given / "model.gguf").stat().st_size
    for row in rows.values() if rounds else []:
        assert row["speed"]["decode_tokens_per_s"] > 0
        assert row["speed"]["peak_memory_bytes"] > 10**8
    assert made.metrics["recommended"] in rows and found["chosen"] in rows
    kept = sorted(path.name for path in (made.path / "models").glob("*"))
    assert kept == ([found["chosen"]] if found["chosen"] == "Q8_0" else [])
    page = (made.path / "report.html").read_text()
    assert page.count("<tr") == 4 and "KL over file size" in page and "<script" not in page
    assert (made.path / "report.md").read_text().count("\n| ") == 4


def test_bounds_that_nothing_meets_name_the_nearest(reference, texts_file, tmp_path):
    made = _analyze(
        reference, texts_file, tmp_path, types=["Q4_0"], max_kl=1e-9, max_size="20kB", max_loss=0
    )
    assert made.metrics["recommended"] == ""
    assert "No variant meets all bounds; nearest is" in made.metrics["summary"]


def test_types_can_be_forecast_without_running_them(reference, texts_file, tmp_path):
    made = _analyze(
        reference,
        texts_file,
        tmp_path,
        types=["Q8_0", "Q5_0", "Q4_0"],
        predict=["Q5_1"],
        max_questions=0,
        keep="all",
    )
    found = json.loads((made.path / "analysis.json").read_text())
    rows = {row["name"]: row for row in found["variants"]}
    assert rows["Q5_1"]["forecast"] and rows["Q5_1"]["speed"] is None
    kls = [rows[name]["kl"]["estimate"] for name in ("Q8_0", "Q5_1", "Q4_0")]
    assert kls == sorted(kls)
    assert len(found["forecast"]["left_out"]) == 3
    assert sorted(path.name for path in (made.path / "models").glob("*")) == [
        "Q4_0",
        "Q5_0",
        "Q8_0",
    ]
    with pytest.raises(UserError, match="three measured variants"):
        _analyze(reference, texts_file, tmp_path, types=["Q8_0"], predict=["Q4_0"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no variant"),
        ({"types": ["Q9"]}, "type 'Q9'"),
        ({"types": ["Q8_0"], "max_size": "much"}, "--max-size"),
        ({"types": ["Q8_0"], "min_speed": 5.0}, "--rounds"),
        ({"types": ["Q8_0"], "max_documents": 2}, "2 groups of texts"),
    ],
)
def test_says_what_does_not_fit(reference, texts_file, tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        _analyze(reference, texts_file, tmp_path, **settings)


def test_another_vocabulary_is_refused(make_decoder, reference, texts_file, tmp_path, tokenizer):
    save_model(make_decoder(vocab_size=tokenizer.vocab_size + 4, context=512), tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(UserError, match="vocabularies"):
        _analyze(reference, texts_file, tmp_path, models=[str(tmp_path / "other")])


def test_the_command_has_its_options():
    from lmworks.cli.main import cli

    text = CliRunner().invoke(cli, ["compress", "analyze", "--help"]).output
    for flag in ("--reference", "--model", "--type", "--predict", "--max-loss", "--prefer"):
        assert flag in text


# --- weights and forecasts ---


def test_weight_errors_are_those_of_the_matrices(reference, tmp_path):
    from lmworks.compression.quantize import QuantizeConfig, quantize
    from lmworks.models.load import load_language_model

    path = quantize(QuantizeConfig(model=str(reference), type="Q4_0"), tmp_path / "q4").path
    before, after = (load_language_model(each).state_dict() for each in (reference, path))
    errors: dict[str, list[float]] = {}
    for name, weight in before.items():
        if weight.dim() == 2:
            error = float(((after[name] - weight) ** 2).sum() / (weight**2).sum())
            errors.setdefault(kind_of(name), []).append(error)
    found, told = weight_errors(reference, path), rounding_errors(reference, "Q4_0")
    assert set(found.by_kind) == set(errors) and "mixer.q_proj" in errors
    for kind, each in errors.items():
        assert found.by_kind[kind] == pytest.approx(np.mean(each), rel=1e-5)
    assert found.relative == pytest.approx(np.mean(list(found.by_kind.values())))
    assert told.relative == pytest.approx(found.relative, rel=1e-3)
    assert told.bits_per_weight == pytest.approx(found.bits_per_weight, rel=0.25)  # no metadata
    assert weight_errors(reference, reference).relative == 0


def test_a_power_law_is_found_and_what_is_left_out_is_met():
    errors = [1e-5, 1e-4, 1e-3, 1e-2]
    forecast = fit_forecast(errors, [3 * e**1.2 for e in errors])
    assert forecast.slope == pytest.approx(1.2) and forecast.typical_error < 1e-9
    assert forecast.kl(5e-3) == pytest.approx(3 * 5e-3**1.2)
    odd = fit_forecast(errors, [e * (10 if e == 1e-2 else 1) for e in errors])
    assert odd.left_out[3] == pytest.approx(0.1)  # the other three lie on a line of their own
    assert fit_forecast(errors[:2], errors[:2]) is None
    assert fit_forecast([0.0, 0.0, 1e-3], [0.1, 0.1, 0.1]) is None


def test_noise_costs_what_its_kind_is_sensitive_to(reference):
    from lmworks.evaluation.divergence import divergences
    from lmworks.models.load import load_language_model

    model, noisy = load_language_model(reference), load_language_model(reference)
    rows = [np.arange(3, 60), np.arange(100, 140)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sensitivities(model, load_language_model(reference), rows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {"embed_tokens", "mixer.o_proj", "feed_forward.down_proj"} <= set(found)
    generator = torch.Generator().manual_seed(99)
    errors = {}
    for name, weight in noisy.state_dict().items():
        if weight.dim() == 2:
            noise = torch.randn(weight.shape, generator=generator)
            weight += noise * (1e-4 * weight.square().mean()).sqrt()
            errors[kind_of(name)] = 1e-4
    kl = divergences(load_language_model(reference), noisy, rows).mean_kl().estimate
    assert weighed_error(errors, found) == pytest.approx(kl, rel=0.35)
    assert kind_of("layers.12.feed_forward.experts.3.up_proj.weight") == "feed_forward.up_proj"


# --- what to take ---


def _variant(name, kl, megabytes, rate, *, spread=0.0, **more):
    speed = VariantSpeed(
        prompt_tokens_per_s=rate,
        decode_tokens_per_s=rate,
        decode_ratio=Speedup(ratio=1, low=0, high=math.inf),
        prompt_ratio=Speedup(ratio=1, low=0, high=math.inf),
        weight_bytes=0,
        peak_memory_bytes=0,
    )
    return VariantFigures(
        name=name,
        path=name,
        file_bytes=int(megabytes * 1e6),
        bits_per_weight=megabytes,
        kl=Interval(kl, kl - spread, kl + spread),
        loss_growth=Interval(kl, kl - spread, kl + spread),
        speed=speed,
        **more,
    )


VARIANTS = [
    _variant("reference", 0.0, 100, 10),
    _variant("eight", 0.01, 60, 20, spread=0.005),
    _variant("five", 0.05, 40, 30),
    _variant("poor five", 0.08, 40.1, 30.5),
    _variant("four", 0.2, 30, 29.5),
]


def test_dominated_is_what_nobody_has_a_reason_to_take():
    marks = {v.name: dominated_by(v, VARIANTS) for v in VARIANTS}
    assert marks == {"reference": "", "eight": "", "five": "", "poor five": "five", "four": ""}


@pytest.mark.parametrize(
    ("bounds", "prefer", "taken"),
    [
        (Bounds(), "speed", "four"),  # as fast as any within 3 % and a half, and smaller
        (Bounds(max_kl=0.06), "speed", "five"),
        (Bounds(max_kl=0.014), "speed", "reference"),  # the interval of "eight" reaches beyond
        (Bounds(max_loss=0.015), "speed", "eight"),
        (Bounds(max_bytes=50_000_000), "quality", "five"),
        (Bounds(min_tokens_per_s=15), "size", "four"),
        (Bounds(max_bytes=50_000_000, max_kl=0.04), "speed", None),
    ],
)
def test_the_recommendation_meets_the_bounds(bounds, prefer, taken):
    variants = VARIANTS
    if taken == "four" and prefer == "speed":
        variants = [*VARIANTS[:3], VARIANTS[4]]
    chosen = recommend(variants, bounds, prefer)
    assert (chosen and chosen.name) == taken
    if chosen is None:
        assert all(bounds.broken_by(v) for v in VARIANTS)


def test_the_picture_keeps_names_apart_and_joins_the_front():
    same = [_variant("reference", 0.0, 100, 10)]
    same += [_variant(f"v{i}", 0.1 + i * 1e-4, 40, 30, spread=0.01) for i in range(4)]
    picture = pareto_picture(
        same, lambda v: v.file_bytes / 1e6, "MB", dominated_by={"v3": "v0"}, chosen="v0"
    )
    heights = sorted(point.label_y for point in picture.points)
    assert all(b - a >= 5 for a, b in itertools.pairwise(heights))
    assert {p.name: p.mark for p in picture.points}["v3"] == "dominated"
    assert picture.front.count(",") == 1  # all are equally large
    assert all(p.whisker[0] < p.y < p.whisker[1] for p in picture.points)
    assert pareto_picture(same[:2], lambda v: 1.0, "", dominated_by={}, chosen="") is None


@pytest.mark.parametrize(("more", "front"), [(False, [30, 40, 60]), (True, [60])])
def test_the_line_joins_those_that_none_beats_in_both(more, front):
    picture = pareto_picture(
        VARIANTS,
        lambda v: v.file_bytes / 1e6,
        "",
        more_is_better=more,
        dominated_by={},
        chosen="",
    )
    at = {round(p.x, 2): p.name for p in picture.points}
    joined = [at[float(pair.split(",")[0])] for pair in picture.front.split()]
    sizes = {v.name: v.file_bytes / 1e6 for v in VARIANTS}
    assert [sizes[name] for name in joined] == front


# --- texts and tasks ---


def test_texts_are_cut_at_words_and_the_same_again(texts_file, tokenizer):
    one = sample_texts(texts_file, tokenizer, max_documents=5, characters=300, seed=3)
    two = sample_texts(texts_file, tokenizer, max_documents=5, characters=300, seed=3)
    assert one.texts == two.texts and len(one.texts) == 5
    assert all(150 <= len(text) <= 300 for text in one.texts)
    assert list(one.num_bytes) == [len(text.encode()) for text in one.texts]
    assert one.num_tokens == sum(len(tokenizer.encode(text)) for text in one.texts)
    assert prompt(one, 2000)[: len(one.rows[0])] == tuple(one.rows[0])
    assert len(prompt(one, 2000, first=4)) == 2000


@pytest.mark.parametrize(
    ("content", "said"),
    [("{}\n", "line 1 has no `text`"), ("{\n", "line 1 is not valid JSON"), ("", "no text of 200")],
)
def test_a_file_without_texts_is_told(tmp_path, tokenizer, content, said):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UserError, match=said):
        sample_texts(tmp_path / "t.jsonl", tokenizer)


def test_a_row_is_a_line_whatever_its_text_holds(tmp_path, tokenizer):
    texts = ["one\u2028two\x85three " * 20, "four " * 60]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "t.jsonl").write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    found = sample_texts(tmp_path / "t.jsonl", tokenizer)
    assert list(found.texts) == [text.strip() for text in texts]
    assert list(found.groups) == ["1", "3"]  # the numbers of their lines


def test_the_right_continuation_is_of_the_text_and_the_wrong_ones_are_not(texts_file, tokenizer):
    texts = sample_texts(texts_file, tokenizer)
    found = continuations(texts, most=5, context=6, length=3)
    assert len(found.rows) == 20 and found.sizes.shape == (5, 4)
    whole = {str(g): row.tolist() for g, row in zip(texts.groups, texts.rows, strict=True)}
    for question, group in enumerate(found.groups):
        right = found.rows[4 * question]
        body = whole[str(group)]
        window = right[1:].tolist()
        assert any(body[i : i + 9] == window for i in range(len(body)))
        assert all(mask.sum() == 3 and mask[-3:].all() for mask in found.scored)


def test_wrong_continuations_never_come_from_the_same_group(texts_file, tokenizer):
    texts = sample_texts(texts_file, tokenizer, max_documents=4)
    rows = tuple(np.full(40, number) for number in range(4))
    alike = dataclasses.replace(texts, rows=rows, groups=np.array(["a", "b", "c", "d"]))
    found = continuations(alike, context=6, length=3)
    assert all(
        sorted(int(row[-1]) for row in found.rows[i : i + 4]) == [0, 1, 2, 3]
        for i in range(0, len(found.rows), 4)
    )


def test_answered_takes_the_likeliest_for_its_size(texts_file, tokenizer):
    found = continuations(sample_texts(texts_file, tokenizer), most=3, context=6, length=3)

    def logprobs(rows):
        first = [i % 4 == 0 for i in range(len(rows))]
        return [np.full(len(r) - 1, -1.0 if f else -2.0) for r, f in zip(rows, first)]

    assert answered(logprobs, found).tolist() == [1, 1, 1]
    halved = dataclasses.replace(found, sizes=found.sizes * np.array([0.25, 1, 1, 1]))
    assert answered(logprobs, halved).tolist() == [0, 0, 0]


def test_answers_of_others_are_the_wrong_ones(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"the line {i}"},
                {"role": "assistant", "content": f"the page {i}"},
            ]
        }
        for i in range(5)
    ]
    found = answers(rows, tokenizer, most=3)
    assert len(found.rows) == 12 and found.sizes.shape == (3, 4)
    shown = [tokenizer.decode([int(t) for t in row]) for row in found.rows]
    assert all(len({text.splitlines()[0] for text in shown[i : i + 4]}) == 1 for i in (0, 4, 8))
    assert all(len(set(shown[i : i + 4])) == 4 for i in (0, 4, 8))
    row = rows[0]
    longer = {"messages": [*row["messages"], *rows[1]["messages"]]}
    several = answers([longer, *rows], tokenizer)
    told = tokenizer.decode([int(t) for t in several.rows[0][1:][several.scored[0]]])
    assert "page 1" in told and "page 0" not in told  # not the answer before it
    with pytest.raises(UserError, match="3 different answers"):
        answers(rows[:3], tokenizer)


# --- timing ---


def _job(reference, **changes):
    job = Job(model=str(reference), prompts=((1, 2, 3), (4, 5, 6, 7)), answer_tokens=4, threads=1)
    return dataclasses.replace(job, **changes)


def test_a_process_answers_in_rounds_and_its_failure_is_told(reference):
    (timed,) = time_in_turns([_job(reference)], rounds=2)
    assert timed.against == ((1.0, 1.0), (1.0, 1.0))
    assert timed.weight_bytes > 0 and timed.peak_memory_bytes > 10**8 and not timed.not_fused
    seconds = sorted(timed.decode_s)
    assert timed.decode_tokens_per_s == pytest.approx(2 * 3 / (sum(seconds) / 2))
    assert timed.seconds[0] == timed.prompt_s[0] + timed.decode_s[0]
    with TimedModel(_job(reference)) as model:
        model._process.kill()
        with pytest.raises(UserError, match="ended with -9"):
            model.wait()


def test_what_a_worker_says(reference, tmp_path):
    def said(job, rounds):
        out = io.StringIO()
        timed_worker.main(io.StringIO(json.dumps(dataclasses.asdict(job)) + rounds), out)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    loaded, *rounds = said(_job(reference, speculate="lookup"), "\nround\nround\n")
    assert loaded["weight_bytes"] > 0 and len(rounds) == 2
    assert all(each["prompt_s"] > 0 and each["decode_s"] > 0 for each in rounds)
    (tmp_path / "nothing").mkdir()
    assert "nothing" in said(_job(tmp_path / "nothing"), "\n")[0]["error"]


@pytest.mark.slow
def test_processes_take_turns(reference):
    one, two = time_in_turns([_job(reference), _job(reference, packed=False)], rounds=2)
    assert one.against == ((1.0, 1.0), (1.0, 1.0)) and len(two.against[0]) == 2
    assert two.against[0][0] == pytest.approx(one.decode_s[0] / two.decode_s[0])
    assert two.against[1][1] == pytest.approx(one.prompt_s[1] / two.prompt_s[1])


@pytest.mark.parametrize("room", [10**6, 10**12])
def test_groups_of_processes_fit_and_each_has_the_baseline(reference, monkeypatch, room):
    monkeypatch.setattr("lmworks.core.machine.memory_bytes", lambda: room)
    groups = timed_models._groups([_job(reference)] * 4)
    assert groups == ([[0, 1], [0, 2], [0, 3]] if room == 10**6 else [[0, 1, 2, 3]])
