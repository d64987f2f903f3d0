"""The tree of messages: held against a plain model of it, with two processes and hostile text."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.inference.memory import MemorySettings, Summary
from lmworks.serving.conversations import store as store_module
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.conversations.values import ChatSettings, NotFound, title_of


@pytest.fixture
def store(tmp_path):
    made = ConversationStore(tmp_path / "kept" / "c.db")
    yield made
    made.close()


def said(store, conversation_id):
    return [message.content for message in store.path(conversation_id)]


def test_editing_and_regenerating_add_branches_that_can_be_gone_back_to(store):
    made = store.create()
    first = store.add(made.id, "user", "one")
    answer = store.add(made.id, "assistant", "two")
    store.add(made.id, "user", "three")
    again = store.add(made.id, "assistant", "two again", parent=first.id)
    assert said(store, made.id) == ["one", "two again"]
    edited = store.edit(first.id, "uno")
    assert said(store, made.id) == ["uno"]
    store.choose(answer.id)
    assert said(store, made.id) == ["one", "two", "three"]  # and what came below it
    store.choose(again.id)
    store.choose(edited.id)
    store.choose(first.id)
    assert said(store, made.id) == ["one", "two again"]
    assert len(store.messages(made.id)) == 5
    assert store.get(made.id).title == "one"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "edit", "choose", "save"]),
        st.integers(0, 30),
        st.text(max_size=12).filter(lambda t: t.isprintable()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OPERATIONS)
def test_any_order_of_operations_gives_what_a_plain_tree_gives(operations):
    store = ConversationStore(None)
    made = store.create()
    parents, texts, active, ids = {}, {}, {}, []  # the model: parent of, text of, chosen child of

    def go_to(node):
        while node is not None:
            active[parents[node]] = node
            node = parents[node]

    def leaf():
        node = None
        while node in active:
            node = active[node]
        return node

    for kind, at, text in operations:
        chosen = ids[at % len(ids)] if ids else None
        if kind == "add" or chosen is None:
            parent = leaf() if at % 3 else chosen
            role = "user" if len(ids) % 2 == 0 else "assistant"
            new = store.add(made.id, role, text, **({} if at % 3 else {"parent": parent})).id
        elif kind == "edit":
            new, parent = store.edit(chosen, text).id, parents[chosen]
        elif kind == "save":
            store.save(chosen, text, "whole")
            texts[chosen] = text
            continue
        else:
            store.choose(chosen)
            go_to(chosen)
            continue
        ids.append(new)
        parents[new], texts[new] = parent, text
        go_to(new)
    expected = []
    node = leaf()
    while node is not None:
        expected.insert(0, node)
        node = parents[node]
    path = store.path(made.id)
    assert [message.id for message in path] == expected
    assert {m.id: (m.parent_id, m.content) for m in store.messages(made.id)} == {
        node: (parents[node], texts[node]) for node in ids
    }
    store.close()


def test_settings_come_back_and_a_parent_of_elsewhere_is_refused(store):
    wanted = ChatSettings(model="m", temperature=0.0, seed=3, memory=MemorySettings(summary=True))
    made = store.create("A title\nin two lines", wanted)
    assert store.get(made.id).settings == wanted
    assert store.get(made.id).title == "A title in two lines"
    other = store.create()
    message = store.add(other.id, "user", "x")
    with pytest.raises(NotFound):
        store.add(made.id, "user", "y", parent=message.id)
    with pytest.raises(NotFound):
        store.get("nope")


def test_delete_is_undone_and_after_a_month_it_is_final(store, monkeypatch):
    made = store.create("Kept")
    attachment = store.attachments.add("a.txt", b"words of the file")
    message = store.add(made.id, "user", "findable words", attachments=[attachment.id])
    store.memories.keep_summary(Summary(upto_id=message.id, text="notes"), "m")
    store.delete(made.id)
    assert store.recent() == [] and store.search("findable") == []
    store.restore(made.id)
    assert [each.id for each in store.recent()] == [made.id]
    assert store.search("findable")[0].message_id == message.id
    store.delete(made.id)
    path = store.database.path
    later = time.time() + store_module.KEPT_WHEN_DELETED_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    reopened = ConversationStore(path)
    for table in ("conversations", "messages", "message_texts", "attachments", "summaries"):
        assert reopened.database.rows(f"SELECT count(*) FROM {table}")[0][0] == 0, table
    reopened.close()


@pytest.mark.parametrize(
    ("query", "finds"),
    [
        ("berl", True),
        ("BERLIN", True),
        ("東京", True),
        ("京", True),
        ("straße", True),
        ("berlin paris", False),
        ('"', True),
        ("100%", True),
        ("_", False),
        ("50%", False),
        ("NEAR(berlin tokyo)", False),
        ("title:x OR *", False),
        ("\0", False),
        ("', 1); DROP TABLE messages; --", False),
    ],
)
def test_search_finds_parts_of_words_and_reads_no_language_of_queries(store, query, finds):
    made = store.create("Other")
    store.add(made.id, "user", 'Berlin "wall", 東京都, Straße, 100%')
    assert bool(store.search(query)) is finds


def test_search_follows_saves_and_titles(store):
    made = store.create()
    store.add(made.id, "user", "question")
    answer = store.add(made.id, "assistant", "", state="writing")
    store.save(answer.id, "zebra cro", "writing")
    assert store.search("zebra") == []  # it is still growing
    store.save(answer.id, "zebra crossing", "whole")
    assert store.search("crossing")[0].excerpt == "zebra crossing"
    store.set(made.id, title="Roads & signs")
    assert store.search("roads sign")[0].message_id is None


def test_the_file_is_its_owners_alone_and_others_are_refused(store, tmp_path):
    path = store.database.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    with pytest.raises(UserError, match="something else"):
        ConversationStore(other)
    assert other.read_bytes() == before
    text = tmp_path / "notes.txt"
    text.write_text("just text, much longer than a header of a database " * 50)
    with pytest.raises(UserError, match=r"notes\.txt is no file of conversations"):
        ConversationStore(text)
    newer = tmp_path / "newer.db"
    ConversationStore(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="newer lmworks"):
        ConversationStore(newer)
    with pytest.raises(UserError, match="can't be kept there"):
        ConversationStore(text / "below")


def test_two_stores_and_many_threads_lose_nothing(store):
    other = ConversationStore(store.database.path)
    made = store.create()
    root = store.add(made.id, "user", "root")

    def write(which, name):
        for number in range(8):
            which.add(made.id, "assistant", f"{name} {number}", parent=root.id)

    threads = [
        threading.Thread(target=write, args=(which, name))
        for which, name in ((store, "a"), (other, "b"), (store, "c"), (other, "d"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {message.content for message in store.messages(made.id)[1:]}
    assert found == {f"{name} {number}" for name in "abcd" for number in range(8)}
    assert said(other, made.id) == said(store, made.id)
    other.close()


CRASH = """
import sys
from lmworks.serving.conversations.store import ConversationStore
store = ConversationStore(__import__("pathlib").Path(sys.argv[1]))
made = store.create()
question = store.add(made.id, "user", "what was asked")
answer = store.add(made.id, "assistant", "", state="writing", model="m")
store.save(answer.id, "half an ans", "writing", {"completion_tokens": 3})
print(made.id, flush=True)
sys.stdin.readline()
"""


def test_a_killed_writer_leaves_its_answer_marked_as_cut(tmp_path):
    path = tmp_path / "c.db"
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    conversation_id = process.stdout.readline().strip()
    reader = ConversationStore(path)
    assert reader.path(conversation_id)[-1].state == "writing"  # its writer lives
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    question, answer = reader.path(conversation_id)
    assert (question.content, question.state) == ("what was asked", "whole")
    assert (answer.content, answer.state) == ("half an ans", "cut")
    assert answer.info == {"completion_tokens": 3}
    assert reader.search("half an")[0].message_id == answer.id
    reader.close()


def test_a_writer_of_an_earlier_life_with_our_number_is_gone(store):
    made = store.create()
    answer = store.add(made.id, "assistant", "x", state="writing", parent=None)
    store.database.rows(
        "UPDATE messages SET writer = ? WHERE id = ? RETURNING id",
        f"{store_module.platform.node()}:{os.getpid()}:0000",
        answer.id,
    )
    assert store.path(made.id)[-1].state == "cut"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\n\n  Hello  there\nsecond", "Hello there"),
        ("# What is **this**?", "What is **this**?"),
        ("word " * 40, "word word word word word word word word word word word word…"),
        ("x" * 200, "x" * 60 + "…"),
        ("\x1b[31mred\x00", "[31mred"),
        ("\n", "New chat"),
    ],
)
def test_titles(text, title):
    assert title_of(text) == title


def test_the_prompt_library(store):
    prompts = store.prompts
    assert [p.built_in for p in prompts.all()] == [True] * len(prompts.all())
    made = prompts.save("Mine", "template", "Hello {{name}}, {{how|well}}! {{ name }}")
    assert made.fields == {"name": "", "how": "well"}
    assert made.filled({"name": "{{how}}"}) == "Hello {{how}}, well! {{how}}"  # not filled twice
    with pytest.raises(UserError, match="needs name"):
        made.filled({})
    with pytest.raises(UserError, match="did you mean 'name'"):
        made.filled({"nam": "x"})
    changed = prompts.save("Mine 2", "system", "Be brief.", made.id)
    assert changed.id == made.id and prompts.get("mine 2").text == "Be brief."
    own = prompts.save("Tutor", "system", "My tutor.")
    assert prompts.get("Tutor") == own
    prompts.delete(own.id)
    assert prompts.get("Tutor").built_in
    with pytest.raises(UserError, match="comes with lmworks"):
        prompts.delete("Tutor")
    with pytest.raises(UserError, match="did you mean 'Translate'"):
        prompts.get("Translat")
    for name, kind, text in (("", "system", "x"), ("x", "poem", "x"), ("x", "system", " ")):
        with pytest.raises(UserError):
            prompts.save(name, kind, text)
