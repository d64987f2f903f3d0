"""The settings of one request, sorted by who reads them.

`ChatModel.stream(messages, **settings)` takes the fields of `Sampling`, and beside them what this
table lists. A name that neither knows is told with the nearest one.

| setting | |
|---|---|
| `tools`, `tool_choice`, `parallel_tool_calls` | as in OpenAI's API; see `tools` |
| `response_format` | the form of the answer; see `grammar` |
| `priority`, `client`, `adapter` | to the engine: see `Engine.submit` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import nearest
from lmworks.inference.grammar import Grammar
from lmworks.inference.sampling import InvalidParameter, Sampling
from lmworks.inference.tools import ToolUse

TOOL_SETTINGS = ("tools", "tool_choice", "parallel_tool_calls")
REQUEST_SETTINGS = ("priority", "client", "adapter")
_BESIDE = (*TOOL_SETTINGS, "response_format", *REQUEST_SETTINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One request's settings. `to_engine` holds those of REQUEST_SETTINGS that were given."""

    sampling: Sampling
    tools: ToolUse | None = None
    grammar: Grammar | None = None
    to_engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """From keyword arguments; None stands for a setting's default.

        Raises: InvalidParameter naming the one at fault.
        """
        sampling_names = [field.name for field in dataclasses.fields(Sampling)]
        for name in settings:
            if name not in sampling_names and name not in _BESIDE:
                known = (*sampling_names, *_BESIDE)
                close = nearest(name, known)
                hint = f"did you mean {close!r}? " if close else ""
                raise InvalidParameter(name, f"unknown setting: {hint}known: {', '.join(known)}")
        tools = ToolUse.of(*(settings.get(name) for name in TOOL_SETTINGS))
        grammar = Grammar.of_response_format(settings.get("response_format"))
        if grammar and tools and tools.forced:
            message = f"{tools.choice!r} asks for a call, and response_format for another form"
            raise InvalidParameter("tool_choice", message)
        given = {name: settings[name] for name in REQUEST_SETTINGS if settings.get(name)}
        plain = {name: value for name, value in settings.items() if name in sampling_names}
        return cls(sampling=Sampling.of(plain), tools=tools, grammar=grammar, to_engine=given)
