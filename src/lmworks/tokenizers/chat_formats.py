"""Chat templates for tokenizers that come without one: OpenAI's ranks, base models.

`openai` writes what OpenAI's own count adds to the texts: three tokens a message, the role, one
more before a name, and three that begin the answer. Tools have no place in it: how they are
written there is not published.

Source: OpenAI cookbook, "How to count tokens with tiktoken", section 6.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lmworks.core.errors import UserError, unknown_name
from lmworks.tokenizers.chat import CHATML
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import AddedToken

_OPENAI = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message.role }}"
    "{% if message.name %}{{ '<|name|>' + message.name }}{% endif %}"
    "{{ '<|message|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"
)
# The template, and its special tokens, which ranks do not hold.
CHAT_FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "openai": (_OPENAI, ("<|start|>", "<|name|>", "<|message|>", "<|end|>")),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
}
_MOST_BYTES = 1 << 20


def with_template(tokenizer: PipelineTokenizer, template: str) -> PipelineTokenizer:
    """The tokenizer with another chat template, for counting.

    Args:
        template: a name in CHAT_FORMATS, or a Jinja file.
    Raises: UserError for an unknown name, or a file that can't be read.
    """
    text, special = CHAT_FORMATS.get(template, ("", ()))
    if not text:
        text = _read(template)
    vocabulary = tokenizer.vocabulary
    missing = [token for token in special if token not in vocabulary.added_ids]
    added = [
        AddedToken(id=tokenizer.vocab_size + i, text=token, in_vocabulary=False)
        for i, token in enumerate(missing)
    ]
    return PipelineTokenizer(
        dataclasses.replace(
            vocabulary, chat_template=text, added_tokens=(*vocabulary.added_tokens, *added)
        )
    )


def _read(template: str) -> str:
    path = Path(template)
    try:
        if not path.is_file():
            raise unknown_name("chat template (or Jinja file)", template, CHAT_FORMATS)
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: a chat template of over {_MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template {template[:80]} can't be read: {error}") from error
