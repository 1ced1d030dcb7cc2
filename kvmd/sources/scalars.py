"""Plain scalars: what they mean (YAML 1.2, leaning towards text where a number would lose) and how to say them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

Scalar = str | int | float | bool | None

# https://yaml.org/spec/1.2.2/#103-core-schema
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# The core schema reads 012 as 12 and YAML 1.1 reads it as 10. As text it keeps its zero, suits labels and serial
# numbers, and is refused with its position where a number is due; .inf and .nan, which JSON cannot hold, likewise.
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FIRST = frozenset("-+.0123456789")
_PASSWORD = re.compile(r"(://[^/:@\s]*:)[^/@\s]*@")
_LONGEST_SHOWN = 60
_LONGEST_NUMBER = 40  # 2**128 has 39 digits; int() refuses more than 4,300

# https://yaml.org/spec/1.2.2/#51-character-set, without the byte-order mark.
FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def resolve(text: str) -> Scalar:
    """Return the value that an unquoted scalar stands for."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in _FIRST or len(text) > _LONGEST_NUMBER:
        return text
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` where a known word is near, else nothing."""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean '{folded[near[0]]}'?" if near else ""


def shown(value: Any) -> str:
    """Say what was found, short, on one line and without the password of a URL."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        if value.count("\n") > 1:
            return f"a text of {value.count(chr(10))} lines"
        text = _PASSWORD.sub(r"\1***@", value)
        return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, Mapping) else "a list"
