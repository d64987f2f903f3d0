"""The attention report, its page and pictures, and the command."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.cli.explain_attention import command
from lmworks.core.errors import UserError
from lmworks.evaluation import attention_page, attention_report, heat_maps
from lmworks.evaluation.attention_report import explain_attention
from lmworks.models.attention_rollout import rollout
from lmworks.models.attention_trace import trace_attention
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe

TEXT = "the cat sat. the cat ran. the cat sat & <b>slept</b>."


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT * 5, "the dog"], vocab_size=290)


@pytest.fixture(scope="module")
def model(tokenizer):
    mixer = AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    model = Model(ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=3, mixer=mixer,
        feed_forward=MLPConfig(intermediate_size=64),
    ))  # fmt: skip
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention") / "tiny"
    save_model(model, folder, tokenizer=tokenizer)
    return folder


def pixels_of(data):
    """A PNG's pixels, read by the letter of its specification."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", body)
            assert rest == [8, 2, 0, 0, 0]
        found += body if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(found), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_png_is_read_back(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    assert np.array_equal(pixels_of(heat_maps.png(pixels)), pixels)


def test_colours_get_darker_throughout():
    light = heat_maps.colours(np.linspace(0, 1, 200) ** 2).astype(int).sum(-1)
    assert (np.diff(light) <= 0).all() and light[0] > 700 and light[-1] < 150


def test_the_report_holds_what_the_trace_gives(model, tokenizer):
    report = explain_attention(model, tokenizer, TEXT, with_rollout=True, query=5)
    ids, tokens = attention_report.text_tokens(tokenizer, TEXT)
    trace = trace_attention(model, ids)
    assert len(report.summaries) == 12 and report.tokens == tokens and report.every == 1
    assert "".join(tokens) == TEXT
    for head in report.chosen:
        s = head.summary
        assert head.step == 1
        assert np.abs(head.image - trace.rows(s.layer, s.head).numpy()).max() < 1e-6
        place, token, weight = report.rows[s.layer, s.head][0]
        row = trace.rows(s.layer, s.head, 5, 6)[0]
        assert (place, token) == (int(row.argmax()), tokens[place])
        assert weight == pytest.approx(float(row.max()))
    assert np.abs(report.rollout - rollout(trace).numpy()).max() < 1e-6
    kinds = [head.summary.kind for head in report.chosen]
    assert len(kinds) == len(set(kinds)) <= 6


def test_what_does_not_fit_is_read_twice_with_equal_results(model, tokenizer, monkeypatch):
    whole = explain_attention(model, tokenizer, TEXT)
    monkeypatch.setattr(attention_report, "MOST_BYTES", 0)
    again = explain_attention(model, tokenizer, TEXT)
    for one, other in zip(whole.chosen, again.chosen, strict=True):
        assert one.summary == other.summary and np.array_equal(one.image, other.image)


def test_nothing_but_the_named_heads_is_computed(model, tokenizer, monkeypatch):
    seen = []
    made = attention_report.Overview.__call__

    def visit(self, tile):
        seen.append(tile.layer)
        made(self, tile)

    monkeypatch.setattr(attention_report.Overview, "__call__", visit)
    report = explain_attention(model, tokenizer, TEXT, layers=[1], heads=[0, 3])
    assert set(seen) == {1} and [(s.layer, s.head) for s in report.summaries] == [(1, 0), (1, 3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [3]}, "has layers 0 to 2"),
        ({"heads": [4]}, "head 4: layer 0 has heads 0 to 3"),
        ({"query": 99}, "query 99: the text has tokens 0 to"),
        ({"with_rollout": True, "layers": [0]}, "rollout needs all heads"),
    ],
)
def test_what_is_not_there_is_told(model, tokenizer, options, words):
    with pytest.raises(UserError, match=words):
        explain_attention(model, tokenizer, TEXT, **options)


def test_the_page_is_one_file_that_loads_nothing(model, tokenizer, tmp_path):
    report = explain_attention(model, tokenizer, TEXT, name="<i>tiny</i>", with_rollout=True)
    attention_page.save(report, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and "http://" not in page.replace(
        "http://www.w3.org/2000/svg", "")  # fmt: skip
    assert "<b>" not in page and "<i>" not in page and "&lt;i&gt;tiny" in page
    assert page.count("<figure><img") == 12 and page.count("<svg") == len(report.chosen) + 1


def test_pictures(model, tokenizer, tmp_path):
    whole = explain_attention(model, tokenizer, TEXT)
    alone = explain_attention(model, tokenizer, TEXT, layers=[1], heads=[2])
    for name, report in (("whole", whole), ("alone", alone)):
        for suffix in ("svg", "png"):
            attention_page.save(report, tmp_path / f"{name}.{suffix}")
    count = len(whole.tokens)
    head = pixels_of((tmp_path / "alone.png").read_bytes())
    scale = 512 // count
    assert head.shape == (count * scale, count * scale, 3)
    assert np.array_equal(head[::scale, ::scale], heat_maps.colours(alone.chosen[0].image))
    grid = pixels_of((tmp_path / "whole.png").read_bytes())
    assert grid.shape == (3 * (count + 2) + 2, 4 * (count + 2) + 2, 3)
    assert (tmp_path / "whole.svg").read_text().count("<image") == 12
    svg = (tmp_path / "alone.svg").read_text()
    assert "layer 1, head 2" in svg and svg.count("rotate(-60)") == count
    with pytest.raises(UserError, match="neither"):
        attention_page.save(whole, tmp_path / "a.gif")


def test_the_command(folder, tmp_path):
    out = tmp_path / "cat.html"
    done = CliRunner().invoke(
        command, [str(folder), "--text", TEXT, "--query", "4", "--out", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert "12 heads" in done.stdout and f"written: {out}" in done.stdout and out.is_file()
    assert "looks at" in done.stdout
    done = CliRunner().invoke(
        command, [str(folder), "--text", TEXT, "--layers", "0,2", "--heads", "1-2", "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    heads = json.loads(done.stdout)["heads"]
    assert [(h["layer"], h["head"]) for h in heads] == [(0, 1), (0, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--text, or a file"),
        (["--text", "a b", "--layers", "x"], "write numbers as 3 or 0,5-7"),
        (["--text", "a b", "--out", "x.gif"], "neither .html"),
    ],
)
def test_wrong_options_are_told(folder, arguments, words):
    with pytest.raises(UserError, match=words):
        CliRunner().invoke(command, [str(folder), *arguments], catch_exceptions=False)
