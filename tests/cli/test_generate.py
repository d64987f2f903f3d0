from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch
from click.testing import CliRunner

from lmworks.cli.generate import command
from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
    "required": ["kind", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=32),
        max_position_embeddings=128,
    )
    network = Model(config).eval()
    network.reset_parameters(torch.Generator().manual_seed(3))
    save_model(network, folder)
    train_bpe(["no merge is learnt"], vocab_size=260).save(folder)
    return str(folder)


def generate(*arguments):
    outcome = CliRunner().invoke(command, list(arguments))
    if isinstance(outcome.exception, UserError):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_text_in_a_form(model, tmp_path):
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('start: "a"{2,4} "-" /[0-9]{3}/')
    text = generate(model, "It is ", "--json-schema", str(schema), "--seed", "1")
    jsonschema.validate(json.loads(text.removeprefix("It is ")), SCHEMA)
    text = generate(model, "On ", "--regex", "[0-9]{4}-[0-9]{2}", "--seed", "2")
    assert re.fullmatch(r"On \d{4}-\d{2}\n", text)
    text = generate(model, "So ", "--grammar", str(grammar), "--seed", "3")
    assert re.fullmatch(r"So a{2,4}-\d{3}\n", text)


@pytest.mark.parametrize("how", ["lookup", "early-exit=1"])
def test_guessed_tokens_leave_the_text_as_it_is(model, how):
    arguments = (model, "abcabcabc", "--temperature", "0", "--max-tokens", "24")
    assert generate(*arguments, "--speculate", how) == generate(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--regex", "("], "response_format"),
        (["--regex", "x", "--grammar", "g"], "one form at a time"),
        (["--json-schema", "/nowhere.json"], "nowhere"),
        (["--regex", "x", "--beams", "2"], "--beams"),
        (["--speculate", "lokup"], "did you mean 'lookup'"),
    ],
)
def test_what_can_not_be_is_told(model, arguments, told):
    pytest.importorskip("llguidance")
    with pytest.raises(UserError, match=told):
        generate(model, "x", *arguments)
