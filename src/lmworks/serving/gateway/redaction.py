"""Secrets and personal data taken out of texts: for logs always, towards back ends on request.

Patterns with a check where there is one (Luhn for cards, mod 97 for IBANs), so that ordinary
numbers stay. What is found becomes `[KIND]`. That finds what has a form; names of people and what
is secret only by its meaning have none, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_MAX_DEPTH = 100


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


def _any(text: str) -> bool:
    return True


# In this order: what is longer and surer first. Each begins with a literal or a digit, and no
# repetition stands inside another, so that no text makes them slow.
_PATTERNS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (
        "PRIVATE_KEY",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s:,]{0,20000}"
        r"-----END [A-Z ]{0,30}PRIVATE KEY-----",
        _any,
    ),
    ("JWT", r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", _any),
    ("SECRET", r"\blmw_[0-9a-f]{12}_[0-9a-f]{64}\b", _any),
    ("SECRET", r"\bsk-[A-Za-z0-9_-]{20,}", _any),
    ("SECRET", r"\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36,}", _any),
    ("SECRET", r"\bgithub_pat_[A-Za-z0-9_]{22,}", _any),
    ("SECRET", r"\bglpat-[A-Za-z0-9_-]{20,}", _any),
    ("SECRET", r"\bhf_[A-Za-z0-9]{30,}", _any),
    ("SECRET", r"\bxox[abprs]-[A-Za-z0-9-]{10,}", _any),
    ("SECRET", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", _any),
    ("SECRET", r"\bAIza[0-9A-Za-z_-]{35}", _any),
    ("SECRET", r"(?i)\bbearer +[A-Za-z0-9._~+/=-]{16,}", _any),
    (
        "SECRET",
        r"(?i)\b(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token)\b\s{0,3}[:=]\s{0,3}"
        r"[\"']?[^\s\"',;]{6,200}",
        _any,
    ),
    (
        "EMAIL",
        r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+",
        _any,
    ),
    ("IBAN", r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _iban),
    ("CARD", r"\b[0-9](?:[ -]?[0-9]){12,18}\b", _luhn),
    ("US_SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", _any),
    ("PHONE", r"(?<![\w.])\+[0-9][0-9 ()/.-]{6,20}[0-9]\b", _phone),
    ("PHONE", r"(?<![\w.])\(?[0-9]{3}\)?[ -][0-9]{3}-[0-9]{4}\b", _phone),
    ("IP_ADDRESS", r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b", _any),
)
_COMPILED = tuple((kind, re.compile(pattern), check) for kind, pattern, check in _PATTERNS)


def redact(text: str) -> str:
    """`text` with what the patterns find replaced by `[KIND]`."""
    for kind, pattern, check in _COMPILED:

        def replace(found: re.Match[str], kind: str = kind, check: Any = check) -> str:
            return f"[{kind}]" if check(found[0]) else found[0]

        text = pattern.sub(replace, text)
    return text


def found_kinds(text: str) -> list[str]:
    """What the patterns find in `text`, by kind, the longest and surest first."""
    return [
        kind
        for kind, pattern, check in _COMPILED
        if any(check(found[0]) for found in pattern.finditer(text))
    ]


# What says how to answer rather than what about: a model's name is no secret.
_KEPT = frozenset({"model", "role", "type", "id", "tool_call_id", "name", "finish_reason"})


def redact_value(value: Any, depth: int = 0) -> Any:
    """A JSON value with all its texts redacted; keys of objects stay, and so do names and roles."""
    if isinstance(value, str):
        return redact(value)
    if depth > _MAX_DEPTH:
        return "[DEEP]"
    if isinstance(value, Mapping):
        return {
            key: part if key in _KEPT else redact_value(part, depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [redact_value(part, depth + 1) for part in value]
    return value
