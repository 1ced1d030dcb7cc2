"""``kvmd validate``: every fault of every file at once, without libvirt and without a host."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from kvmd.cli.context import EXIT_NOT_FOUND, Context, Failure, data, message, pass_context, style_of

if TYPE_CHECKING:
    from kvmd.api.problem import Problem
    from kvmd.api.resource import Claim, Ref, Resource
    from kvmd.settings import Source


@click.command("validate")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "github", "sarif", "junit"]),
    default="text",
    show_default=True,
)
@pass_context
def validate_command(context: Context, paths: tuple[str, ...], output: str) -> int:
    """Check spec files and directories offline; PATH - reads standard input."""
    from kvmd.render.problems import report, verdict

    limits = context.settings().source
    faults: list[Problem] = []
    texts = dict(_read(paths, limits, faults))
    problems = sorted([*faults, *check(texts, limits)])
    style = style_of(sys.stdout)
    shown = {file: text.decode("utf-8", "replace") for file, text in texts.items()}
    text = report(problems, output, files=list(texts), texts=shown, style=style)
    if text:
        data(text)
    message(verdict(problems, list(texts)))
    return int(any(problem.severity == "error" for problem in problems))


def check(texts: dict[str, bytes], limits: Source) -> list[Problem]:
    """Return every fault of the given files, alone and together."""
    from kvmd.kinds import CONTROLLERS
    from kvmd.sources.decode import decode_file

    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    problems: list[Problem] = []
    resources: list[Resource] = []
    for file, text in texts.items():
        decoded = decode_file(text, file, limits, specs)
        problems += decoded.problems
        resources += decoded.resources
    return [*problems, *_duplicates(resources), *_dangling(resources), *_claimed_twice(resources)]


def _duplicates(resources: Sequence[Resource]) -> Iterator[Problem]:
    from kvmd.api.problem import Problem

    first: dict[Ref, Resource] = {}
    for resource in resources:
        other = first.setdefault(resource.ref, resource)
        if other is not resource:
            text = f"{resource.ref} is already declared at {other.position}"
            yield Problem(resource.position, "duplicate-object", text, "rename one of the two, or take it out")


def _dangling(resources: Sequence[Resource]) -> Iterator[Problem]:
    """Warn of references that no file answers: the host may hold the object, or not."""
    from kvmd.api.problem import Problem
    from kvmd.kinds import CONTROLLERS

    known = {resource.ref for resource in resources}
    for resource in resources:
        for reference in CONTROLLERS[resource.ref.kind].references(resource.ref, resource.spec):
            if reference.perhaps:
                continue
            if reference.target not in known and reference.target.kind in CONTROLLERS:
                text = f"{resource.ref} refers to {reference.target}, which these files do not declare"
                hint = "that is fine if the host has it already; else the object waits for it"
                yield Problem(resource.position, "dangling-reference", text, hint, "warning")


def _claimed_twice(resources: Sequence[Resource]) -> Iterator[Problem]:
    from kvmd.api.problem import Problem
    from kvmd.kinds import CONTROLLERS

    holders: dict[Claim, Resource] = {}
    for resource in resources:
        for claim in CONTROLLERS[resource.ref.kind].claims(resource.ref, resource.spec):
            other = holders.setdefault(claim, resource)
            if other.ref != resource.ref:
                text = f"{resource.ref} and {other.ref} ({other.position}) both claim {claim}"
                hint = "the present holder keeps it; the other one will be in Conflict"
                yield Problem(resource.position, "conflict", text, hint, "warning")


def _read(paths: Sequence[str], limits: Source, faults: list[Problem]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        if path == "-":
            yield "<stdin>", sys.stdin.buffer.read()
        elif os.path.isdir(path):
            yield from _tree(path, limits, faults)
        else:
            yield path, _file(path)


def _tree(root: str, limits: Source, faults: list[Problem]) -> Iterator[tuple[str, bytes]]:
    """Find the files that the daemon would read, and what it would complain of."""
    from kvmd.api.problem import Position, Problem
    from kvmd.sources.watch import walk

    tree = walk(root.rstrip("/") or root, os.path.realpath(root), limits.max_files)
    faults += [Problem(Position(path), "unreadable", reason) for path, reason in tree.faults.items()]
    if not tree.files and not tree.faults:
        raise Failure(EXIT_NOT_FOUND, f"{root} holds no .yaml files", hint="name the directory of your specs")
    for path in sorted(tree.files):
        yield path, _file(path)


def _file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise Failure(
            EXIT_NOT_FOUND, f"there is no file {path}", hint="kvmd validate takes files and directories"
        ) from None
