"""`tokenizer.json` as others write it: the same ids; what is damaged or unknown is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.tokenizer import PipelineTokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def splitting(expression: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": behavior,
        "invert": invert,
    }


@pytest.fixture
def folder(small: PipelineTokenizer, tmp_path: Path) -> Path:
    small.save(tmp_path)
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def add_token(data: dict[str, Any], text: str, **flags: bool) -> None:
    """An added token, with the id that the model's own vocabulary has for it, or a new one."""
    ids = data["model"]["vocab"]
    last = max(*ids.values(), *(t["id"] for t in data["added_tokens"]))
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    new = {"id": ids.get(text, last + 1), "content": text}
    data["added_tokens"].append(new | entry | flags)


def assert_same_ids(folder: Path, texts: list[str]) -> PipelineTokenizer:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = load_tokenizer(folder)
    ours.save(folder / "again")
    again = load_tokenizer(folder / "again")
    assert again.vocabulary == ours.vocabulary
    for allow_special in (True, False):
        theirs.encode_special_tokens = not allow_special
        for text in texts:
            expected = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, allow_special=allow_special) == expected, repr(text)
    return ours


@pytest.mark.parametrize(
    "step",
    [
        BYTE_LEVEL,
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                BYTE_LEVEL | {"use_regex": True},
            ],
        },
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": False},
                {"type": "Sequence", "pretokenizers": [splitting(r"[\r\n]")]},
                splitting("") | {"pattern": {"String": "-."}},
                BYTE_LEVEL | {"use_regex": False},
            ],
        },
        {
            "type": "Sequence",
            "pretokenizers": [
                splitting(PATTERNS["cl100k"][0], "Removed", invert=True),
                BYTE_LEVEL | {"use_regex": False},
            ],
        },
        BYTE_LEVEL | {"use_regex": False},
    ],
)
def test_pre_tokenizers_of_real_files(folder: Path, hard: list[str], step: dict[str, Any]) -> None:
    change(folder, lambda d: d.update(pre_tokenizer=step))
    assert_same_ids(folder, [*hard[::10], "the-.cat-. on 12 ²3 the"])


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalizers(folder: Path, form: str) -> None:
    change(folder, lambda d: d.update(normalizer={"type": form}))
    texts = ["e\u0301 é ﬁ ½ \u212b", "각 \u1100\u1161\u11a8", "<|im_end|>e\u0301<|pad|>"]
    assert_same_ids(folder, texts)
    change(folder, lambda d: d.update(normalizer={"type": "Sequence", "normalizers": []}))
    assert load_tokenizer(folder).vocabulary.normalizer is None


