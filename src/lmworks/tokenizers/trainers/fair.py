"""Parity-aware BPE: each merge is chosen for the language that is compressed worst at that moment.

Compression is measured on text of its own: units (lines that say the same in every language, or
bytes where there are none) per token. The most frequent pair in the words of the language that
has the least is merged, in all languages. A language without a pair that is frequent enough is
passed over from then on; of equals the first comes first.

Over lines that say the same, the worst language is the one with the most tokens. Bytes are no
measure across scripts: the same sentence takes more of them in Devanagari than in Latin letters.

Source: Foroutan et al. 2025, arXiv 2508.04796, algorithm 1 (the base variant).
"""

from __future__ import annotations

from collections.abc import Sequence

from lmworks.core.progress import track
from lmworks.tokenizers.compiled_trainer import MergeState
from lmworks.tokenizers.word_counts import WordCounts

Pair = tuple[int, int]


def learn_fairly(
    languages: Sequence[WordCounts],
    measured: Sequence[tuple[WordCounts, int]],
    tokens: list[bytes],
    *,
    vocab_size: int,
    min_frequency: int,
    protected: int = 0,
    prefix: bytes = b"",
    longest: int = 0,
) -> list[Pair]:
    """As compiled_trainer.learn_merges, over the words of several languages.

    Args:
        languages: words of each, in first symbols.
        measured: of each, the words that tell how it is compressed, and how many units they are.
    """
    options = (tokens, vocab_size, min_frequency)
    states = [MergeState(words, *options, chosen=True) for words in languages]
    measures = [
        state if words is learnt else MergeState(words, *options, chosen=True)
        for state, learnt, (words, _) in zip(states, languages, measured)
    ]
    units = [max(1, number) for _, number in measured]
    everything = list({id(state): state for state in (*states, *measures)}.values())
    ids = {token: i for i, token in enumerate(tokens)}
    merges: list[Pair] = []
    for state in everything:
        state.top()  # counts what there is
    with track("learning merges", total=vocab_size - len(tokens)) as bar:
        while len(tokens) < vocab_size:
            found = _worst(states, measures, units)
            if found is None:
                break
            state, pair = found
            joined = tokens[pair[0]] + tokens[pair[1]].removeprefix(prefix)
            merged = ids.get(joined)
            too_long = longest and len(joined.decode("utf-8", "replace")) > longest
            if too_long or (merged is not None and merged < protected):
                for state in everything:
                    state.drop(pair)
                continue
            if merged is None:
                merged = ids[joined] = len(tokens)
                tokens.append(joined)
                bar.advance()
            merges.append(pair)
            for state in everything:
                state.merge(pair, merged)
    return merges


def _worst(
    states: list[MergeState], measures: list[MergeState], units: list[int]
) -> tuple[MergeState, Pair] | None:
    """The state of the language with the most tokens per unit that has a pair left, and it."""
    order = sorted(range(len(states)), key=lambda i: -measures[i].num_symbols / units[i])
    for index in order:
        pair = states[index].top()
        if pair is not None:
            return states[index], pair
    return None
