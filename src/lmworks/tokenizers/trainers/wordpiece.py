"""WordPiece, learnt as Hugging Face's WordPieceTrainer does: BPE merges over characters, and the
tokens that are found inside a word carry `##`.

Text is cut as BERT cuts it. There, the ids of the `##` characters come in the order of a hash
table, so that two runs differ where pairs are equally frequent; here they come in the order of
code points. Told that order, this trainer makes the same tokens as theirs.

Sources: Devlin et al. 2019, arXiv 1810.04805; Schuster and Nakajima 2012.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lmworks.core.errors import UserError, unknown_name
from lmworks.tokenizers.trainers.base import Counts, Wanted, check_size, leading_tokens
from lmworks.tokenizers.vocabulary import Step, Vocabulary
from lmworks.tokenizers.wordpiece import WordPiece

UNK, CLS, SEP, PAD, MASK = "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"
PREFIX = "##"
PATTERNS = ("bert", "bert-cased")


class WordPieceTrainer:
    """See the module."""

    special_tokens: ClassVar[tuple[str, ...]] = (UNK, CLS, SEP, PAD, MASK)

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        given = wanted.special_tokens
        self.special = self.special_tokens if given is None else given
        if UNK not in self.special:
            raise UserError(f"special_tokens: WordPiece needs {UNK} among them")
        if wanted.pattern and wanted.pattern not in PATTERNS:
            raise unknown_name("pattern for wordpiece", wanted.pattern, PATTERNS)
        self.added = leading_tokens(wanted, self.special, normalized=True)
        self.lowercase = wanted.pattern != "bert-cased"

    def blank(self) -> Vocabulary:
        """Steps and added tokens."""
        return self._vocabulary([UNK.encode()])

    def learn(self, counts: Counts, inside_first: Sequence[str] = ()) -> Vocabulary:
        """The vocabulary.

        Args:
            inside_first: `##` characters whose ids come before those of the others, in order.
        """
        from lmworks.tokenizers.trainers.merges import learn_merges
        from lmworks.tokenizers.trainers.symbols import Characters

        characters = Characters(counts.words)
        alphabet = characters.kept(self.wanted.alphabet)
        leading = [token.text for token in self.added]
        texts = list(leading)
        ids = {text: i for i, text in enumerate(leading)}
        _append(texts, ids, alphabet)
        within = characters.inside() & set(alphabet)
        order = [*inside_first, *sorted(within - set(inside_first))]
        _append(texts, ids, [PREFIX + character for character in order if character in within])
        check_size(
            self.wanted,
            {
                "characters": len(texts) - len(leading),
                "special, kept and reserved tokens": len(leading),
            },
            advice="; alphabet keeps fewer characters",
        )
        first = {character: ids[character] for character in alphabet}
        inner = {character: ids[PREFIX + character] for character in within}
        tokens = [text.encode() for text in texts]
        learn_merges(
            counts,
            tokens,
            self.wanted,
            protected=len(leading),
            prefix=PREFIX.encode(),
            symbols=lambda words: Characters(words).symbols(first, inner, apart=False),
        )
        return self._vocabulary(tokens)

    def _vocabulary(self, tokens: list[bytes]) -> Vocabulary:
        added = self.added
        ids = {token.text: token.id for token in added}
        return Vocabulary(
            model=WordPiece(
                tokens=tuple(tokens), unk_id=ids[UNK], continuing_subword_prefix=PREFIX
            ),
            added_tokens=added,
            normalizer={
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": self.lowercase,
            },
            pre_tokenizer={"type": "BertPreTokenizer"},
            post_processor=_around(ids) if {CLS, SEP} <= set(ids) else None,
            decoder={"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
            pad_token=PAD if PAD in ids else None,
            unk_token=UNK,
        )


def _append(texts: list[str], ids: dict[str, int], more: Sequence[str]) -> None:
    for text in more:
        if text not in ids:
            ids[text] = len(texts)
            texts.append(text)


def _around(ids: dict[str, int]) -> Step:
    """`[CLS] A [SEP] B [SEP]`, B of the second type."""
    cls, sep = ({"SpecialToken": {"id": text, "type_id": 0}} for text in (CLS, SEP))
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    last = {"SpecialToken": {"id": SEP, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [cls, first, sep],
        "pair": [cls, first, sep, second, last],
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (CLS, SEP)},
    }
