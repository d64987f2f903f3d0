"""Recipes: read whole before anything runs, and every fault named with its file and line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.cli.run import command
from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_text
from lmworks.core.stages import Run, stage
from lmworks.ops import recipes
from lmworks.ops.recipes import load_recipe, run_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = option(0.5, help="")
    steps: int = option(4, help="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    source: str = option("", role=REFERENCE, help="")
    size: int = option(1, help="")
    names: list[str] = option([], help="")
    inner: Inner = option(Inner(rate=0.25), help="")


calls: list[str] = []


@stage("toy", makes="toys")
def toy(config: ToyConfig, run: Run) -> dict[str, Any]:
    text = (run.inputs["source"] / "text").read_text() if config.source else ""
    calls.append(f"{config.size}")
    write_text(run.folder / "text", f"{text}{config.size};")
    return {"size": config.size}


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipes.STAGES, "toy", f"{__name__}:toy")
    real = recipes.look_up
    monkeypatch.setattr(
        recipes, "look_up", lambda t, n, seam: toy if n == "toy" else real(t, n, seam=seam)
    )


def put(text: str, name: str = "my.yaml") -> str:
    Path(name).write_text(text)
    return name


TWO = """\
out: made
steps:
  one: {stage: toy, size: 2}
  two:
    stage: toy
    source: ${one}
    inner: {steps: 9}
