"""`lmworks chat REF`: a conversation in the terminal."""

from __future__ import annotations

import click


@click.command()
@click.argument("reference", metavar="MODEL")
@click.option("--base", default="", metavar="REF", help="The model under MODEL, an adapter.")
@click.option("--system", default="", help="A system prompt to begin with.")
@click.option("--temperature", default=0.7, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", default=512, show_default=True, help="Longest answer, in tokens.")
@click.option("--seed", type=int, help="Same seed, same answers.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="last",
    default=None,
    metavar="[ID]",
    help="Go on with a conversation: the last one, or an id that /list shows.",
)
@click.option(
    "--conversations",
    default=None,
    metavar="FILE|off",
    help="Where conversations are kept; by default in your data folder, with the page's. Input "
    "from a pipe is not kept unless this or --resume says so.",
)
@click.option(
    "--recall",
    type=click.Choice(["off", "words", "meaning"]),
    default="words",
    show_default=True,
    help="What of earlier turns is brought back once not all of them fit.",
)
@click.option("--summary/--no-summary", default=False, help="Notes on turns that fall out.")
@click.option("--context", type=int, help="Longest prompt and answer together, in tokens.")
@click.option("--encoder", default="", metavar="REF", help="For recall by meaning: minilm-l6.")
@click.pass_context
def command(
    context_: click.Context,
    reference: str,
    base: str,
    resume: str | None,
    conversations: str | None,
    encoder: str,
    **settings: object,
) -> None:
    """Talk to MODEL: a folder, a GGUF file, hf:org/name, an alias, or https://host/v1#model.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands: files, versions, prompts, other
    conversations and models. A line that ends in a backslash goes on; three double quotes begin and
    end a longer message.

    \b
    Examples:
      lmworks chat smollm2-135m
      lmworks chat smollm2-135m --resume
      lmworks chat lmworks-quickstart/chat-q8 --temperature 0
      echo "What is a list?" | lmworks chat smollm2-135m
    """
    import sys

    from lmworks.cli.printing import reference_name
    from lmworks.cli.terminal_chat import TerminalChat
    from lmworks.inference.chat import load_chat
    from lmworks.serving.conversations.store import ConversationStore, file_of

    if encoder and not _given(context_, "recall"):
        settings["recall"] = "meaning"
    if conversations is None and resume is None and not sys.stdin.isatty():
        conversations = "off"
    store = ConversationStore(file_of(conversations or ""))
    try:
        chat = TerminalChat(store, load=lambda name: load_chat(name, max_batch=1), encoder=encoder)
        if resume is not None:
            chat.resume(resume)
            settings = {k: v for k, v in settings.items() if _given(context_, k)}
        chat.set(**settings)
        chat.use_model(load_chat(reference, base=base, max_batch=1), reference_name(reference))
        chat.run()
    finally:
        store.close()


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
