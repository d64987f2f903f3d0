"""The parity debugger: no false alarm on equal pairs, and the right cause of planted mistakes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import (
    test_decoders,
    test_encoder_decoders,
    test_encoders,
    test_expert_models,
    test_other_decoders,
    test_recurrent_architectures,
)
from tests.models.more_mistakes import MAMBA, MORE_MISTAKES
from tests.models.parity import randomised
from tests.models.planted_mistakes import MISTAKES, Mistake
from tests.models.test_load_gguf import CONFIG, scattered, write

from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig
from lmworks.models.model import Model
from lmworks.models.parity.compare import compare
from lmworks.models.parity.report import Report
from lmworks.models.parity.sides import Port

transformers = pytest.importorskip("transformers")

DECODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    **test_decoders.CASES,
    **test_other_decoders.CASES,
    **test_expert_models.CASES,
}


QUICK = ("llama", "qwen3", "gemma2", "phi3", "olmo2", "gpt_neox", "gpt2", "mixtral", "olmoe")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DECODERS]
)
def test_no_false_alarm_against_transformers(name: str, tmp_path: Path) -> None:
    kind, settings, _ = DECODERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    randomised(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    report = compare(str(tmp_path), f"transformers:{tmp_path}")
    assert report.equal, report.verdict
    assert not report.facts
    assert len(report.operations) > 10 * config.num_hidden_layers


def _named(report: Report, mistake: Mistake) -> bool:
    found = report.causes[0].cause if report.causes else "nothing"
    return report.first == mistake.operation and found in mistake.causes


@pytest.mark.parametrize("planted", [MISTAKES, MORE_MISTAKES], ids=["planned", "held out"])
def test_it_names_28_of_30_planted_mistakes(planted: list[Mistake], tmp_path: Path) -> None:
    """Where each is, and why. The score is printed; see the docs for that of the first run."""
    missed = []
    for number, mistake in enumerate(planted):
        report = compare(*mistake.make(tmp_path / str(number)), names=("ours", "port"))
        if not _named(report, mistake):
            missed.append(f"{mistake.name}: {report.verdict}")
    named = len(planted) - len(missed)
    print(f"{named} of {len(planted)} planted mistakes named", *missed, sep="\n")
    assert named * 30 >= 28 * len(planted)


def test_the_command_says_what_differs_and_why(
    make_llama: Callable[..., tuple[Any, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    from lmworks.cli.main import main

    _, right = make_llama("right")
    _, wrong = make_llama("wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert main(["model", "parity", str(right), str(right)]) == 0
    capsys.readouterr()
    assert main(["model", "parity", str(right), str(wrong), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == "layers.0.mixer_norm"
    assert found["causes"][0]["known"]
    assert "rms_norm_eps" in found["causes"][0]["fix"]
    assert not found["equal"]
    assert any("norm.eps" in fact for fact in found["facts"])


def test_a_port_from_the_bad_side(make_llama: Callable[..., tuple[Any, Path]]) -> None:
    """One clear line for each thing that can't be compared."""
    _, folder = make_llama()
    with pytest.raises(UserError, match="give it as a Port"):
        compare(folder, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="none of our parts"):
        compare(folder, Port(module=torch.nn.Linear(2, 2), names={"lm_heads": "x"}))
    with pytest.raises(UserError, match="returned dict"):
        broken = torch.nn.Module()
        broken.forward = lambda ids: {}  # type: ignore[method-assign, assignment]
        compare(folder, Port(module=broken, names={"lm_head": "x"}))
    with pytest.raises(UserError, match="outside the vocabulary of 97"):
        compare(folder, folder, input_ids=[1, 97])
    with pytest.raises(UserError, match="no tokenizer"):
        compare(folder, folder, text="hello")


@pytest.mark.parametrize(("kind", "relation"), [("F32", ""), ("F16", "float16"), ("Q8_0", "Q8_0")])
def test_rounded_weights_are_told_from_a_mistake(kind: str, relation: str, tmp_path: Path) -> None:
    model = scattered(CONFIG)
    path = write(model, tmp_path / "model.gguf", kind)
    for other in (str(path), f"{path}:packed"):
        report = compare(model, other, names=("ours", "gguf"))
        assert report.equal, report.verdict
        assert bool(report.facts) == bool(relation)
        assert all(relation in fact for fact in report.facts)
    assert "rounding alone" in report.verdict or not relation


def test_a_mistake_beside_rounded_weights(tmp_path: Path) -> None:
    """A rounded port whose base is wrong besides is not excused by its rounding."""
    model = scattered(CONFIG)
    mixer = CONFIG.layers[0].mixer
    assert isinstance(mixer, AttentionConfig)
    assert mixer.rope is not None
    turned = dataclasses.replace(mixer, rope=dataclasses.replace(mixer.rope, theta=77.0))
    wrong = Model(CONFIG.with_layers(mixer=turned)).eval()
    wrong.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    report = compare(model, wrong, names=("ours", "port"))
    assert report.first == "layers.0.mixer.q"
    assert "theta 77" in report.verdict


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2_is_equal_to_transformers_on_its_own_text() -> None:
    report = compare("smollm2-135m", "transformers:smollm2-135m")
    assert report.equal, report.verdict
    assert not report.facts
    assert len(report.operations) > 400


ENCODERS: dict[str, tuple[Any, ...]] = {
    "bert": (test_encoders.random_model, "Bert", "ForMaskedLM", {}),
    "mpnet": (test_encoders.random_model, "MPNet", "Model", {}),
    "t5": (test_encoder_decoders.random_model, "t5 1.1"),
    "bart": (test_encoder_decoders.random_model, "bart"),
    "mamba": (test_recurrent_architectures.their_model, "MambaConfig", MAMBA),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_no_false_alarm_in_other_families(name: str, tmp_path: Path) -> None:
    make, *arguments = ENCODERS[name]
    make(*arguments).save_pretrained(tmp_path)
    report = compare(str(tmp_path), f"transformers:{tmp_path}")
    assert report.equal, report.verdict
    assert not report.facts
