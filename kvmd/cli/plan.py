"""``kvmd plan``, ``diff`` and ``apply``: the planner that the daemon uses, in this process."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kvmd.cli.context import (
    EXIT_FAILED,
    EXIT_REFUSED,
    EXIT_TIMEOUT,
    Context,
    Failure,
    complain,
    confirm,
    data,
    message,
    pass_context,
    show_problems,
    style_of,
)
from kvmd.errors import KvmdError

if TYPE_CHECKING:
    from kvmd.api.problem import Problem
    from kvmd.daemon import Session
    from kvmd.engine.facade import Event
    from kvmd.plan.model import Plan
    from kvmd.settings import Settings

_TROUBLE = 2
_specs = click.option("--specs", metavar="DIR", help="Directory of the specs.")
_connect = click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")


@click.command("plan")
@_specs
@_connect
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--detailed-exitcode", is_flag=True, help="0 no changes, 1 error, 2 changes.")
@click.option("--out", metavar="FILE", help="Write the plan to FILE, for kvmd apply FILE.")
@pass_context
def plan_command(
    context: Context, specs: str | None, connect: str | None, output: str, detailed_exitcode: bool, out: str | None
) -> int:
    """Show what would be done, with the impact of each step; do nothing."""
    settings = context.settings(source__path=specs, libvirt__uri=connect)
    from kvmd.daemon import Session

    with Session(settings) as session:
        plan, problems = session.plan(), session.problems()
        digest = str(session.source().get("digest", ""))
    if output == "json":
        from kvmd.render.values import to_json

        data(to_json(plan.as_data()))
    else:
        _show(plan)
    if out is not None:
        _save(out, plan, settings, digest)
    if _is_faulty(problems):
        return EXIT_FAILED
    return 2 if detailed_exitcode and not plan.empty else 0


@click.command("diff")
@_specs
@_connect
@pass_context
def diff_command(context: Context, specs: str | None, connect: str | None) -> int:
    """Show how the host differs from the specs: 0 same, 1 different, 2 trouble."""
    try:
        settings = context.settings(source__path=specs, libvirt__uri=connect)
        from kvmd.daemon import Session
        from kvmd.render.diff import diff_text

        with Session(settings) as session:
            plan, problems = session.plan(), session.problems()
    except KvmdError as error:
        complain(error)
        return _TROUBLE
    except (OSError, ImportError) as error:
        complain(KvmdError(str(error)))
        return _TROUBLE
    text = diff_text(plan, style_of(sys.stdout))
    if text:
        data(text)
    if _is_faulty(problems):
        return _TROUBLE
    return int(bool(text))


@click.command("apply")
@click.argument("planfile", required=False, metavar="[PLANFILE]")
@_specs
@_connect
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--no-prune", is_flag=True, help="Remove nothing.")
@click.option("--timeout", metavar="TIME", default="5m", show_default=True, help="Give up after that long.")
@pass_context
def apply_command(context: Context, /, planfile: str | None, timeout: str, **flags: Any) -> int:
    """Plan, show the plan, ask, and act.

    While the daemon runs, it acts; this command hands it the confirmation and follows.
    """
    seconds = parse_timeout(timeout)
    saved = _load(planfile) if planfile is not None else None
    if saved is not None and flags["specs"] is not None:
        raise click.UsageError("A plan file names its specs; leave --specs out.")
    specs = saved["specs"] if saved is not None else flags["specs"]
    settings = context.settings(source__path=specs, libvirt__uri=flags["connect"])
    from kvmd.daemon import Session, daemon_holds_lock

    with Session(settings) as session:
        plan, problems = session.plan(), session.problems()
        _show(plan)
        faulty = _is_faulty(problems)
        digests = (session.source().get("digest"), _digest(plan))
        if saved is not None and (saved.get("sourceDigest"), saved["digest"]) != digests:
            raise Failure(
                EXIT_REFUSED,
                f"{planfile} is stale: the specs or the host have changed since it was made",
                hint=f"kvmd plan --out {planfile}",
            )
        prune = not flags["no_prune"]
        if plan.empty:
            return int(faulty or _unfinished(plan))
        if not prune and any(step.action == "remove" for step in plan.steps):
            message("--no-prune: the removals above are left out.")
        if not confirm("Do this?", yes=flags["yes"]):
            message("Nothing was done.")
            return EXIT_FAILED
        if daemon_holds_lock(settings):
            from kvmd.cli.follow import hand_over

            digest = str(session.source().get("digest", ""))
            return max(int(faulty), hand_over(context.client(), settings, digest, prune, seconds))
        return max(int(faulty), _act(session, plan, prune, seconds))


def _act(session: Session, plan: Plan, prune: bool, seconds: float) -> int:
    from kvmd.cli.progress import progress

    with progress("applying …") as shown:

        def tell(event: Event) -> None:
            shown.event(event.as_data())

        started = time.monotonic()
        left = session.apply(plan, prune=prune, progress=tell, timeout=seconds)
    late = time.monotonic() - started >= seconds
    if late and (not left.empty or _unfinished(left)):
        raise Failure(EXIT_TIMEOUT, f"not finished after {seconds:g} s", hint="kvmd plan shows what is left")
    if not left.empty:
        message("Not everything could be done; this is left:")
        _show(left)
        return EXIT_FAILED
    if left.holds:
        _show(left)
    if _unfinished(left):
        return EXIT_FAILED
    waits = sum(len(item.pending) for item in left.objects.values())
    if left.holds or waits:
        message(f"Done, but for {len(left.holds)} held removals and {waits} changes that wait for a restart.")
    else:
        message("Done. The host agrees with the specs.")
    return 0


def _unfinished(plan: Plan) -> bool:
    """Name the objects that are not ready although nothing more can be done."""
    waiting = [item for item in plan.objects.values() if not item.ready and item.resource is not None]
    for item in waiting:
        reasons = [
            f"{condition.type}: {condition.message or condition.reason}"
            for condition in item.conditions
            if condition.status != (condition.type == "Ready")
        ]
        message(f"{item.ref} is not ready{f' ({reasons[0]})' if reasons else ''}")
    return bool(waiting)


def _show(plan: Plan) -> None:
    from kvmd.render.plan_text import plan_text

    data(plan_text(plan.as_data(), style_of(sys.stdout)))


def _is_faulty(problems: tuple[Problem, ...]) -> bool:
    """Show the faults of the spec files; True where any is an error."""
    if problems:
        show_problems(problems)
    return any(problem.severity == "error" for problem in problems)


def _digest(plan: Plan) -> str:
    from kvmd.api.resource import hash_of
    from kvmd.render.values import plain_data

    return hash_of(plain_data(plan.as_data()["steps"]))


def _save(file: str, plan: Plan, settings: Settings, digest: str) -> None:
    from kvmd.render.values import to_json

    content = {
        "apiVersion": "kvmd.dev/v1alpha1",
        "kind": "PlanFile",
        "specs": os.path.abspath(settings.source.path),
        "sourceDigest": digest,
        "digest": _digest(plan),
        "plan": plan.as_data(),
    }
    # a plan quotes specs, and a spec may hold what not everybody shall read
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(opened, "w", encoding="utf-8") as stream:
        stream.write(to_json(content))
    message(f"The plan is in {file}; carry it out with: kvmd apply {file}")


def _load(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except FileNotFoundError:
        raise Failure(3, f"there is no plan file {file}", hint=f"kvmd plan --out {file}") from None
    except (ValueError, OSError) as error:
        raise Failure(EXIT_FAILED, f"{file} is no plan file: {error}", hint=f"kvmd plan --out {file}") from None
    if not isinstance(content, dict) or content.get("kind") != "PlanFile" or not {"specs", "digest"} <= set(content):
        raise Failure(EXIT_FAILED, f"{file} is no plan file", hint=f"kvmd plan --out {file}")
    return content


def parse_timeout(text: str) -> float:
    """Read a duration of the command line: 30s, 5m, or a number of seconds."""
    from kvmd.settings import parse_duration

    try:
        return float(text) if text.replace(".", "", 1).isdecimal() else float(parse_duration(text))
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from None
