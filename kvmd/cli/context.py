"""What all commands share: settings, output, errors and their exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from kvmd.errors import KvmdError, Refused

if TYPE_CHECKING:
    from kvmd.api.problem import Problem
    from kvmd.api.resource import Ref
    from kvmd.cli.client import Client
    from kvmd.render.style import Style
    from kvmd.settings import Settings

EXIT_FAILED = 1
EXIT_NOT_FOUND = 3
EXIT_UNREACHABLE = 4
EXIT_TIMEOUT = 5
EXIT_REFUSED = 6
EXIT_USAGE = 64

Function = TypeVar("Function", bound=Callable[..., Any])


class Failure(KvmdError):
    """A command ends with that exit code."""

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def code_of(error: KvmdError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, Failure):
        return error.code
    return EXIT_REFUSED if isinstance(error, Refused) else EXIT_FAILED


@dataclass(frozen=True, slots=True)
class Context:
    """The global options."""

    config: str | None

    def settings(self, **flags: str | None) -> Settings:
        """Read the settings file and let *flags* override it: ``source__path`` is ``source.path``."""
        from kvmd.settings import settings_from
        from kvmd.sources.settings_file import load_settings

        settings = load_settings(self.config, explicit=self.config is not None)
        given = {name: value for name, value in flags.items() if value is not None}
        if not given:
            return settings
        data = settings.model_dump(by_alias=True)
        for name, value in given.items():
            section, _, key = name.partition("__")
            data[section][key] = value
        return settings_from(data, "the command line")

    def client(self) -> Client:
        """The daemon of the settings, over its UNIX socket."""
        from kvmd.cli.client import Client

        return Client(self.settings().socket)


pass_context = click.pass_obj


def style_of(stream: TextIO) -> Style:
    """What *stream* can show."""
    from kvmd.render.style import Style

    terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    unicode = terminal and (stream.encoding or "").lower().replace("-", "") == "utf8"
    return Style(colour=terminal and not os.environ.get("NO_COLOR"), unicode=unicode)


def data(text: str) -> None:
    """Write what was asked for, to stdout."""
    click.echo(text, nl=not text.endswith("\n") and bool(text))


def message(text: str) -> None:
    """Tell a person something, on stderr."""
    click.echo(text, err=True)


def complain(error: KvmdError) -> None:
    """Say what went wrong and what to do."""
    style = style_of(sys.stderr)
    message(f"{style.paint('error:', 'red', 'bold')} {error.message}")
    if error.hint:
        message(f"{style.paint('hint:', 'cyan')}  {error.hint}")


def show_problems(problems: tuple[Problem, ...]) -> None:
    """Show faults of spec files on stderr, with excerpts where the files can be read."""
    from kvmd.render.problems import report

    texts = {}
    for file in {problem.position.file for problem in problems}:
        try:
            with open(file, encoding="utf-8", errors="replace") as opened:
                texts[file] = opened.read()
        except OSError:
            continue
    message(report(problems, "text", texts=texts, style=style_of(sys.stderr)).rstrip("\n"))


def confirm(question: str, *, yes: bool) -> bool:
    """Ask; without a terminal nobody can answer, so ``--yes`` must have."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on; add --yes to go ahead.")
    return click.confirm(question, err=True)


def the_kind(word: str) -> str:
    """The kind that *word* names, or exit 64 with a suggestion."""
    from kvmd.render import vocabulary

    kind = vocabulary.kind_of(word)
    if kind is None:
        suggestion = vocabulary.suggestion(word)
        names = ", ".join(vocabulary.kind_names())
        raise click.UsageError(f"There is no kind '{word}'; {suggestion or f'the kinds are {names}.'}")
    return kind


def the_ref(words: tuple[str, ...], default_kind: str = "") -> Ref:
    """Read ``KIND/NAME``, ``KIND NAME`` or, where a kind goes without saying, ``NAME``."""
    from kvmd.api.resource import Ref

    if len(words) == 2 and "/" not in words[0]:
        return Ref(the_kind(words[0]), words[1])
    if len(words) == 1 and "/" in words[0]:
        word, _, name = words[0].partition("/")
        if name:
            return Ref(the_kind(word), name)
    if len(words) == 1 and default_kind and "/" not in words[0]:
        return Ref(default_kind, words[0])
    raise click.UsageError(f"'{' '.join(words)}' names no object; write KIND/NAME, e.g. vm/web.")


def one_reference(function: Function) -> Function:
    """Give a command the argument ``KIND/NAME`` (or ``KIND NAME``)."""
    return click.argument("words", nargs=-1, required=True, metavar="KIND/NAME")(function)
