"""Reads ``/etc/kvmd/kvmd.yaml``: the same YAML as specs, and every fault at its place."""

from __future__ import annotations

import re

from kvmd.api.problem import Problem
from kvmd.errors import SettingsError
from kvmd.settings import DEFAULT_FILE, Settings, Source
from kvmd.sources.decode import validate
from kvmd.sources.document import Document, Path, compose

_NAMED_KEY = re.compile(r"cannot be used: (\w+)\.(\w+)")


def load_settings(path: str | None, explicit: bool) -> Settings:
    """Read the settings; raise SettingsError with every fault. Only an *explicit* file has to be there."""
    file = path or DEFAULT_FILE
    limits = Source()
    try:
        with open(file, "rb") as stream:
            text = stream.read(limits.max_file_bytes + 1)
    except FileNotFoundError:
        if not explicit:
            return Settings()
        hint = "create it, or leave --config out to run with the defaults"
        raise SettingsError(f"{file}: the settings file does not exist", hint=hint) from None
    except OSError as error:
        raise SettingsError(f"{file}: the settings cannot be read: {error.strerror}", hint="mend it") from None
    documents, problems = compose(text, file, limits)
    if not problems and not documents:
        return Settings()
    for extra in documents[1:]:
        hint = "keep one and remove the line ---"
        problems.append(Problem(extra.position, "too-many", "the settings are one document", hint))
    settings = None
    if documents:
        found: list[Problem] = []
        settings = validate(Settings, documents[0], (), found)
        problems.extend(_at_key(problem, documents[0]) for problem in found)
    if settings is None or problems:
        texts = "\n".join(str(problem) for problem in sorted(problems))
        raise SettingsError(texts, hint="docs/operations.md has every key")
    return settings


def _at_key(problem: Problem, document: Document) -> Problem:
    """Give a fault between two values the place of the first that it names."""
    match = _NAMED_KEY.search(problem.message)
    if match is None or problem.position != document.position:
        return problem
    path: Path = (match[1], match[2])
    message = problem.message.partition("cannot be used: ")[2]
    return Problem(document.place(path), problem.rule, message, problem.hint)
