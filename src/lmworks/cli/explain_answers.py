"""`lmworks explain answers MODEL FILE`: what of each conversation would be learnt, and why."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.training.answer_masks import Masked


@click.command()
@click.argument("reference", metavar="MODEL")
@click.argument("path", metavar="FILE")
@click.option("--rows", default=3, show_default=True, help="How many conversations to show.")
@click.option(
    "--loss-on",
    type=click.Choice(["answers", "last", "everything"]),
    default="answers",
    show_default=True,
    help="As the stage's masks.loss_on.",
)
@click.option("--template", help="A Jinja file, or chatml, in the place of the model's own.")
def command(reference: str, path: str, rows: int, loss_on: str, template: str | None) -> None:
    """Show what fine-tuning MODEL on FILE would learn: in [[ ]], bold on a terminal.

    FILE has a conversation in each line, or is a dataset folder. What can't be learnt is told with
    its line and the reason.

    \b
    Examples:
      lmworks explain answers smollm2-135m chats.jsonl
      lmworks explain answers runs/base runs/questions --rows 10 --loss-on last
      lmworks explain answers smollm2-135m chats.jsonl --template qwen3.jinja
    """
    from lmworks.core.errors import UserError
    from lmworks.core.references import resolve
    from lmworks.tokenizers.chat_formats import with_template
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.answer_masks import mask_answers
    from lmworks.training.conversations import read_conversations
    from lmworks.training.mask_config import MaskConfig

    tokenizer = load_tokenizer(reference)
    if template:
        tokenizer = with_template(tokenizer, template)
    found = resolve(path).path or Path(path)
    file = found / "train.jsonl" if found.is_dir() else found
    config = MaskConfig(loss_on=loss_on)  # type: ignore[arg-type]
    for row in itertools.islice(read_conversations(file), rows):
        where = str(row["where"])
        try:
            masked = mask_answers(
                tokenizer, row["messages"], tools=row.get("tools"), config=config, where=where
            )
        except UserError as error:
            click.secho(str(error), fg="red")
            continue
        click.secho(where, dim=True)
        _show(tokenizer, masked)


def _show(tokenizer: PipelineTokenizer, masked: Masked) -> None:
    pairs = zip(masked.ids.tolist(), masked.is_target.tolist(), strict=True)
    for learnt, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        text = tokenizer.decode(token for token, _ in run)
        click.secho(f"[[{text}]]" if learnt else text, bold=learnt, nl=False)
    click.echo()
    click.secho(f"{int(masked.is_target.sum())} of {len(masked.ids)} tokens are learnt", dim=True)
    for index, reason in masked.left_out.items():
        click.secho(f"messages[{index}] is not learnt: {reason}", dim=True)
    if masked.num_straddling:
        click.secho(f"{masked.num_straddling} tokens lie across a border: not learnt", dim=True)
