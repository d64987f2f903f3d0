"""Merging an adapter by command: what is kept, what a dry run says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compression.test_merge_back import written

from lmworks.cli.main import main
from lmworks.core.gguf import read_gguf
from lmworks.core.stages import Artifact
from lmworks.evaluation.statistics import share_of_gain
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.files import save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.load import load_language_model
from lmworks.tokenizers.load import load_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "the",
    "dog",
    "lay",
    "near",
    "the",
    "old",
    "red",
    "door",
    "of",
    "a",
    "small",
    "house",
]


def text(seed: int) -> str:
    """Sentences in which words follow each other as in WORDS, more often than not."""
    random = np.random.default_rng(seed)
    at, out = 0, []
    for _ in range(40):
        out.append(WORDS[at])
        at = (at + 1) % len(WORDS) if random.random() < 0.8 else int(random.integers(len(WORDS)))
    return " ".join(out)


def write_rows(path: Path, seeds: range) -> None:
    rows = [
        {"id": f"d{i}", "text": text(i), "title": "t", "source": "s", "group": f"g{i}"}
        for i in seeds
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("merged"), "Q4_0")


def trained(folder: Path, kind: str) -> Path:
    """A folder with a packed base, an adapter trained on its blocks, and a corpus."""
    file = written(folder, kind)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    write_rows(corpus / "train.jsonl", range(40))
    write_rows(corpus / "heldout.jsonl", range(100, 112))
    tokenizer, model = load_tokenizer(file), load_language_model(file, packed=True)
    adapter = add_adapter(model, LoRAConfig(rank=4, alpha=8.0))
    optimizer = torch.optim.AdamW(adapter.parameters, lr=5e-3)
    for step in range(60):
        ids = torch.tensor([tokenizer.encode(text(i))[:48] for i in range(step % 5, 40, 5)])
        loss = torch.nn.functional.cross_entropy(
            model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_adapter(adapter, folder / "adapter", base=str(file))
    return folder


def run(folder: Path, *more: str, adapter: str = "adapter") -> int:
    return main(
        [
            *("compress", "merge-adapter", "--adapter", str(folder / adapter)),
            *("--calibration", str(folder / "corpus"), "--threads", "1", *more),
        ]
    )


def test_the_gain_is_kept(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "--out", str(tmp_path / "out")) == 0
    metrics = Artifact.load(tmp_path / "out").metrics
    bits = metrics["bits_per_byte"]
    assert bits["adapted"] < bits["base"] - 0.3  # there is something to keep
    kept, plain = metrics["gain_kept"], metrics["gain_kept_rounded"]
    assert kept["low"] < kept["estimate"] < kept["high"]
    assert kept["estimate"] == pytest.approx(
        (bits["base"] - bits["merged"]) / (bits["base"] - bits["adapted"])
    )
    assert kept["estimate"] > 0.9 and kept["estimate"] > plain["estimate"]
    assert metrics["types"] == {"Q4_0": 14} and metrics["tensors_changed"] == 14
    before = read_gguf(next((made / "gguf").glob("*.gguf")))
    after = read_gguf(tmp_path / "out" / "model.gguf")
    assert after.metadata == before.metadata
    assert "it keeps" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "out" / "merged.json").read_text(encoding="utf-8"))) == 14


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_every_type_keeps_nine_tenths(kind: str, tmp_path: Path) -> None:
    assert run(trained(tmp_path, kind), "--out", str(tmp_path / "out")) == 0
    metrics = Artifact.load(tmp_path / "out").metrics
    kept, plain = metrics["gain_kept"], metrics["gain_kept_rounded"]
    print(kind, metrics["bits_per_byte"], kept, plain)
    assert metrics["types"] == {kind: 14}
    assert kept["low"] > 0.9 and kept["estimate"] > plain["estimate"] - 0.001


@pytest.mark.parametrize("kind", ["Q4_0", pytest.param("Q4_K", marks=pytest.mark.slow)])
def test_llama_cpp_reads_it_and_finds_the_gain(made: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp, to check llama.cpp")
    from tests.compression.test_llama_cpp import Server

    folder = made if kind == "Q4_0" else trained(tmp_path / kind, kind)
    assert run(folder, "--out", str(tmp_path / "out")) == 0
    files = {
        "base": next((folder / "gguf").glob("*.gguf")),
        "merged": tmp_path / "out" / "model.gguf",
    }
    tokenizer = load_tokenizer(files["base"])
    rows = [tokenizer.encode(text(seed))[:24] for seed in range(100, 106)]
    places = [(row, at) for row in range(len(rows)) for at in range(8, 24, 3)]
    found: dict[str, list[float | None]] = {}
    ours: dict[str, list[float]] = {}
    for name, path in files.items():
        server, model = Server(path), load_language_model(path, packed=True)
        found[name], ours[name] = [], []
        for row, at in places:
            body = {"prompt": rows[row][:at], "n_predict": 1, "temperature": 0, "n_probs": 1000}
            # What ends at once, or within a character, is answered without probabilities.
            answer = server.ask("/completion", body).get("completion_probabilities")
            listed = (
                {one["id"]: one["logprob"] for one in answer[0]["top_logprobs"]} if answer else {}
            )
            found[name].append(listed.get(rows[row][at]))
            with torch.inference_mode():
                logits = model(torch.tensor([rows[row][:at]]))[0, -1]
            ours[name].append(float(logits.log_softmax(-1)[rows[row][at]]))
    both = [i for i in range(len(places)) if None not in (found["base"][i], found["merged"][i])]
    assert len(both) > 20
    theirs = {name: np.array([found[name][i] for i in both], dtype=float) for name in files}
    mine = {name: np.array([ours[name][i] for i in both]) for name in files}
    for name in files:  # llama.cpp rounds activations to 8 bits, keys and values to float16
        print(kind, name, theirs[name].mean(), mine[name].mean())
        assert abs(theirs[name].mean() - mine[name].mean()) < 0.05
    gain = mine["merged"].mean() - mine["base"].mean()
    assert gain > 0.2
    assert theirs["merged"].mean() - theirs["base"].mean() > 0.9 * gain


def test_rounding_alone_is_to_be_had(made: Path, tmp_path: Path) -> None:
    assert run(made, "--method", "round", "--out", str(tmp_path / "out")) == 0
    metrics = Artifact.load(tmp_path / "out").metrics
    assert metrics["gain_kept"] == metrics["gain_kept_rounded"]


def test_a_dry_run_lists_what_changes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "blk.1.ffn_down.weight  Q4_0  64 x 64" in out
    assert "14 tensors would change" in out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--method", "guess"], "known are solve and round"),
        (["--calibration-tokens", "30"], "has 30 tokens; give at least 256"),
        (["--base", "MODEL"], "holds no GGUF file: merge into float32 weights with"),
    ],
)
def test_what_can_not_be_done_is_told(
    made: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [str(made / "model") if word == "MODEL" else word for word in more]
    assert run(made, *more, "--out", str(tmp_path / "out")) == 2
    assert told in capsys.readouterr().err


def test_an_adapter_that_gains_nothing_says_so(made: Path, tmp_path: Path) -> None:
    from lmworks.models.adapters.files import load_adapter

    file = next((made / "gguf").glob("*.gguf"))
    adapter = load_adapter(load_language_model(file, packed=True), made / "adapter")
    for parameter in adapter.parameters:
        parameter.data *= -1.5 if parameter.shape[1] == 4 else 1.0
    save_adapter(adapter, tmp_path / "adapter", base=str(file))
    (tmp_path / "corpus").symlink_to(made / "corpus")
    assert run(tmp_path, "--method", "round", "--out", str(tmp_path / "out")) == 0
    assert Artifact.load(tmp_path / "out").metrics["gain_kept"] is None
    assert "gains nothing" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_share_of_a_gain_has_an_interval() -> None:
    random = np.random.default_rng(0)
    before = random.uniform(10, 20, 60)
    best = before - random.uniform(2, 6, 60)
    kept = before - 0.9 * (before - best) + random.normal(0, 0.2, 60)
    groups = [f"g{i // 3}" for i in range(60)]
    share = share_of_gain(before, kept, best, groups)
    assert share.low < 0.9 < share.high and share.high - share.low < 0.1
    assert share_of_gain(before, best, best, groups).estimate == 1
    assert not share_of_gain(before, kept, best, ["a"] * 60).known
    with pytest.raises(ValueError, match="no gain"):
        share_of_gain(before, kept, before, groups)
