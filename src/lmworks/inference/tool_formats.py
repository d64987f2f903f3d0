"""How the families of chat templates have a model write a call of a tool.

A family is known by what stands in its template; the first row whose signs all do counts. A
template that knows no tools gets the last row: the tools are told in a system message, in the words
of the Hermes family, which most small models have met.

Layouts: `object` is `{"name": ..., "arguments": {...}}` between two marks, one call each; `list` is
a JSON list of such objects between them; `named` has the name before the arguments; `xml` has an
element per argument. The parser reads the first two alike, as models mix them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One family's way.

    Attributes:
        signs: texts that are all in the family's templates.
        begin: mark that begins a call (or a list of them).
        end: mark that ends it.
        lead, trail: blanks that the family writes inside the marks.
        between: what stands between two calls.
        name_end: layout `named`: what stands between the name and the arguments.
        arguments: the key of the arguments.
        name: the key of the name.
        bare: an answer may also begin with the object itself, without a mark.
        id_characters: length of a call's id, where the template checks it.
    """

    signs: tuple[str, ...] = ()
    layout: Literal["object", "list", "named", "xml"] = "object"
    begin: str = ""
    end: str = ""
    lead: str = ""
    trail: str = ""
    between: str = ""
    name_end: str = ""
    name: str = "name"
    arguments: str = "arguments"
    bare: bool = False
    id_characters: int = 24


FORMATS: dict[str, ToolFormat] = {
    # Qwen3-Coder and those after it.
    "qwen3_coder": ToolFormat(
        signs=("<function=", "<parameter="),
        layout="xml",
        begin="<tool_call>",
        end="</tool_call>",
        lead="\n",
        trail="\n",
        between="\n",
    ),
    # Hermes 2, Qwen 2.5 and 3, SmolLM3.
    "hermes": ToolFormat(
        signs=("<tool_call>",),
        begin="<tool_call>",
        end="</tool_call>",
        lead="\n",
        trail="\n",
        between="\n",
        bare=True,
    ),
    "deepseek": ToolFormat(
        signs=("<｜tool▁call▁begin｜>",),
        layout="named",
        begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        name_end="\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
    # Mistral's tokenizers 11 and 13.
    "mistral_named": ToolFormat(
        signs=("[TOOL_CALLS]", "[ARGS]"),
        layout="named",
        begin="[TOOL_CALLS]",
        name_end="[ARGS]",
        id_characters=9,
    ),
    "mistral": ToolFormat(
        signs=("[TOOL_CALLS]",), layout="list", begin="[TOOL_CALLS]", between=", ", id_characters=9
    ),
    "command_r": ToolFormat(
        signs=("<|START_ACTION|>",),
        layout="list",
        begin="<|START_ACTION|>",
        end="<|END_ACTION|>",
        between=", ",
        name="tool_name",
        arguments="parameters",
    ),
    "internlm2": ToolFormat(
        signs=("<|action_start|>", "<|plugin|>"),
        begin="<|action_start|><|plugin|>",
        end="<|action_end|>",
        lead="\n",
        arguments="parameters",
    ),
    "phi4": ToolFormat(
        signs=("<|tool_call|>", "<|/tool_call|>"),
        layout="list",
        begin="<|tool_call|>",
        end="<|/tool_call|>",
        between=", ",
    ),
    "granite": ToolFormat(
        signs=("<|tool_call|>",), layout="list", begin="<|tool_call|>", between=", ", bare=True
    ),
    "llama3": ToolFormat(
        signs=('"parameters"', "tools"),
        begin="<|python_tag|>",
        between="; ",
        arguments="parameters",
        bare=True,
    ),
    # The template shows tools in words of its own and asks for no known form.
    "json": ToolFormat(signs=("tools",), begin="<tool_call>", end="</tool_call>", bare=True),
}
PLAIN = FORMATS["hermes"]  # what the description below asks for


def format_of(template: str | None) -> tuple[str, ToolFormat]:
    """The family of a chat template; ("", PLAIN) for one that knows no tools."""
    for name, form in FORMATS.items():
        if template and "tools" in template and all(sign in template for sign in form.signs):
            return name, form
    return "", PLAIN
