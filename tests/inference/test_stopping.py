from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from lmworks.inference.stopping import StopMatcher

letters = st.text("ab\n", max_size=24)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def whole(text: str, stops: list[str]) -> tuple[str, bool]:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


@example("abb", ["abb", "b"], random.Random(1))  # the one that begins first is not through yet
@example("aba", ["abb", "b"], random.Random(1))
@given(letters, stops, st.randoms(use_true_random=False))
def test_pieces_give_what_the_whole_text_gives(text: str, stops: list[str], r: random.Random):
    matcher, shown = StopMatcher(stops), ""
    rest = text
    while rest:
        size = r.randint(1, 4)
        shown += matcher.push(rest[:size])
        rest = rest[size:]
        assert text.startswith(shown)
        assert whole(text, stops)[0].startswith(shown)  # nothing of a stop string, ever
    shown += matcher.finish()
    assert (shown, matcher.stopped) == whole(text, stops)


def test_holds_back_only_what_could_become_a_stop_string():
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Paris.") == "Paris."
    assert matcher.push("\nUs") == ""
    assert matcher.push("ed") == "\nUsed"
    assert matcher.push("\nUser: more") == ""
    assert matcher.stopped
    assert matcher.push("even more") == matcher.finish() == ""
