"""structlog: JSON lines that journald understands, pretty on a terminal; both on standard output."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import Any, TextIO

from kvmd.settings import Log

# syslog(3) levels; journald takes the prefix `<N>` off and stores it as PRIORITY
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}


class _Patient(io.TextIOBase):
    """Loses lines where the disk is full or the reader is gone: what is told must not end who tells it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Send what was written, or not."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _structlog() -> Any:
    """Import structlog without rich, which it would load wherever it is installed (8 MB for tracebacks)."""
    hidden = "structlog" not in sys.modules and "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        if hidden:
            del sys.modules["rich"]
    return structlog


def configure(settings: Log, stream: TextIO | None = None) -> None:
    """Set up structlog, and the standard library's logging through it, as *settings* say."""
    structlog = _structlog()
    output = sys.stdout if stream is None else stream
    patient = _Patient(output)
    level = getattr(logging, settings.level.upper())
    pretty = settings.format == "console" or (settings.format == "auto" and output.isatty())
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *(_pretty(structlog, output) if pretty else _json(structlog)),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(patient),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(patient)
    # what libraries log (uvicorn's errors, Python's warnings) goes the same way as our own lines
    without_record = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[without_record, *processors]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def get(part: str) -> Any:
    """Return a logger that says which part of kvmd speaks."""
    return _structlog().get_logger(part=part)


def _pretty(structlog: Any, output: TextIO) -> list[Any]:
    colours = output.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]


def _json(structlog: Any) -> list[Any]:
    render = structlog.processors.JSONRenderer(ensure_ascii=False)
    steps = [structlog.processors.format_exc_info, _in_reading_order, render]
    return [*steps, _with_priority] if os.environ.get("JOURNAL_STREAM") else steps


def _in_reading_order(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    first = {name: event[name] for name in ("timestamp", "level", "part", "event") if name in event}
    return first | event


def _with_priority(logger: Any, method: str, line: str) -> str:
    return f"<{_PRIORITIES.get(method, 6)}>{line}"
