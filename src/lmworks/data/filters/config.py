"""The thresholds of the quality rules, for prose and for code, with where they come from.

| threshold | Gopher | prose here | why it differs |
|---|---|---|---|
| words | 50 | 5 | a docstring of one sentence is worth keeping |
| mean word length | 3 to 10 | 2 to 25 | manuals hold dotted names and signatures |
| words with a letter | 80 % | 30 % | grammars, tables and examples |
| symbols (# and ...) per word | 0.1 | 0.5 | Markdown headings, `...` in examples |
| repeated lines | 30 % | 50 % | tables and lists of options |
| characters in the top 3-gram | 18 % | 30 % | the same |

Gopher: Rae et al. 2021, arXiv 2112.11446, table A1 and section A.1.1; its limits are for web pages
at a scale where a good document more or less does not count. Ours are for a person's own folder:
they drop what no reader would call text and leave the rest.
"""

from __future__ import annotations

import dataclasses

from lmworks.core.config import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for one kind of text. Shares are between 0 and 1."""

    min_mean_word_length: float = option(2.0, help="shorter words on average: letters scattered")
    max_mean_word_length: float = option(25.0, help="longer words on average: encoded data")
    min_alphabetic_words: float = option(0.3, help="least share of words with a letter in them")
    max_symbols_per_word: float = option(0.5, help="most # and ... per word")
    max_repeated_lines: float = option(0.5, help="most lines that repeat another one, as a share")
    max_top_trigram: float = option(0.3, help="most of the text that one group of 3 words makes up")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What a document must be like to stay."""

    min_words: int = option(5, help="fewer words are dropped")
    prose: Limits = option(Limits(), help="limits for text")
    # Code repeats lines (braces, imports) and draws with signs; its words are long.
    code: Limits = option(
        Limits(
            min_mean_word_length=1.5,
            max_mean_word_length=40.0,
            min_alphabetic_words=0.2,
            max_symbols_per_word=1.0,
            max_repeated_lines=0.8,
            max_top_trigram=0.5,
        ),
        help="limits for program text",
    )
