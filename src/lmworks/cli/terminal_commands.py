"""What begins with a slash in the terminal's chat."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmworks.cli.terminal_chat import TerminalChat, printable, show
from lmworks.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from lmworks.cli.terminal_input import TerminalInput

Command = Callable[[TerminalChat, "TerminalInput", str], Any]


def run_command(chat: TerminalChat, reading: TerminalInput, text: str) -> bool:
    """Do what a line says; False to leave. Raises: UserError."""
    word, _, rest = text[1:].partition(" ")
    if word in ("exit", "quit"):
        return False
    if word not in COMMANDS:
        raise unknown_name("command", word, [*COMMANDS, "exit"])
    COMMANDS[word][0](chat, reading, rest.strip())
    return True


def _help(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    for name, (_, arguments, line) in COMMANDS.items():
        click.echo(f"  /{name} {arguments}".ljust(34) + line)
    click.echo('  /exit                           Leave. "//x" sends a message that begins with /.')


def _new(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    chat.start_new()
    if chat.is_terminal:
        click.echo("A new conversation begins.", err=True)


def _list(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    if rest:
        found = [
            (f.conversation_id, f.changed_s, f.title, f.excerpt) for f in chat.store.search(rest)
        ]
    else:
        found = [(c.id, c.changed_s, c.title, "") for c in chat.store.recent(30)]
    for conversation_id, changed_s, title, excerpt in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed_s))
        mark = "*" if chat.conversation and chat.conversation.id == conversation_id else " "
        click.echo(f"{mark} {conversation_id[:8]}  {day}  {printable(title)}")
        if excerpt:
            click.secho(f"            {printable(excerpt)}", dim=True)
    if not found:
        click.echo("Nothing found." if rest else "No conversation is kept yet.")


def _resume(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    chat.resume(rest or "last")
    _show(chat, reading, "")


def _show(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    show(chat.path())


def _title(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    chat.conversation = chat.store.set(_open(chat), title=rest or None)
    click.echo(printable(chat.conversation.title))


def _edit(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    """`/edit`, `/edit 3`, `/edit the new text`, `/edit 3 the new text`."""
    path = chat.path()
    number, _, text = rest.partition(" ")
    if number.isdecimal():
        if not 1 <= int(number) <= len(path):
            raise UserError(f"there is no message {number}: /show has their numbers")
        message = path[int(number) - 1]
    else:
        text = rest
        questions = [each for each in path if each.role == "user"]
        if not questions:
            raise UserError("there is nothing to edit yet")
        message = questions[-1]
    new = text.strip() or (reading.message(message.content) or "")
    if not new or new == message.content:
        return
    made = chat.store.edit(message.id, new)
    if made.role == "user":
        chat.answer(made)


def _regenerate(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    questions = [each for each in chat.path() if each.role == "user"]
    if not questions:
        raise UserError("there is nothing to answer yet")
    chat.answer(questions[-1])


def _good(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    _rate(chat, 1, rest)


def _bad(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    _rate(chat, -1, rest)


def _rate(chat: TerminalChat, rating: int, comment: str) -> None:
    """A thumb on the last answer, as on the page; the same again takes it back."""
    answers = [each for each in chat.path() if each.role == "assistant" and each.content.strip()]
    if not answers:
        raise UserError("there is no answer to judge yet")
    before = chat.store.feedback.vote(answers[-1].id)
    again = before is not None and before.rating == rating and not comment
    chat.store.feedback.rate(answers[-1].id, 0 if again else rating, comment)
    if chat.is_terminal:
        click.echo("Taken back." if again else "Noted.", err=True)


def _branch(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    """The versions of the newest message that has any; with a number, go to that one."""
    path = chat.path()
    everything = chat.store.messages(_open(chat))
    for message in reversed(path):
        around = [each for each in everything if each.parent_id == message.parent_id]
        if len(around) > 1:
            break
    else:
        raise UserError("no message has another version: /edit and /regenerate make them")
    if rest:
        if not rest.isdecimal() or not 1 <= int(rest) <= len(around):
            raise UserError(f"choose a version from 1 to {len(around)}")
        chat.store.choose(around[int(rest) - 1].id)
        show(chat.path()[-2:], max(1, len(chat.path()) - 1))
        return
    for number, each in enumerate(around, 1):
        mark = "*" if each.id == message.id else " "
        line = " ".join(printable(each.content).split())[:90]
        click.echo(f"{mark} {number}  {line}")


def _system(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    if rest:
        chat.set(system="" if rest == "none" else rest)
    click.echo(printable(chat.settings.system) or "(no system prompt)")


def _model(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    from lmworks.cli.printing import reference_name

    if rest:
        chat.use_model(chat.load(rest), reference_name(rest))
    click.echo(chat.settings.model)


def _set(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    from lmworks.cli.printing import flat
    from lmworks.core.config import merge, parse_set, to_mapping

    for text in shlex.split(rest) if rest else ():
        path, value = parse_set(text)
        if text.endswith(("=off", "=on")):  # words here, and not what YAML makes of them
            value = text.rpartition("=")[2]
        chat.set(**merge({}, path, value))
    if not rest:
        for name, value in flat(to_mapping(chat.settings)).items():
            click.echo(f"  {name} = {value}")


def _attach(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    for name in _words(rest):
        path = Path(name).expanduser()
        try:
            made = chat.attach(path.name, path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}") from error
        click.echo(f"{made.name}: {len(made.text):,} characters, sent with the next message")
    if not rest:
        for found in chat.attached:
            click.echo(f"{found.name}: {len(found.text):,} characters")


def _export(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    from lmworks.core.files import write_text
    from lmworks.serving.conversations.files import export, export_name

    endings = {".md": "markdown", ".html": "html", ".json": "json"}
    path = Path(rest).expanduser() if rest else None
    if path is not None and path.suffix not in endings:
        raise UserError(f"{path}: end it in {', '.join(endings)}")
    kind = endings[path.suffix] if path else "markdown"
    text = export(chat.store, _open(chat), kind)
    path = path or Path(export_name(chat.store.get(_open(chat)), kind))
    write_text(path, text)
    click.echo(f"written to {path}")


def _import(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    from lmworks.serving.conversations.files import import_conversations

    try:
        text = Path(rest).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{rest or 'no file named'}: can't be read") from error
    for made in import_conversations(chat.store, text):
        click.echo(f"  {made.id[:8]}  {printable(made.title)}")


def _prompts(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    """The library; `/prompts NAME field=value ...` uses one."""
    if not rest:
        for prompt in chat.store.prompts.all():
            fields = " ".join(f"{name}=..." for name in prompt.fields)
            click.echo(f"  {prompt.name} ({prompt.kind})  {fields}")
        return
    words = _words(rest)
    values = dict(word.split("=", 1) for word in words if "=" in word)
    prompt = chat.store.prompts.get(" ".join(word for word in words if "=" not in word))
    text = prompt.filled(values)
    if prompt.kind == "system":
        chat.set(system=text)
        click.echo(text)
    else:
        chat.ask(text)


def _memory(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    """What the last answer's prompt was made of."""
    answers = [each for each in chat.path() if "memory" in each.info]
    if not answers:
        raise UserError("there is no answer yet")
    plan = answers[-1].info["memory"]
    about = "" if plan["exact"] else "about "
    limit = f" of {plan['context_tokens']}" if plan["context_tokens"] else ""
    click.echo(f"{about}{plan['prompt_tokens']}{limit} tokens sent")
    for part in plan["parts"]:
        place = f" {part['number']}" if part["number"] else ""
        click.echo(f"  {part['tokens']:>6}  {part['kind']}{place}  {part['why']}")
        if part["text"]:
            click.secho("          " + " ".join(printable(part["text"]).split())[:150], dim=True)
    for item in plan["left_out"]:
        click.echo(
            f"  {item['tokens']:>6}  left out: {item['number']} {item['role']}, {item['why']}"
        )