def test_ignore_merges(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["model"]["ignore_merges"] = True
        data["model"]["vocab"]["mats"] = len(data["model"]["vocab"])  # no merge leads there

    change(folder, edit)
    ours = assert_same_ids(folder, ["mats", " mats", "the mat", "mats\n"])
    assert ours.encode("mats") == [ours.vocab_size - 1]


def test_merges_as_strings_and_told_twice(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        merges = data["model"]["merges"]
        data["model"]["merges"] = [" ".join(m) for m in [*merges, merges[0]]]

    change(folder, edit)
    assert_same_ids(folder, ["the cat sat on the mat.", "that hat", "athe"])


def test_added_tokens_with_every_flag(folder: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["normalizer"] = {"type": "NFC"}
        add_token(data, "<mask>", lstrip=True, special=True)
        add_token(data, "<r>", rstrip=True)
        add_token(data, "cat", single_word=True)
        add_token(data, "éa", normalized=True)
        add_token(data, "<think>")
        add_token(data, "<think>!", special=True)
        add_token(data, "    ")
        add_token(data, "\n")

    change(folder, edit)
    texts = ["a <mask> b", "a \t\u2003<mask><mask>", "\x1c<mask>\x85 <mask>", "<r>  \n <r> <mask>"]
    texts += [
        "the cat sat",
        "cats cat",
        "_cat cat.",
        "bobcat",
        "cat",
        "catcat",
        "e\u0301a éa",
        "éaéa",
    ]
    texts += ["<think>!a<think>", "a    b     c", "\n\n", "<r><mask>", "<r> <mask> cat <r>"]
    ours = assert_same_ids(folder, texts)
    assert "<mask>" in ours.special_tokens and "<think>" not in ours.special_tokens
    ids = ours.encode("<think>x<mask>", allow_special=True)
    assert ours.decode(ids, skip_special=True) == "<think>x"
    assert "".join(ours.stream_decoder().push(i) for i in ids) == "<think>x"


def test_roles_and_templates_in_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "hi"}]
    settings = {
        "bos_token": {"content": "<|im_start|>", "special": True},
        "eos_token": "a",  # not among the added tokens of the file
        "chat_template": named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (1, None)
    assert tokenizer.eos_token_id == tokenizer.special_tokens["a"] == tokenizer.encode("a")[0]
    assert tokenizer.chat_template == "hi"
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).chat_template is None


def test_a_post_processor_is_kept(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    theirs.save(str(folder / "tokenizer.json"))
    load_tokenizer(folder).save(tmp_path / "again")
    again = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert again.encode("the").ids == [1, *load_tokenizer(folder).encode("the")]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(folder: Path, share: float) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(UserError, match=r"is not valid JSON: .* at line"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["model"].update(type="Odd"), "type 'Odd' can't be read; known: BPE, Unigram"),
        (lambda d: d["model"].update(dropout=0.1), "the BPE option 'dropout'"),
        (lambda d: d["model"]["merges"].append(["zzz", "a"]), r"merge \d+ uses"),
        (lambda d: d["model"]["merges"].append(["z", "q"]), "that the vocabulary does not hold"),
        (lambda d: d["model"]["merges"].append(["z"]), "not a tokenizer.json that can be read"),
        (lambda d: d["model"]["merges"].append(7), "not a tokenizer.json that can be read"),
        (lambda d: d["model"]["vocab"].update({"a": 5_000_000}), "is far beyond the"),
        (lambda d: d["model"]["vocab"].update({"a": 5}), "the id 5 is given twice"),
        (lambda d: d["model"]["vocab"].update({"a": -1}), "-1 is no token id"),
        (lambda d: d["model"]["vocab"].update({"a": "b"}), "'b' is no token id"),
        (lambda d: d["model"].update(vocab={}), r"merge 0 uses"),
        (lambda d: d["added_tokens"][0].update(id=7), "'<|endoftext|>' has the id of"),
        (lambda d: d["added_tokens"][0].update(content="a"), "'a' has"),
        (lambda d: d["added_tokens"].append(d["added_tokens"][0]), "an added token is given twice"),
        (lambda d: d.update(pre_tokenizer={"type": "Odd"}), "the pre-tokenizer 'Odd'"),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Odd"),
            "Split with behavior 'Odd'",
        ),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a"}),
            r"the pattern '\(a' is not valid",
        ),
        (lambda d: d.update(normalizer={"type": "Odd"}), "the normalizer 'Odd'"),
        (lambda d: d.update(decoder={"type": "Odd"}), "the decoder 'Odd'"),
        (lambda d: d.update(decoder=None), "the pre-tokenizer is ByteLevel, and the decoder"),
        (lambda d: d.update(post_processor={"type": "Odd"}), "the post-processor 'Odd'"),
        (lambda d: d.pop("model"), "is not a tokenizer.json"),
        (lambda d: d.update(model=[]), "is not a tokenizer.json"),
    ],
)
def test_what_is_not_understood_is_named(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "[]", "is not a tokenizer.json"),
        ("tokenizer_config.json", "{", r"tokenizer config .* is not valid JSON"),
        ("tokenizer_config.json", '{"eos_token": "<eos>"}', "eos_token '<eos>' is not one of"),
        ("tokenizer_config.json", "[]", "is not a tokenizer.json that can be read"),
    ],
)
def test_other_damage(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_an_endpoint_has_no_tokenizer() -> None:
    with pytest.raises(UserError, match="a remote endpoint gives no tokenizer"):
        load_tokenizer("http://127.0.0.1:1/v1#model")