"""


def test_steps_become_configs_with_their_folders() -> None:
    recipe = load_recipe(put(TWO))
    one, two = recipe.steps
    assert (one.name, one.stage, one.config) == ("one", "toy", ToyConfig(size=2))
    assert two.config == ToyConfig(source="made/one", inner=Inner(rate=0.25, steps=9))
    assert recipe.folder_of(two) == Path("made/two")


def test_out_and_set_change_it() -> None:
    recipe = load_recipe(put(TWO), sets=["two.size=5", "two.inner.rate=1"], out="other")
    assert recipe.steps[1].config == ToyConfig(
        source="other/one", size=5, inner=Inner(rate=1.0, steps=9)
    )
    assert load_recipe(put("steps: {a: {stage: toy}}")).out == Path("runs/my")


def test_the_steps_run_in_order_and_are_kept() -> None:
    recipe = load_recipe(put(TWO))
    made = list(run_recipe(recipe))
    assert [a.path for a in made] == [Path("made/one"), Path("made/two")]
    assert Path("made/two/text").read_text() == "2;1;"
    assert all(a.cached for a in run_recipe(recipe)) and calls == ["2", "1"]
    list(run_recipe(load_recipe("my.yaml", sets=["two.size=3"])))
    assert calls == ["2", "1", "3"]


def test_references_inside_lists_and_texts_are_replaced() -> None:
    text = "out: o\nsteps:\n  a: {stage: toy}\n  b: {stage: toy, names: ['${a}', '${a}/x', c]}\n"
    assert load_recipe(put(text)).steps[1].config.names == ["o/a", "o/a/x", "c"]


@pytest.mark.parametrize("name", [p.stem for p in sorted(recipes._PACKAGED.glob("*.yaml"))])
def test_packaged_recipes_dry_run(name: str) -> None:
    recipe = load_recipe(name)
    changed = f"{recipe.steps[0].name}.seed=6"
    result = CliRunner().invoke(command, [name, "--dry-run", "--set", changed])
    assert result.exit_code == 0, result.exception
    for step in recipe.steps:
        assert f"{step.name} ({step.stage}) -> {recipe.folder_of(step)}\n" in result.stderr
    assert "seed = 6" in result.stderr
    assert [p.name for p in Path.cwd().iterdir()] == []


def test_there_is_a_packaged_recipe() -> None:
    assert (recipes._PACKAGED / "small.yaml").is_file()


HEAD = "out: o\nsteps:\n"
WRONG = {
    "no steps": ("out: o\n", "no steps"),
    "empty": ("", "a recipe is a mapping"),
    "a list": ("- a\n", "a recipe is a mapping"),
    "steps a list": ("steps: [a]\n", "a recipe is a mapping"),
    "broken": ("steps:\n  a: [\n", "my.yaml is not valid YAML at line 3"),
    "a date that is none": ("out: 2024-99-99\nsteps: {}\n", "my.yaml is not valid YAML"),
    "deep": ("[" * 3000, "my.yaml is not valid YAML"),
    "a tag": ("steps: !!python/object/apply:os.system [ls]\n", "not valid YAML at line 1"),
    "itself": ("steps: &a {x: *a}\n", "my.yaml is not valid YAML"),
    "unknown top key": ("# one\nstep: {}\n", "(line 2) 'step': did you mean 'steps'?"),
    "a number as key": ("1: {}\nsteps: {}\n", "unknown key in my.yaml (line 1) '1'"),
    "out a list": ("out: [a]\nsteps: {a: {stage: toy}}\n", "my.yaml: `out`"),
    "no stage": (HEAD + "  a: {size: 1}\n", "my.yaml, step 'a' (line 3): a step needs a `stage`"),
    "an empty step": (HEAD + "  a:\n", "my.yaml, step 'a' (line 3): a step needs a `stage`"),
    "a text as step": (HEAD + "  a: toy\n", "my.yaml, step 'a' (line 3): a step needs a `stage`"),
    "unknown stage": (
        HEAD + "  a: {stage: pretran}\n",
        "my.yaml, step 'a' (line 3): unknown stage 'pretran': did you mean 'pretrain'?",
    ),
    "unknown key": (
        HEAD + "  a:\n    stage: toy\n    siez: 1\n",
        "my.yaml, step 'a' (line 3): unknown key 'siez': did you mean 'size'?",
    ),
    "wrong value": (
        HEAD + "  ok: {stage: toy}\n  a: {stage: toy, size: x}\n",
        "my.yaml, step 'a' (line 4): size = 'x' is not valid",
    ),
    "a later step": (
        HEAD + "  a: {stage: toy, source: '${b}'}\n  b: {stage: toy}\n",
        "unknown earlier step in my.yaml, step 'a' (line 3) 'b'",
    ),
    "itself as input": (HEAD + "  a: {stage: toy, source: '${a}'}\n", "unknown earlier step"),
    "a name that leaves": (HEAD + "  ../x: {stage: toy}\n", "step '../x' (line 3): a step's name"),
    "an absolute name": (HEAD + "  /x: {stage: toy}\n", "a step's name"),
    "a hidden name": (HEAD + "  .a: {stage: toy}\n", "a step's name"),
    "a reference to nothing": (
        HEAD + "  a: {stage: toy}\n  b: {stage: toy, source: '${a b}'}\n",
        "unknown earlier step in my.yaml, step 'b' (line 4) 'a b'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_names_the_place(name: str) -> None:
    text, said = WRONG[name]
    put(text)
    with pytest.raises(UserError) as caught:
        load_recipe("my.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_number_may_name_a_step() -> None:
    recipe = load_recipe(put(HEAD + "  1: {stage: toy}\n  2: {stage: toy, source: '${1}'}\n"))
    assert [step.name for step in recipe.steps] == ["1", "2"]
    assert recipe.steps[1].config.source == "o/1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on.size=1", "unknown step 'on': did you mean 'one'?"),
        ("one=3", "--set 'one=3'"),
        ("one.siez=3", "unknown key 'siez'"),
        ("one.size", "write it as key=value"),
    ],
)
def test_a_wrong_set_is_one_line(text: str, said: str) -> None:
    put(TWO)
    with pytest.raises(UserError) as caught:
        load_recipe("my.yaml", sets=[text])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"recipe none\.yaml not found"):
        load_recipe("none.yaml")
    with pytest.raises(UserError, match="unknown recipe 'smal': did you mean 'small'"):
        load_recipe("smal")
    Path("bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.yaml"):
        load_recipe("bytes.yaml")


def test_a_recipe_on_a_base_states_only_the_differences() -> None:
    put(TWO, "base.yaml")
    mine = put(
        "base: base.yaml\nsteps:\n  two: {size: 7, inner: {rate: 2}}\n  three: {stage: toy}\n"
    )
    recipe = load_recipe(mine)
    assert [step.name for step in recipe.steps] == ["one", "two", "three"]
    assert recipe.steps[1].config == ToyConfig(
        source="made/one", size=7, inner=Inner(rate=2.0, steps=9)
    )
    assert recipe.out == Path("made")
    assert load_recipe(put("base: base.yaml\nout: else\n")).out == Path("else")


def test_a_base_lies_beside_its_recipe_or_comes_with_lmworks() -> None:
    Path("sub").mkdir()
    put(TWO, "sub/base.yaml")
    assert load_recipe(put("base: base.yaml\n", "sub/my.yaml")).out == Path("made")
    assert load_recipe(put("base: small\nsteps: {base: {depth: 5}}\n")).steps[0].name == "corpus"


@pytest.mark.parametrize(
    ("base", "mine", "said"),
    [
        (TWO, "steps: {two: {siez: 1}}", "my.yaml, step 'two' (line 2): unknown key 'siez'"),
        (HEAD + "  a: {stage: toy, siez: 1}", "out: x", "base.yaml, step 'a' (line 3)"),
        (HEAD + "  a:\n", "steps: {a: {stage: toy, siez: 1}}", "my.yaml, step 'a' (line 2)"),
        (TWO, "steps: {two: text}", "my.yaml, step 'two' (line 2): a step needs"),
        (TWO, "steps: [two]", "my.yaml: a recipe is a mapping"),
        ("step: {}", "out: x", "unknown key in base.yaml (line 1) 'step'"),
    ],
)
def test_the_file_at_fault_is_named(base: str, mine: str, said: str) -> None:
    put(base, "base.yaml")
    with pytest.raises(UserError) as caught:
        load_recipe(put("base: base.yaml\n" + mine))
    assert said in str(caught.value)


def test_recipes_based_in_a_circle_are_refused() -> None:
    put("base: b.yaml\n", "a.yaml")
    put("base: a.yaml\n", "b.yaml")
    put("base: self.yaml\n", "self.yaml")
    for name in ("a.yaml", "self.yaml"):
        with pytest.raises(UserError, match="in a circle"):
            load_recipe(name)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_change_to_a_recipe_is_a_traceback(data: st.DataObject) -> None:
    text = list(TWO)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from([*"{}[]:,&*!|>'\"$-?%@`#~ \n\t1a", "", "<<: 1", "\0"]))
    Path("my.yaml").write_text("".join(text))
    try:
        load_recipe("my.yaml")
    except UserError as error:
        assert "\n" not in str(error)


def test_settings_fill_steps_and_keep_their_type(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "settings: {size: 300, text: a.txt, share: 0.25}\n"
        "steps:\n"
        "  corpus: {stage: build_corpus, folder: '${text}', heldout_share: '${share}'}\n"
        "  tokenizer: {stage: train_tokenizer, corpus: '${corpus}', vocab_size: '${size}'}\n"
    )
    corpus, tokenizer = (step.config for step in load_recipe(str(recipe)).steps)
    assert (corpus.folder, corpus.heldout_share, tokenizer.vocab_size) == ("a.txt", 0.25, 300)
    changed = load_recipe(str(recipe), sets=["size=512", "text=~/notes", "corpus.seed=3"])
    corpus, tokenizer = (step.config for step in changed.steps)
    assert (corpus.folder, corpus.seed, tokenizer.vocab_size) == ("~/notes", 3, 512)
    based = tmp_path / "b.yaml"
    based.write_text(
        "base: r.yaml\nsettings: {size: 400}\nsteps: {tokenizer: {min_frequency: 3}}\n"
    )
    assert load_recipe(str(based)).steps[1].config.vocab_size == 400
    with pytest.raises(UserError, match="unknown step 'sise'"):
        load_recipe(str(recipe), sets=["sise=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: [1]\nsteps: {a: {stage: build_corpus}}\n", "`settings` is a mapping"),
        ("settings: {a: 1}\nsteps: {a: {stage: build_corpus}}\n", "'a' is a step and a setting"),
        ("out: ~nobody1/x\nsteps: {a: {stage: build_corpus}}\n", "nobody's home is known"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "r.yaml"))
