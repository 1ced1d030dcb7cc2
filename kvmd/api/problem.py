"""A fault in a file that a person wrote, with its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a file; line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong at one place: *rule* is a stable identifier such as ``unknown-field``."""

    position: Position
    rule: str
    message: str
    hint: str = ""
    severity: str = "error"  # error | warning

    def __str__(self) -> str:
        text = f"{self.position}: {self.severity}[{self.rule}] {self.message}"
        return f"{text}; {self.hint}" if self.hint else text
