"""The terminal's chat: commands, versions, Ctrl-C, and the store it shares with the page."""

from __future__ import annotations

import io
import json

import pytest

from lmworks.cli.terminal_chat import TerminalChat, printable
from lmworks.cli.terminal_commands import COMMANDS, run_command
from lmworks.cli.terminal_input import TerminalInput
from lmworks.core.errors import UserError
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.conversations.store import ConversationStore


@pytest.fixture
def store(tmp_path):
    made = ConversationStore(tmp_path / "c.db")
    yield made
    made.close()


@pytest.fixture
def chat(store):
    answers = {"other": ScriptedChat(["from the other"])}
    made = TerminalChat(store, load=lambda name: answers[name])
    made.use_model(ScriptedChat(lambda m: f"{len(m)}: {m[-1]['content']}"), "echo")
    return made


def do(chat, *lines):
    reading = TerminalInput(False)
    for line in lines:
        assert run_command(chat, reading, line)


def said(chat):
    return [message.content for message in chat.path()]


def typed(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return TerminalInput(False)


def test_messages_of_several_lines(monkeypatch):
    reading = typed(monkeypatch, 'one\\\ntwo\n"""\nthree\n\nfour"""\n"""five"""\nlast\\\n')
    found = []
    while (text := reading.message()) is not None:
        found.append(text)
    assert found == ["one\ntwo", "three\n\nfour", "five", "last"]


def test_versions(chat, capsys):
    chat.ask("first")
    chat.ask("second")
    do(chat, "/regenerate", "/edit 1 erste")
    assert said(chat) == ["erste", "1: erste"]
    do(chat, "/branch")
    assert "  1  first" in capsys.readouterr().out
    do(chat, "/branch 1")
    assert said(chat) == ["first", "1: first", "second", "3: second"]
    do(chat, "/edit 2 corrected")
    assert said(chat) == ["first", "corrected"]
    for bad, told in (("/edit 9 x", "no message 9"), ("/branch 7", "from 1 to 2")):
        with pytest.raises(UserError, match=told):
            do(chat, bad)


def test_thumbs(chat):
    with pytest.raises(UserError, match="no answer to judge"):
        do(chat, "/good")
    chat.ask("first")
    votes = chat.store.feedback.votes
    do(chat, "/good")
    assert [v.rating for v in votes(chat.conversation.id).values()] == [1]
    do(chat, "/bad too short")
    (vote,) = votes(chat.conversation.id).values()
    assert (vote.rating, vote.comment) == (-1, "too short")
    do(chat, "/bad")
    assert votes(chat.conversation.id) == {}


def test_settings_model_and_system(chat, capsys):
    do(chat, "/set temperature=0.2 memory.recall=off", "/system Be brief.")
    chat.ask("x")
    assert chat.store.get(chat.conversation.id).settings.temperature == 0.2
    assert said(chat)[-1] == "2: x"
    do(chat, "/model other", "/regenerate")
    assert said(chat)[-1] == "from the other" and chat.path()[-1].model == "other"
    do(chat, "/system none")
    assert chat.settings.system == ""
    for bad, told in (("/set temperatur=1", "did you mean"), ("/set temperature=-1", "from 0")):
        with pytest.raises(UserError, match=told):
            do(chat, bad)
    with pytest.raises(UserError, match="did you mean 'memory'"):
        do(chat, "/memry")


def test_files_prompts_and_memory(chat, tmp_path, capsys):
    file = tmp_path / "a b.md"
    file.write_text("the facts")
    do(chat, f"/attach '{file}'", "/prompts Translate text=Hallo")
    sent = said(chat)[-1]
    assert "the facts" in sent and "Translate the following text into English" in sent
    do(chat, "/memory", "/prompts")
    out = capsys.readouterr().out
    assert "tokens sent" in out and "turn 1" in out and "Summarise (template)" in out
    with pytest.raises(UserError, match="needs text"):
        do(chat, "/prompts Translate")
    with pytest.raises(UserError, match="can't be read"):
        do(chat, f"/attach {tmp_path / 'nope'}")


def test_list_resume_export_import_delete_undo(chat, store, tmp_path, capsys):
    chat.ask("zebras in the wild")
    first = chat.conversation.id
    do(chat, "/new")
    chat.ask("walruses")
    do(chat, "/list", "/list zebr", f"/resume {first[:8]}")
    out = capsys.readouterr().out
    assert out.count("zebras in the wild") >= 3 and f"* {chat.conversation.id[:8]}" not in out[:60]
    assert chat.conversation.id == first
    target = tmp_path / "out.json"
    do(chat, f"/export {target}", "/delete")
    assert len(store.recent()) == 1 and chat.conversation is None
    do(chat, "/undo", "/title Stripes")
    assert store.get(first).title == "Stripes"
    do(chat, f"/import {target}")
    assert len(store.recent()) == 3
    assert json.loads(target.read_text())["messages"][0]["content"] == "zebras in the wild"
    with pytest.raises(UserError, match="no conversation begins"):
        chat.resume("zzz")
    with pytest.raises(UserError, match="end it in"):
        do(chat, f"/export {tmp_path / 'x.doc'}")


def test_ctrl_c_ends_the_answer_alone(chat, monkeypatch, capsys):
    class Interrupted:
        name = "i"

        def stream(self, messages, **sampling):
            yield from list(ScriptedChat(["half an answer and more"]).stream(messages))[:2]
            raise KeyboardInterrupt

    chat.use_model(Interrupted(), "i")
    chat.ask("go")
    assert said(chat)[-1] == "half an" and chat.path()[-1].state == "stopped"
    assert "half an [stopped]" in capsys.readouterr().out
    chat.use_model(ScriptedChat(["whole"]), "w")
    chat.ask("again")
    assert chat.path()[-1].state == "whole"


def test_the_loop_reads_a_pipe_and_prints_answers_alone(chat, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n//slash\n/exit\nnever\n"))
    chat.run()
    assert capsys.readouterr().out == "1: hello\n3: /slash\n"


def test_a_stored_escape_does_not_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\nc\u202e") == "a[2Jb\nc"


def test_help_names_every_command(chat, capsys):
    do(chat, "/help")
    out = capsys.readouterr().out
    assert all(f"/{name}" in out for name in COMMANDS)