def _delete(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    chat.deleted = _open(chat)
    chat.store.delete(chat.deleted)
    chat.start_new()
    click.echo("Deleted; /undo brings it back.")


def _undo(chat: TerminalChat, reading: TerminalInput, rest: str) -> None:
    if not chat.deleted:
        raise UserError("nothing was deleted here")
    chat.store.restore(chat.deleted)
    chat.resume(chat.deleted)
    click.echo("It is back.")


def _open(chat: TerminalChat) -> str:
    if chat.conversation is None:
        raise UserError("no conversation is open yet: say something, or /resume one")
    return chat.conversation.id


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"a quote is not closed: {text}") from error


# name: (what it does, its arguments, one line)
COMMANDS: dict[str, tuple[Command, str, str]] = {
    "help": (_help, "", "This list."),
    "new": (_new, "", "Begin another conversation."),
    "clear": (_new, "", "The same."),
    "list": (_list, "[WORDS]", "The conversations, or those that hold the words."),
    "resume": (_resume, "[ID]", "Go to a conversation: the newest, or by its id."),
    "show": (_show, "", "The whole conversation, numbered."),
    "title": (_title, "[TEXT]", "Its title."),
    "edit": (_edit, "[N] [TEXT]", "Another version of message N (your last), and its answer."),
    "regenerate": (_regenerate, "", "Another answer to your last message."),
    "good": (_good, "[WORDS]", "The last answer is good; again: take that back."),
    "bad": (_bad, "[WORDS]", "The last answer is bad, and why; /edit N writes it better."),
    "branch": (_branch, "[N]", "The versions of the newest message that has any; go to one."),
    "system": (_system, "[TEXT|none]", "The system prompt."),
    "model": (_model, "[REF]", "The model; answer with another one."),
    "set": (_set, "[NAME=VALUE]", "Settings: temperature=0, memory.recall=off."),
    "attach": (_attach, "FILE...", "Files for the next message: text, PDF, HTML, Office."),
    "export": (_export, "[FILE]", "Write it as .md, .html or .json."),
    "import": (_import, "FILE", "Add conversations from a JSON file."),
    "prompts": (_prompts, "[NAME FIELD=...]", "The prompt library; use one."),
    "memory": (_memory, "", "What the model was sent, and what was left out."),
    "delete": (_delete, "", "Delete this conversation."),
    "undo": (_undo, "", "Bring it back."),
}
