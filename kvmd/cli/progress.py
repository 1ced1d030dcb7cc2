"""Progress on stderr: a line per event, and a spinner where there is a terminal and rich is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from kvmd.cli.context import message, style_of
from kvmd.render.tables import event_line


class Progress(Protocol):
    """Somewhere to show what happens."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event."""


class _Lines:
    def event(self, event: Mapping[str, Any]) -> None:
        message(event_line(event, style_of(sys.stderr)))


class _Spinner:
    """Lines above a spinner."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def event(self, event: Mapping[str, Any]) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(event_line(event, style_of(sys.stderr))))


@contextlib.contextmanager
def progress(text: str) -> Iterator[Progress]:
    """Show *text* as under way until the block ends."""
    style = style_of(sys.stderr)
    if not (style.colour and style.unicode):
        yield _Lines()
        return
    try:
        from rich.console import Console
    except ImportError:
        yield _Lines()
        return
    console = Console(stderr=True)
    with console.status(text):
        yield _Spinner(console)
