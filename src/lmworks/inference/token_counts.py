"""How many tokens a prompt takes: counted by the model's own tokenizer, or estimated."""

from __future__ import annotations

from typing import Any

from lmworks.inference.base import ChatModel, Messages

_CHARACTERS_PER_TOKEN = 3.0  # fewer than in English, so that an estimate errs to the safe side
_TOKENS_PER_MESSAGE = 4


class TokenCounter:
    """Counts for one model.

    `exact` tells whether the model's tokenizer and chat template are at hand; a remote endpoint's
    are not. `context` is the most that prompt and answer may take together, None if unknown.
    """

    def __init__(self, model: ChatModel) -> None:
        holder: Any = getattr(model, "engine", None) or model
        self._tokenizer = getattr(holder, "tokenizer", None)
        self.exact = self._tokenizer is not None
        self._count = getattr(model, "count_tokens", None)  # with what the model adds by itself
        limit = getattr(holder, "max_positions", None)
        self.context: int | None = int(limit) if limit else None

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        if self._tokenizer is None:
            return round(len(text.encode()) / _CHARACTERS_PER_TOKEN)
        return len(self._tokenizer.encode(text))

    def prompt(self, messages: Messages) -> int:
        """Tokens of the prompt that these messages become, up to where the answer begins."""
        if self._tokenizer is None:
            texts = sum(self.text(str(message.get("content", ""))) for message in messages)
            return texts + _TOKENS_PER_MESSAGE * (len(messages) + 1)
        if self._count is not None:
            return int(self._count(messages))
        if self._tokenizer.chat_template:
            return len(self._tokenizer.encode_chat(messages, add_generation_prompt=True))
        from lmworks.inference.local import plain_prompt

        return len(self._tokenizer.encode(plain_prompt(messages)))
