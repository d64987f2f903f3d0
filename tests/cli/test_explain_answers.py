"""`lmworks explain answers`: what is learnt stands in brackets, what is not is told."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lmworks.cli.explain_answers import command
from lmworks.tokenizers.train import train_bpe


def test_what_is_learnt_and_what_is_not(tmp_path: Path) -> None:
    train_bpe(["hello there " * 20], vocab_size=270).save(tmp_path / "tok")
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "hello"}]
    silent = [good[0], {**good[1], "weight": 0}]
    lines = [json.dumps({"messages": messages}) for messages in (good, silent)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    arguments = [str(tmp_path / "tok"), str(tmp_path / "chats.jsonl")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "<|im_start|>user\nq<|im_end|>" in result.output
    assert "[[hello<|im_end|>]]" in result.output
    assert "line 2: every answer is left out" in result.output
    everything = CliRunner().invoke(command, [*arguments, "--loss-on", "everything", "--rows", "1"])
    assert everything.output.count("[[") == 1 and "[[<|im_start|>user" in everything.output
