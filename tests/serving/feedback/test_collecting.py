"""Feedback from the two doors of the server to a folder that training reads."""

from __future__ import annotations

import json
import sqlite3

import httpx
import openai
import pytest

from lmworks.core.errors import UserError
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.conversations import database
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.feedback.reading import feedback_digest, read_feedback
from lmworks.serving.feedback.stage import CollectFeedbackConfig, collect_feedback
from lmworks.serving.guard import LOOPBACK_HOSTS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("feedback") / "chats.db"


@pytest.fixture(scope="module")
def site(live_server, place):
    models = {"echo": ScriptedChat(lambda messages: f"You said: {messages[-1]['content']}")}
    store = ConversationStore(place)
    with live_server(models, allowed_hosts=LOOPBACK_HOSTS, conversations=store) as server:
        yield server


@pytest.fixture
def web(site):
    with httpx.Client(base_url=site.url, timeout=20) as client:
        yield client


def talk(web, *questions, **settings):
    """A conversation; the ids of its answers."""
    conversation = web.post("/api/conversations", json={"settings": settings}).json()["id"]
    answers = []
    for question in questions:
        made = web.post(f"/api/conversations/{conversation}/answers", json={"content": question})
        answer = made.json()["answer"]["id"]
        path = f"/api/conversations/{conversation}/messages/{answer}"
        with web.stream("GET", f"{path}/events") as events:
            list(events.iter_lines())
        answers.append(path)
    return conversation, answers


def rows(folder, kind):
    found = []
    for part in ("train", "heldout"):
        text = (folder / kind / f"{part}.jsonl").read_text("utf-8")
        found += [json.loads(line) for line in text.splitlines()]
    return found


def test_thumbs_are_kept_changed_and_taken_back(web):
    conversation, (answer,) = talk(web, "hello")
    up = web.post(f"{answer}/feedback", json={"rating": "up"}).json()
    assert up["feedback"] == {"rating": "up", "comment": ""}
    down = web.post(f"{answer}/feedback", json={"rating": "down", "comment": " rude "}).json()
    assert down["feedback"] == {"rating": "down", "comment": "rude"}
    shown = web.get(f"/api/conversations/{conversation}").json()["messages"]
    assert [m["feedback"] for m in shown] == [None, down["feedback"]]
    assert web.post(f"{answer}/feedback", json={"rating": None}).json()["feedback"] is None
    assert web.get(f"/api/conversations/{conversation}").json()["messages"][1]["feedback"] is None


def test_bad_thumbs_are_refused(web):
    conversation, (answer,) = talk(web, "hello")
    question = web.get(f"/api/conversations/{conversation}").json()["messages"][0]["id"]
    for path, body, word in (
        (answer, {"rating": "sideways"}, "up, down or null"),
        (answer, {"rating": 1}, "string or null"),
        (answer, {"rating": "up", "comment": "x" * 4001}, "4,000"),
        (f"/api/conversations/{conversation}/messages/{question}", {"rating": "up"}, "answers"),
    ):
        response = web.post(f"{path}/feedback", json=body)
        assert response.status_code == 400 and word in response.json()["error"]["message"]
    assert web.post(f"{answer[:-2]}zz/feedback", json={"rating": "up"}).status_code == 404


def test_a_client_tells_and_takes_back(web, site, place):
    asked = [{"role": "developer", "content": "S"}, {"role": "user", "content": "2 + 2?"}]
    told = {"id": "chatcmpl-1", "messages": asked, "answer": "5", "rating": "down"}
    told |= {"comment": "wrong"}
    with openai.OpenAI(base_url=site.url + "/v1", api_key="mine", max_retries=0) as client:
        first = client.post("/feedback", body=told, cast_to=object)
        again = client.post("/feedback", body=told | {"correction": "4"}, cast_to=object)
        assert first["id"] == again["id"]
        (kept,) = [one for one in read_feedback(place) if one.id == first["id"]]
        assert (kept.rating, kept.correction, kept.prompt[0]["role"]) == (-1, "4", "system")
        assert kept.comment == "wrong"
        # Another client may say the same name, and touches nothing of the first one's.
        other = web.post("/v1/feedback", json=told | {"rating": 1}).json()
        assert other["id"] != first["id"]
        assert web.delete(f"/v1/feedback/{first['id']}").status_code == 404
        client.delete(f"/feedback/{first['id']}", cast_to=object)
    web.delete(f"/v1/feedback/{other['id']}").raise_for_status()
    assert not {first["id"], other["id"]} & {one.id for one in read_feedback(place)}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rating": None}, "says nothing"),
        ({"rating": "maybe"}, "rating"),
        ({"answer": "  "}, "answer"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "tools"),
        ({"comment": "x" * 4001}, "comment"),
        ({"correction": "\ud800"}, "correction"),
    ],
)
def test_what_a_client_tells_is_checked(web, change, word):
    body = {"messages": [{"role": "user", "content": "q"}], "answer": "a", "rating": "up"} | change
    response = web.post("/v1/feedback", content=json.dumps(body))
    assert response.status_code == 400 and word in response.json()["error"]["message"]


