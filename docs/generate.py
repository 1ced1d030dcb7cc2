#!/usr/bin/env python3
"""Write the generated parts of the documentation: tables of the language and of what tests show, help of commands.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Run: python docs/generate.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

DOCS = Path(__file__).resolve().parent
FILES = (DOCS / "language.md", DOCS / "commands.md", DOCS / "fields.md")
PART = re.compile(r"(<!-- generated: ([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests")]


def part(name: str) -> str:
    """Make one generated part."""
    if name == "metadata":
        from kvmd.render.reference import metadata_reference

        return f"\n{metadata_reference()}\n"
    if name == "kinds":
        from kvmd.kinds import CONTROLLERS
        from kvmd.render.reference import Entry, kinds_reference

        kinds = {kind: Entry(item.Spec, item.PLURAL, item.SHORT) for kind, item in CONTROLLERS.items()}
        return f"\n{kinds_reference(kinds)}\n"
    if name == "fields":
        return f"\n{fields()}\n"
    if name.startswith("help"):
        return f"```text\n{help_of(name.removeprefix('help').strip())}```\n"
    raise SystemExit(f"docs/generate.py knows no part called '{name}'")


def fields() -> str:
    """A table for each kind: every leaf, how a change of it lands, and the test that shows it."""
    from shown import NOT_SHOWN, shown

    from kvmd.kinds import CONTROLLERS
    from kvmd.render.reference import shown_reference

    tests = {field: [_link(test) for test in found] for field, found in shown().items()}
    for (kind, leaf), (case, why) in NOT_SHOWN.items():
        tests[kind, leaf] = [f"planning case [{case}](../tests/cases/{kind}/{case}): {why}"]
    specs = {kind: item.Spec for kind, item in CONTROLLERS.items()}
    return shown_reference(specs, lambda kind, leaf: ", ".join(tests.get((kind, leaf), [])))


def _link(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[{name}](../tests/{file})"


def help_of(command: str) -> str:
    """The help of ``kvmd`` or of one of its commands, 100 columns wide."""
    from kvmd.cli.main import cli

    wide = {"terminal_width": 100, "max_content_width": 100}
    top = click.Context(cli, info_name="kvmd", **wide, **cli.context_settings)
    if not command:
        return f"{cli.get_help(top)}\n"
    found = cli.get_command(top, command)
    if found is None:
        raise SystemExit(f"kvmd has no command '{command}'")
    inner = click.Context(found, parent=top, info_name=command, **wide)
    return f"{found.get_help(inner)}\n"


def generated(text: str) -> str:
    """The same text with every generated part made anew."""
    return PART.sub(lambda match: match[1] + part(match[2]) + match[4], text)


def main() -> int:
    """Rewrite what changed, and say so."""
    for file in FILES:
        before = file.read_text(encoding="utf-8")
        after = generated(before)
        if after != before:
            file.write_text(after, encoding="utf-8")
            print(f"{file.relative_to(DOCS.parent)} is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
