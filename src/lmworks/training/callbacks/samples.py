"""Show now and then how the model continues a few texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core import progress
from lmworks.training.callbacks.base import Callback

if TYPE_CHECKING:
    from lmworks.tokenizers.base import Tokenizer
    from lmworks.training.trainer import Trainer
    from lmworks.training.trainer_config import LoopConfig

_SHOWN = 160  # characters of a sample in the log
_PROMPTS, _PROMPT_TOKENS = 2, 16


def watch_text(tokenizer: Tokenizer, heldout: Sequence[Any], loop: LoopConfig) -> dict[str, Any]:
    """What a `Trainer` over text is given beside: guilty rows shown as text, samples if asked for.

    Samples continue the beginnings of the first held-out rows.
    """
    watched: dict[str, Any] = {"show": text_of(tokenizer), "callbacks": []}
    if loop.sample_every and heldout:
        first = heldout[0].input_ids[:_PROMPTS, :_PROMPT_TOKENS].tolist()
        watched["callbacks"].append(Samples(tokenizer, first, every=loop.sample_every))
    return watched


def text_of(tokenizer: Tokenizer) -> Callable[[Any], str]:
    """Shows the first row of a batch as text."""
    return lambda rows: tokenizer.decode(rows.input_ids[0].tolist())


class Samples(Callback):
    """Continues `prompts` greedily, prints them, and keeps them with the history.

    Args:
        every: steps between samples.
        prompts: token ids of each.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        *,
        every: int,
        max_tokens: int = 32,
    ) -> None:
        self._tokenizer, self._prompts = tokenizer, [list(ids) for ids in prompts]
        self._every, self._max_tokens = every, max_tokens

    def after_step(self, trainer: Trainer, step: int) -> None:
        """Sample after every `every`-th step, and after the last."""
        if (step + 1) % self._every and step + 1 != trainer.num_steps:
            return
        texts = self._texts(trainer)
        for text in texts:
            trainer.note("sample", text, step=step + 1)
            progress.say(f"  step {step + 1}: {' '.join(text.split())[:_SHOWN]}")

    def _texts(self, trainer: Trainer) -> list[str]:
        from lmworks.inference.engine import Engine
        from lmworks.inference.local import LocalChat

        model = trainer.model
        was_training = model.training
        model.eval()
        try:
            with Engine(model, self._tokenizer, max_batch=1) as engine:  # type: ignore[arg-type]
                chat = LocalChat(engine)
                return [
                    self._tokenizer.decode(ids)
                    + chat.complete_text(ids, temperature=0, max_tokens=self._max_tokens).text
                    for ids in self._prompts
                ]
        finally:
            model.train(was_training)
