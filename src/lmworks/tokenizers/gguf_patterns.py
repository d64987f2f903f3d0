"""The names that GGUF files have for how byte-level text is cut (`tokenizer.ggml.pre`).

llama.cpp's loader says which expressions and flags a name stands for; where it puts a simpler
expression in the place of the model's own (o200k's and Tekken's letter cases), the model's own is
used. Left out are names whose cutting is a program there (kimi-k2, afmoe, superbpe), whose own
pattern it doesn't state (pixtral, youtu, granite-embed-multi), or which it cuts otherwise than the
pattern says (tiny_aya, cohere2moe).

Source: llama.cpp, llama-vocab.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

from lmworks.tokenizers.patterns import PATTERNS


class Pre(NamedTuple):
    """What a name stands for."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False  # where the file doesn't say


_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s+(?!\S)|\s+"
_GPT2, _QWEN2 = PATTERNS["gpt2"], PATTERNS["qwen2"]
_DIGITS = r"\p{N}"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_CJK = "[一-龥ࠀ-一가-퟿]+"
# DeepSeek's cased letters, by code: some of them look like others.
_CODES = """
0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF
0370-0373 0376-0377 037B-037D 037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481
048A-052F 0531-0556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B
1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D
1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC
1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D
212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE
2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06
FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2
10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_CASED = "".join(
    "-".join(chr(int(code, 16)) for code in part.split("-")) for part in _CODES.split()
)
_RUNS = "".join(rf"|\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"

# The first of the names that mean the same is the one that is written.
_MEANINGS: list[tuple[Pre, str]] = [
    (
        Pre(_GPT2),
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum "
        "modern-bert roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code",
    ),
    (
        Pre(PATTERNS["llama3"], ignore_merges=True, add_bos=True),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 midm-2.0 lfm2 jina-v5-nano",
    ),
    (Pre(PATTERNS["llama3"]), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (
        Pre(_QWEN2),
        "qwen2 deepseek-r1-qwen stablelm2 kormo f2llmv2 megrez hunyuan solar-open grok-2",
    ),
    (Pre(PATTERNS["qwen35"]), "qwen35"),
    (
        Pre(PATTERNS["smollm"]),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (Pre(PATTERNS["deepseek"]), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (
        Pre(
            (
                "[\r\n]",
                rf"\s?[{_CASED}]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                _CJK,
                r"\p{N}+",
            )
        ),
        "deepseek-llm",
    ),
    (Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGITS)), "deepseek-coder"),
    (Pre(PATTERNS["o200k"]), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (Pre(PATTERNS["tekken"], ignore_merges=True, add_bos=True), "tekken"),
    (Pre((r"[\p{P}$+<=>^~|`]+", *_GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (
        Pre((" ?[^(\\s|.,!?…。，、।۔،)]+",)),
        "bloom poro-chat gpt3-finnish",
    ),
    (Pre((" ?[^(\\s|.,!?…。，、।۔،)]+", _DIGITS)), "viking"),
    (
        Pre((rf"{_ENGLISH}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}{_RUNS}",)),
        "jais-2",
    ),
    (
        Pre(
            (
                rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
                rf"\s*[\r\n]{_REST}",
            )
        ),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    (
        Pre((rf"{_ENGLISH}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+{_REST}",)),
        "seed-coder",
    ),
    (Pre((rf"{_WORDS}|\p{{N}}|{_SIGNS}{_REST}",)), "ufakzeka"),
    (
        Pre(
            (
                rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|"
                rf"\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]{_REST}",
            )
        ),
        "exaone-moe",
    ),
    (Pre((r"[^\n]+|\n+", *_QWEN2)), "laguna"),
    (
        Pre(
            (r"\p{N}{1,3}", rf"{_ENGLISH}|{_WORDS}|\p{{N}}+|{_SIGNS}{_REST}"),
            ignore_merges=True,
        ),
        "minicpm5",
    ),
    (
        Pre((r"[\p{P}$+<=>^~|]+", *_GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "default",
    ),
]

NAMES: dict[str, Pre] = {name: pre for pre, names in _MEANINGS for name in names.split()}