def test_all_of_it_becomes_data_to_train_on(web, place, tmp_path):
    liked, (first, second) = talk(web, "one good question", "and a second", system="Be brief.")
    web.post(f"{second}/feedback", json={"rating": "up"})
    _, (wrong,) = talk(web, "a question that goes wrong")
    web.post(f"{wrong}/edit", json={"content": "as it should be"}).raise_for_status()
    web.post(f"{wrong}/feedback", json={"rating": "down"})
    gone, (deleted,) = talk(web, "a question that is deleted")
    web.post(f"{deleted}/feedback", json={"rating": "up"})
    web.delete(f"/api/conversations/{gone}")
    private, (card,) = talk(web, "my card is 4111 1111 1111 1111")
    web.post(f"{card}/feedback", json={"rating": "up"})
    with pytest.raises(UserError, match=r"heldout_share"):
        collect_feedback(
            CollectFeedbackConfig(conversations=str(place), heldout_share=1.0), out=tmp_path / "no"
        )
    made = collect_feedback(CollectFeedbackConfig(conversations=str(place)), out=tmp_path / "made")
    answers = {row["messages"][-1]["content"]: row for row in rows(made.path, "answers")}
    assert set(answers) == {"You said: and a second", "as it should be"}
    roles = [m["role"] for m in answers["You said: and a second"]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    (pair,) = rows(made.path, "pairs")
    assert pair["chosen"][0]["content"] == "as it should be"
    assert pair["rejected"][0]["content"] == "You said: a question that goes wrong"
    assert pair["prompt"] == [{"role": "user", "content": "a question that goes wrong"}]
    votes = {row["completion"][0]["content"]: row["label"] for row in rows(made.path, "votes")}
    assert votes["as it should be"] and not votes["You said: a question that goes wrong"]
    dropped = (made.path / "dropped.jsonl").read_text("utf-8")
    assert '"rule": "private"' in dropped and "CARD" in dropped and "4111" not in dropped
    assert made.metrics["dropped_by_rule"] == {"private": 1}
    # More feedback is other content: the stage runs again, though the file has the same name.
    again = collect_feedback(CollectFeedbackConfig(conversations=str(place)), out=tmp_path / "made")
    assert again.cached
    web.post(f"{first}/feedback", json={"rating": "up"})
    assert feedback_digest(place) != made.manifest["inputs"]["conversations"]["sha256"]
    web.post(f"/api/conversations/{liked}/forget")
    web.post(f"/api/conversations/{private}/forget")
    assert {one.source for one in read_feedback(place)}.isdisjoint({f"chat:{liked}"})


def test_a_file_of_an_older_version_is_taken_on(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_STEPS", database._STEPS[:1])
    old = ConversationStore.__new__(ConversationStore)
    old.database = database.Database(tmp_path / "old.db")
    old.database.close()
    monkeypatch.undo()
    store = ConversationStore(tmp_path / "old.db")
    assert store.feedback.told() == []
    store.close()
    with sqlite3.connect(tmp_path / "old.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(database._STEPS)


def test_nothing_said_and_nothing_left_are_told(tmp_path):
    ConversationStore(tmp_path / "empty.db").close()
    with pytest.raises(UserError, match="nobody has said anything"):
        collect_feedback(
            CollectFeedbackConfig(conversations=str(tmp_path / "empty.db")), out=tmp_path / "a"
        )
    line = {"messages": [{"role": "user", "content": "q"}], "answer": "...", "rating": 1}
    (tmp_path / "told.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="nothing is left of 1 pieces of feedback: 1 too short"):
        collect_feedback(
            CollectFeedbackConfig(conversations=str(tmp_path / "told.jsonl")), out=tmp_path / "b"
        )


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "line 1: not valid JSON"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ("[]", "must be an object"),
        ('{"messages": "q"}', "messages"),
        ('{"messages": [{"role": "user"}], "answer": "a"}', "messages"),
        ('{"messages": [{"role": "user", "content": "q"}], "answer": 1}', "answer: must be a text"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}], "answer": "a"}', "half a char"),
        ('{"messages": [{"role": "user", "content": "q"}], "answer": "a"}', "says nothing"),
    ],
)
def test_files_that_are_none_are_named_by_line(tmp_path, line, word):
    (tmp_path / "told.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=word):
        list(read_feedback(tmp_path / "told.jsonl"))
