"""Rules that draw questions: what they find in each kind of text, and what they leave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.tables import load_target
from lmworks.data.documents import Document
from lmworks.data.drawing.base import RULES, clean, first_sentences, is_good_answer, sentences


def pairs(rule: str, text: str, source: str = "a.md", title: str = "a") -> list[tuple[str, str]]:
    document = Document(id="1", group="g", source=source, title=title, text=text)
    return [(pair.question, pair.answer) for pair in load_target(RULES[rule])(document)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("use :func:`len` and ``x``", "use len and x"),
        ("a **bold** and *slanted* word", "a bold and slanted word"),
        ("f(*args, **kwargs) and 2 * 3 * 4", "f(*args, **kwargs) and 2 * 3 * 4"),
        ("__init__ and snake_case_name", "__init__ and snake_case_name"),
        ("__two words__ in bold", "two words in bold"),
        ("see [the manual](http://x.y) and [this][ref] ![](a.png)", "see the manual and this"),
        ("two\n  lines", "two lines"),
    ],
)
def test_markup_goes_and_names_stay(text, wanted):
    assert clean(text) == wanted


def test_sentences_end_where_they_do():
    text = 'Use e.g. os.path. It is Dr. No\'s. "Really?" Yes! J. Smith said so'
    assert [s.strip() for s in sentences(text)] == [
        *("Use e.g. os.path.", "It is Dr. No's.", '"Really?"', "Yes!", "J. Smith said so")
    ]


def test_an_answer_is_whole_sentences_before_any_list():
    assert first_sentences("One is here now. Two is too.\n- an item\n- more") == (
        "One is here now. Two is too."
    )
    assert first_sentences("word " * 80 + ".") is None
    assert first_sentences("- only an item of a list.") is None


@pytest.mark.parametrize(
    "text",
    [
        *(">>> print(1) shows that one.", "a | b | c | d.", "Too short.", "No end of the sentence"),
        *("123 456 789 012 345.", "New in version 3.5 of it.", "x -> y maps to this.", ""),
    ],
)
def test_poor_answers(text):
    assert not is_good_answer(text)


PAGE = """class textwrap.TextWrapper

Object for wrapping/filling text.

execvpe(file, args, env)

A docstring that looks like a signature is none.

TextWrapper.wrap(self, text, /)

Reformat the single paragraph in `text` so it fits in lines

TextWrapper._private(self, text)

Nobody asks for this one here.
"""


def test_pages_of_python():
    found = dict(pairs("docstring", PAGE, "pydoc:textwrap", "textwrap.TextWrapper"))
    assert sorted(found.values()) == [
        "Object for wrapping/filling text.",
        "Reformat the single paragraph in text so it fits in lines.",
        "textwrap.TextWrapper.wrap(text, /)",
    ]
    assert not any("execvpe" in question or "_private" in question for question in found)
    page = "len(obj, /)\n\nReturn the number of items in a container.\n"
    assert [a for _, a in pairs("docstring", page, "pydoc:builtins", "len")] == [
        "Return the number of items in a container.",
        "len(obj, /)",
    ]
    page = "str\n\nclass of strings"
    assert pairs("docstring", page, "pydoc:builtins", "str.x") == []


def test_source_files_are_parsed_not_run():
    code = (
        '"""Tools for otters and rivers."""\nraise SystemExit\n\n'
        'def feed(otter, *, fish=1):\n    """Give the otter its fish.\n\n    More here."""\n\n'
        'class Otter:\n    """An animal of the river banks."""\n'
        '    def swim(self, far: int = 3):\n        """Swim so far and back."""\n'
        '    def _hide(self):\n        """Hide from what comes near."""\n'
    )
    answers = [answer for _, answer in pairs("docstring", code, "src/otters.py")]
    assert answers == [
        "Tools for otters and rivers.",
        "Give the otter its fish.",
        "feed(otter, *, fish=1)",
        "An animal of the river banks.",
        "Swim so far and back.",
        "Otter.swim(far: int=3)",
    ]
    assert pairs("docstring", "def (:", "src/broken.py") == []


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("An otter is a mammal that lives along rivers.", "an otter"),
        ("Coroutines are a more general form of subroutines.", "oroutines"),
        ("The `garbage collector` is the part that frees memory.", "garbage collector"),
        ("It is a mammal that lives along rivers.", None),
        ("This function is the best of all of them.", None),
        ("If the value is a number it is kept as it is.", None),
        ("The result is a list of all numbers.", None),
        ("Otters sleep by day and hunt by night.", None),
    ],
)
def test_definitions(text, subject):
    found = pairs("definition", text)
    if subject is None:
        assert found == []
    else:
        ((question, answer),) = found
        assert subject in question
        assert answer == clean(text)


def test_definitions_are_not_looked_for_in_code_and_docstrings():
    text = "Possibilities is a list of sequences to match."
    assert pairs("definition", text, "pydoc:difflib") == []
    assert pairs("definition", text, "a.py") == []
    assert len(pairs("definition", text, "pydoc:topics/x")) == 1


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("# 2. Feeding otters\n\nOtters eat fish, and much of it.", "a.md"),
        ("## Feeding `otters`\nOtters eat fish, and much of it.\n", "a.html"),
        ("Feeding otters\n--------------\n\nOtters eat fish, and much of it.", "a.rst"),
        ("End of a page\n2.1 Feeding otters\nOtters eat fish,\nand much of it.", "a.pdf"),
        ("FEEDING OTTERS\n\nOtters eat fish, and much of it.", "a.txt"),
    ],
)
def test_headings(text, source):
    ((question, answer),) = pairs("heading", text, source)
    assert "feeding otters" in question.lower()
    assert answer == "Otters eat fish, and much of it."


def test_headings_that_name_nothing_are_left():
    for head in ("Introduction", "Chapter IV", "1. Overview", "See also"):
        assert pairs("heading", f"# {head}\n\nOtters eat fish, and much of it.") == []


def test_the_last_resort_continues_sentences():
    text = "The otter came to the river at night. It found no fish there at all. So it left again."
    (begins, continues) = pairs("opening", text, "story.txt", "A story")
    assert begins[0] == "How does A story begin?"
    assert "The otter came to the river at night." in continues[0]
    assert continues[1] == "It found no fish there at all."


@given(st.text(max_size=300), st.sampled_from(["a.md", "a.py", "pydoc:x", "a.pdf", "a.txt"]))
def test_any_text_gives_clean_pairs_or_none(text, source):
    for rule in RULES:
        for question, answer in pairs(rule, text, source):
            assert question.strip()
            assert 1 <= len(answer.split()) <= 60
            assert "\n" not in answer
