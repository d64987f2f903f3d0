"""SentencePiece's two kinds, BPE and Unigram: pieces of characters, a space written as ▁.

A character that the alphabet leaves out is written as its bytes (`<0x0A>`), so any text has ids.
The added tokens come first, then the 256 bytes, then characters and pieces. Text comes back as it
was, but for a ▁ that stood in it; with `metaspace-prefix`, as SentencePiece has it, a space at its
beginning is lost, and with `metaspace-nfkc` compatibility characters are.

Differs from SentencePiece: words end at line breaks as well, characters of several scripts may
share a piece, and merges are chosen as in Hugging Face's BpeTrainer, whose ties go to the pair of
smaller ids.

Source: Kudo and Richardson 2018, arXiv 1808.06226.
"""

from __future__ import annotations

from typing import ClassVar

from lmworks.core.errors import unknown_name
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.trainers.base import Counts, Wanted, check_size, leading_tokens
from lmworks.tokenizers.trainers.symbols import Characters
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import Step, Vocabulary

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LONGEST_PIECE = 16  # characters, as in SentencePiece
# How text is cut: (where ▁ is put before it, normalizer)
PATTERNS: dict[str, tuple[str, Step | None]] = {
    "metaspace": ("never", None),
    "metaspace-nfkc": ("never", {"type": "NFKC"}),
    "metaspace-prefix": ("first", None),
}


class SentencePieceTrainer:
    """BPE over characters."""

    special_tokens: ClassVar[tuple[str, ...]] = (UNK, BOS, EOS, PAD)

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        given = wanted.special_tokens
        self.special = self.special_tokens if given is None else given
        if wanted.pattern and wanted.pattern not in PATTERNS:
            raise unknown_name("pattern for this kind", wanted.pattern, PATTERNS)
        self.scheme, self.normalizer = PATTERNS[wanted.pattern or "metaspace"]
        self.added = leading_tokens(wanted, self.special)

    def blank(self) -> Vocabulary:
        """Steps and added tokens."""
        return self._vocabulary(BPE(tokens=(), merges=(), byte_level=False))

    def learn(self, counts: Counts) -> Vocabulary:
        """The vocabulary; smaller than wanted when the text has no more pairs to merge."""
        from lmworks.tokenizers.trainers.merges import learn_merges

        alphabet = self._alphabet(Characters(counts.words))
        texts = self._first(alphabet)
        ids = {text: i for i, text in enumerate(texts)}
        tokens = [text.encode() for text in texts]
        merges = learn_merges(
            counts,
            tokens,
            self.wanted,
            protected=len(self.added) + len(BYTES),
            longest=LONGEST_PIECE,
            symbols=lambda words: Characters(words).symbols(
                {character: ids[character] for character in alphabet}, apart=True
            ),
        )
        return self._vocabulary(
            BPE(
                tokens=tuple(tokens),
                merges=tuple(merges),
                byte_level=False,
                byte_fallback=True,
                unk_id=ids.get(UNK),
                fuse_unk=True,
            )
        )

    def _alphabet(self, characters: Characters, also: str = "") -> list[str]:
        """The characters that text keeps, those in `also` being tokens as well.

        Raises: UserError when there is no room for them.
        """
        kept = characters.kept(self.wanted.alphabet)
        check_size(
            self.wanted,
            {
                "bytes": len(BYTES),
                "characters": len({*kept, *also}),
                "special, kept and reserved tokens": len(self.added),
            },
            advice="; alphabet keeps fewer characters",
        )
        return kept

    def _first(self, alphabet: list[str]) -> list[str]:
        """What comes before anything that is learnt; a character may be a kept token too."""
        leading = [*(token.text for token in self.added), *BYTES]
        return list(dict.fromkeys([*leading, *alphabet]))

    def _vocabulary(self, model: BPE | Unigram) -> Vocabulary:
        named = {text: text for text in self.special}
        return Vocabulary(
            model=model,
            added_tokens=self.added,
            normalizer=self.normalizer,
            pre_tokenizer=_cuts(self.scheme),
            decoder=_decoder(self.scheme),
            bos_token=named.get(BOS),
            eos_token=named.get(EOS),
            pad_token=named.get(PAD),
            unk_token=named.get(UNK),
        )


class UnigramTrainer(SentencePieceTrainer):
    """Unigram: pieces with probabilities, learnt by trainers/unigram.py."""

    def blank(self) -> Vocabulary:
        """Steps and added tokens."""
        return self._vocabulary(Unigram(tokens=(), scores=()))

    def learn(self, counts: Counts) -> Vocabulary:
        """The vocabulary."""
        from lmworks.tokenizers.trainers.unigram import learn_unigram

        characters = Characters(counts.words)
        leading = [token.text for token in self.added] + list(BYTES)
        # Text that looks like an added token must have another way to be written.
        kept = self._alphabet(characters, also := "".join(leading))
        pieces, scores = learn_unigram(
            characters.only(kept),
            vocab_size=self.wanted.vocab_size - len(leading),
            required=sorted({*kept, *also}),
            min_frequency=self.wanted.min_frequency,
            max_piece_length=LONGEST_PIECE,
        )
        known = set(leading)
        pairs = [(piece, s) for piece, s in zip(pieces, scores) if piece not in known]
        lowest = min(scores)
        return self._vocabulary(
            Unigram(
                tokens=tuple(text.encode() for text in (*leading, *(piece for piece, _ in pairs))),
                # Dearer than character by character: they never come of text.
                scores=(
                    *((len(text) + 1) * lowest for text in leading),
                    *(score for _, score in pairs),
                ),
                unk_id=leading.index(UNK) if UNK in leading else None,
                byte_fallback=True,
            )
        )


def _cuts(scheme: str) -> Step:
    """Words begin with ▁; line breaks stand alone."""
    metaspace = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True
    }  # fmt: skip
    lines = {
        "type": "Split",
        "pattern": {"Regex": r"[\r\n]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [metaspace, lines]}


def _decoder(scheme: str) -> Step:
    steps: list[Step] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
