"""Faults in spec files, for people and for CI: text, JSON, GitHub annotations, SARIF and JUnit."""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvmd.api.problem import Problem
from kvmd.render.style import PLAIN, Style
from kvmd.render.values import to_json

FORMATS = ("text", "json", "github", "sarif", "junit")
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_WIDEST = 160


def report(
    problems: Sequence[Problem],
    form: str,
    *,
    files: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    style: Style = PLAIN,
) -> str:
    """Render *problems* in one of FORMATS; *files* are all files read, *texts* their contents for excerpts."""
    if form == "text":
        return "\n".join(_text(problem, (texts or {}).get(problem.position.file), style) for problem in problems)
    makers: dict[str, Callable[[Sequence[Problem], Sequence[str]], str]] = {
        "json": _json,
        "github": _github,
        "sarif": _sarif,
        "junit": _junit,
    }
    return makers[form](problems, files)


def verdict(problems: Sequence[Problem], files: Sequence[str]) -> str:
    """Return one line: how many files, how many errors and warnings."""
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    parts = [_plural(len(files), "file")]
    parts.append(_plural(errors, "error") if errors else "valid")
    parts += [_plural(warnings, "warning")] if warnings else []
    return ", ".join(parts)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _text(problem: Problem, text: str | None, style: Style) -> str:
    position = problem.position
    kind = style.paint(f"{problem.severity}[{problem.rule}]", "red" if problem.severity == "error" else "yellow")
    lines = [f"{style.paint(str(position), 'bold')}: {kind} {problem.message}"]
    source = text.splitlines() if text is not None else []
    if 0 < position.line <= len(source) and source[position.line - 1].strip():
        number = f"{position.line:>4} | "
        excerpt = source[position.line - 1].replace("\t", " ")[:_WIDEST]
        caret = " " * (position.column - 1) + "^" if position.column <= _WIDEST else ""
        lines += [
            style.paint(number, "dim") + excerpt,
            style.paint(" " * 4 + " | ", "dim") + style.paint(caret, "red"),
        ]
    if problem.hint:
        lines.append(f"  {style.paint('hint:', 'cyan')} {problem.hint}")
    return "\n".join(lines) + "\n"


def _as_data(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.position.file,
        "line": problem.position.line,
        "column": problem.position.column,
        "severity": problem.severity,
        "rule": problem.rule,
        "message": problem.message,
        "hint": problem.hint,
    }


def _json(problems: Sequence[Problem], files: Sequence[str]) -> str:
    valid = not any(problem.severity == "error" for problem in problems)
    return to_json({"valid": valid, "files": list(files), "problems": [_as_data(problem) for problem in problems]})


def _github(problems: Sequence[Problem], files: Sequence[str]) -> str:
    def escaped(text: str, *, is_property: bool = False) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return text.replace(":", "%3A").replace(",", "%2C") if is_property else text

    lines = []
    for problem in problems:
        position = problem.position
        place = f"file={escaped(position.file, is_property=True)},line={position.line},col={position.column}"
        title = escaped(problem.rule, is_property=True)
        message = escaped(f"{problem.message}; {problem.hint}" if problem.hint else problem.message)
        lines.append(f"::{problem.severity} {place},title={title}::{message}\n")
    return "".join(lines)


def _relative(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _sarif(problems: Sequence[Problem], files: Sequence[str]) -> str:
    from kvmd import __version__

    rules = sorted({problem.rule for problem in problems})
    driver = {
        "name": "kvmd",
        "version": __version__,
        "informationUri": "https://kvmd.dev",
        "rules": [{"id": rule, "shortDescription": {"text": rule.replace("-", " ")}} for rule in rules],
    }
    results = [_sarif_result(problem, rules.index(problem.rule)) for problem in problems]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return to_json({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def _sarif_result(problem: Problem, rule_index: int) -> dict[str, Any]:
    position = problem.position
    path = _relative(position.file)
    # neither line nor column: an alert must stay the same one when lines are put above it
    fingerprint = hashlib.sha256(f"{path}\0{problem.rule}\0{problem.message}".encode()).hexdigest()[:32]
    text = f"{problem.message}; {problem.hint}" if problem.hint else problem.message
    return {
        "ruleId": problem.rule,
        "ruleIndex": rule_index,
        "level": problem.severity,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": path.replace(os.sep, "/")},
                    "region": {"startLine": position.line, "startColumn": position.column},
                }
            }
        ],
        "partialFingerprints": {"kvmd/v1": fingerprint},
    }


def _junit(problems: Sequence[Problem], files: Sequence[str]) -> str:
    names = list(dict.fromkeys([*files, *(problem.position.file for problem in problems)]))
    broken = {problem.position.file for problem in problems if problem.severity == "error"}
    suite = ElementTree.Element(
        "testsuite", name="kvmd validate", tests=str(len(names)), failures=str(len(broken)), errors="0"
    )
    for name in names:
        case = ElementTree.SubElement(suite, "testcase", classname="kvmd.validate", name=name)
        found = [problem for problem in problems if problem.position.file == name]
        errors = [problem for problem in found if problem.severity == "error"]
        if errors:
            failure = ElementTree.SubElement(case, "failure", message=errors[0].message, type=errors[0].rule)
            failure.text = "\n".join(str(problem) for problem in errors)
        warnings = [str(problem) for problem in found if problem.severity != "error"]
        if warnings:
            ElementTree.SubElement(case, "system-out").text = "\n".join(warnings)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
