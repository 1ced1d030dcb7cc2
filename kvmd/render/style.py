"""Colours and line-drawing characters, or the lack of them."""

from __future__ import annotations

from dataclasses import dataclass

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_UNICODE = {
    "tee": "├─ ",
    "corner": "└─ ",
    "bar": "│  ",
    "arrow": " ─► ",
    "into": " → ",
    "ok": "✓",
    "bad": "✗",
    "dot": "·",
}
_ASCII = {
    "tee": "|- ",
    "corner": "`- ",
    "bar": "|  ",
    "arrow": " -> ",
    "into": " -> ",
    "ok": "ok",
    "bad": "x",
    "dot": "-",
}


@dataclass(frozen=True, slots=True)
class Style:
    """What the receiver of a text can show."""

    colour: bool = False
    unicode: bool = False

    def paint(self, text: str, *names: str) -> str:
        """Wrap *text* in the escape codes of the named colours, where there are colours."""
        if not self.colour or not text or not names:
            return text
        return f"\x1b[{';'.join(_CODES[name] for name in names)}m{text}\x1b[0m"

    def glyph(self, name: str) -> str:
        """Return a drawing character, or its ASCII stand-in."""
        return (_UNICODE if self.unicode else _ASCII)[name]


PLAIN = Style()
