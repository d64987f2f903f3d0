"""Byte-level BPE: the first symbols are the 256 bytes, so any text has ids.

The byte alphabet follows the added tokens in the order of its characters, then come the merges:
the same as Hugging Face's BpeTrainer makes.

Source: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

from typing import ClassVar

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.chat import CHATML
from lmworks.tokenizers.patterns import pattern
from lmworks.tokenizers.pre_tokenizers import BYTE_LEVEL, byte_level_step
from lmworks.tokenizers.trainers.base import Counts, Wanted, check_size, leading_tokens
from lmworks.tokenizers.vocabulary import Vocabulary, alphabet_bytes

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)


class ByteLevelTrainer:
    """See the module."""

    special_tokens: ClassVar[tuple[str, ...]] = SPECIAL_TOKENS

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        given = wanted.special_tokens
        self.special = self.special_tokens if given is None else given
        self.added = leading_tokens(wanted, self.special)
        self.expressions = pattern(wanted.pattern or "gpt2")
        if wanted.alphabet:
            raise UserError("alphabet: byte-level BPE always has all 256 bytes; leave it out")
        extra = len(wanted.reserved) + len(wanted.keep)
        check_size(
            wanted,
            {"the bytes": 256, "special tokens": len(self.special), "kept or reserved ones": extra},
        )
        # One character would stand for a byte in the file.
        for kind, tokens in (("special", self.special), ("kept", wanted.keep)):
            if short := [token for token in tokens if len(token) < 2]:
                raise UserError(
                    f"the {kind} token {short[0]!r} is too short: use two characters or more"
                )

    def blank(self) -> Vocabulary:
        """Steps and added tokens."""
        return self._vocabulary(BPE(tokens=(), merges=()))

    def learn(self, counts: Counts) -> Vocabulary:
        """The vocabulary; smaller than wanted when the text has no more pairs to merge."""
        from lmworks.tokenizers.trainers.merges import learn_merges

        tokens = [token.text.encode() for token in self.added]
        protected = len(tokens)
        tokens += [bytes([byte]) for _, byte in sorted(alphabet_bytes().items())]
        merges = learn_merges(counts, tokens, self.wanted, protected=protected)
        return self._vocabulary(BPE(tokens=tuple(tokens), merges=tuple(merges)))

    def _vocabulary(self, model: BPE) -> Vocabulary:
        special = self.special
        ends = END_OF_TEXT if END_OF_TEXT in special else None
        return Vocabulary(
            model=model,
            added_tokens=self.added,
            pre_tokenizer=byte_level_step(self.expressions),
            decoder=BYTE_LEVEL,
            bos_token=ends,
            eos_token=ends,
            pad_token=PAD if PAD in special else None,
            chat_template=CHATML if {IM_START, IM_END} <= set(special) else None,
        )
