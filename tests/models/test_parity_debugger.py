"""The parity debugger: no false alarm on equal pairs, and the right cause of planted mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import test_decoders, test_expert_models, test_other_decoders
from tests.models.parity import randomised
from tests.models.planted_mistakes import MISTAKES, Mistake

from lmworks.core.errors import UserError
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


def test_it_names_28_of_30_planted_mistakes(tmp_path: Path) -> None:
    missed = []
    for number, mistake in enumerate(MISTAKES):
        report = compare(*mistake.make(tmp_path / str(number)), names=("ours", "port"))
        if not _named(report, mistake):
            missed.append(f"{mistake.name}: {report.verdict}")
    named = len(MISTAKES) - len(missed)
    print(f"{named} of {len(MISTAKES)} planted mistakes named", *missed, sep="\n")
    assert len(MISTAKES) >= 30
    assert named * 30 >= 28 * len(MISTAKES)


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
