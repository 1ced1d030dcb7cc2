"""``kvmd get``, ``describe``, ``events``, ``wait`` and ``topology``: what the daemon knows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmd.cli.context import (
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    Context,
    Failure,
    data,
    one_reference,
    pass_context,
    style_of,
    the_kind,
    the_ref,
)

if TYPE_CHECKING:
    from kvmd.cli.client import Client

_POLL_SECONDS = 0.5
_ALL = ("all", "objects")


@click.command("get")
@click.argument("words", nargs=-1, metavar="[KIND [NAME…]|KIND/NAME…]")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    show_default=True,
)
@click.option("-l", "--selector", metavar="KEY=VALUE", help="Only objects with these labels (comma: all of them).")
@click.option("-w", "--watch", is_flag=True, help="Go on, and print what changes.")
@click.option("--no-headers", is_flag=True, help="Leave the headings out.")
@pass_context
def get_command(
    context: Context, words: tuple[str, ...], output: str, selector: str | None, watch: bool, no_headers: bool
) -> int:
    """List objects: all, those of a kind, or some by name."""
    client = context.client()
    wanted = _wanted(words)
    labels = _labels(selector)

    def select() -> list[dict[str, Any]]:
        return _select(client.objects(), wanted, labels)

    objects = select()
    missing = _missing(wanted, objects)
    data_of = _list if len(wanted.get("refs", ())) != 1 else _single
    if objects or output in ("json", "yaml"):
        data(_shown(objects, output, data_of, headings=not no_headers))
    elif not missing:
        click.echo("No objects found.", err=True)
    _tell_of_source(client)
    if missing and not watch:
        raise Failure(EXIT_NOT_FOUND, f"there is no {missing[0]}", hint="kvmd get lists what there is")
    while watch:
        time.sleep(_POLL_SECONDS)
        before, objects = objects, select()
        _print_changes(before, objects, output)
    return 0


def _tell_of_source(client: Client) -> None:
    """What is shown may be held, because the specs cannot be read: say so beside it."""
    source = client.get("/api/v1/source")
    if not source.get("complete", True):
        click.echo(f"warning: {source.get('reason')}; objects stay as they are, nothing is removed", err=True)
    problems = source.get("problems") or []
    if problems:
        where = source.get("path")
        click.echo(
            f"warning: {len(problems)} faults in {where}, the first: {problems[0]}; kvmd validate {where}", err=True
        )


def _wanted(words: Sequence[str]) -> dict[str, Any]:
    """Understand ``KIND``, ``KIND NAME…`` and ``KIND/NAME…``."""
    if not words or (len(words) == 1 and words[0].lower() in _ALL):
        return {}
    if any("/" in word for word in words):
        return {"refs": [the_ref((word,)) for word in words]}
    kinds = [the_kind(word) for word in words[0].split(",")]
    if len(words) == 1:
        return {"kinds": kinds}
    if len(kinds) > 1:
        raise click.UsageError("Names go with one kind; write KIND/NAME for several.")
    return {"refs": [the_ref((kinds[0], name)) for name in words[1:]]}


def _labels(selector: str | None) -> dict[str, str]:
    if not selector:
        return {}
    pairs = [part.partition("=") for part in selector.split(",")]
    if any(not equals for _, equals, _ in pairs):
        raise click.UsageError(f"'{selector}' is no selector; write KEY=VALUE.")
    return {key.strip(): value.lstrip("=").strip() for key, _, value in pairs}


def _select(objects: list[dict[str, Any]], wanted: dict[str, Any], labels: dict[str, str]) -> list[dict[str, Any]]:
    found = [
        item
        for item in objects
        if ("kinds" not in wanted or item["kind"] in wanted["kinds"])
        and ("refs" not in wanted or (item["kind"], item["metadata"]["name"]) in wanted["refs"])
        and labels.items() <= (item["metadata"].get("labels") or {}).items()
    ]
    return sorted(found, key=lambda item: (item["kind"], item["metadata"]["name"]))


def _missing(wanted: dict[str, Any], objects: list[dict[str, Any]]) -> list[str]:
    have = {(item["kind"], item["metadata"]["name"]) for item in objects}
    return [str(ref) for ref in wanted.get("refs", ()) if ref not in have]


def _list(objects: list[dict[str, Any]]) -> Any:
    from kvmd.render.values import listing

    return listing(objects)


def _single(objects: list[dict[str, Any]]) -> Any:
    return objects[0] if objects else _list(objects)


def _shown(objects: list[dict[str, Any]], output: str, data_of: Any, *, headings: bool) -> str:
    from kvmd.render import tables
    from kvmd.render.values import to_json, to_yaml

    if output == "json":
        return to_json(data_of(objects))
    if output == "yaml":
        return to_yaml(data_of(objects))
    if output == "name":
        return tables.names(objects)
    return tables.objects_table(objects, wide=output == "wide", headings=headings, style=style_of(sys.stdout))


def _print_changes(before: list[dict[str, Any]], after: list[dict[str, Any]], output: str) -> None:
    from kvmd.render import tables
    from kvmd.render.values import to_json, to_yaml

    old = {(item["kind"], item["metadata"]["name"]): item for item in before}
    changed = [item for item in after if old.get((item["kind"], item["metadata"]["name"])) != item]
    names = {(item["kind"], item["metadata"]["name"]) for item in after}
    if output in ("json", "yaml"):
        for item in changed:
            data(to_json(item) if output == "json" else "---\n" + to_yaml(item))
        return
    if output == "name":
        data(tables.names(changed))
    else:
        wide = output == "wide"
        earlier, rows = tables.object_rows(before, wide=wide), tables.object_rows(changed, wide=wide)
        for reference, row in rows.items():
            if earlier.get(reference) != row:
                data(row)
    for kind, name in old.keys() - names:
        data(f"{kind}/{name}   removed")


@click.command("describe")
@one_reference
@pass_context
def describe_command(context: Context, words: tuple[str, ...]) -> int:
    """Show all that is known of one object."""
    from kvmd.render.describe import describe

    ref = the_ref(words)
    client = context.client()
    item = client.object(ref)
    events = [event for event in client.events() if event["object"] == str(ref)]
    data(describe(item, events, time.time(), style_of(sys.stdout)))
    return 0


@click.command("events")
@click.argument("words", nargs=-1, metavar="[KIND/NAME]")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("-w", "--watch", is_flag=True, help="Go on, and print what happens.")
@pass_context
def events_command(context: Context, words: tuple[str, ...], output: str, watch: bool) -> int:
    """Show what happened, to everything or to one object."""
    from kvmd.render.tables import event_line, events_table
    from kvmd.render.values import listing, to_json

    about = str(the_ref(words)) if words else None
    client = context.client()
    style = style_of(sys.stdout)
    every = client.events()
    events = [event for event in every if about in (None, event["object"])]
    if output == "json" and not watch:
        data(to_json(listing(events)))
    elif output == "table" and events:
        data(events_table(events, time.time(), style=style))
    elif not events:
        click.echo("No events.", err=True)
    after = max((event["sequence"] for event in every), default=0)
    while watch:
        time.sleep(_POLL_SECONDS)
        for event in client.events(after):
            after = max(after, event["sequence"])
            if about in (None, event["object"]):
                data(to_json(event) if output == "json" else event_line(event, style))
    return 0


@click.command("wait")
@click.argument("words", nargs=-1, metavar="[KIND/NAME…]")
@click.option(
    "--for",
    "goal",
    default="condition=Ready",
    show_default=True,
    metavar="condition=TYPE[=True|False]|delete",
    help="What to wait for.",
)
@click.option("--timeout", metavar="TIME", default="60s", show_default=True, help="Give up after that long.")
@pass_context
def wait_command(context: Context, words: tuple[str, ...], goal: str, timeout: str) -> int:
    """Wait until objects (all, where none is named) have a condition, or are gone."""
    from kvmd.cli.plan import parse_timeout

    condition, value = _goal(goal)
    deadline = time.monotonic() + parse_timeout(timeout)
    wanted = _wanted(words)
    client = context.client()
    while True:
        objects = _select(client.objects(), wanted, {})
        missing = _missing(wanted, objects)
        unmet = _unmet(objects, missing, condition, value)
        if not objects and not wanted and condition:
            unmet = ["there are no objects yet"]
        if not unmet:
            return 0
        if time.monotonic() >= deadline:
            # an object whose file was just saved may still come: only now is it missing
            code = EXIT_NOT_FOUND if missing and condition else EXIT_TIMEOUT
            raise Failure(
                code, f"after {timeout} still unmet: {'; '.join(unmet)}", hint="kvmd describe KIND/NAME says why"
            )
        time.sleep(min(_POLL_SECONDS, max(0.01, deadline - time.monotonic())))


def _goal(goal: str) -> tuple[str, str]:
    """Return the condition and its value; no condition means deletion."""
    if goal == "delete":
        return "", ""
    word, _, rest = goal.partition("=")
    condition, _, value = rest.partition("=")
    if word != "condition" or not condition or value not in ("", "True", "False"):
        raise click.UsageError(f"--for={goal}: write condition=Ready, condition=Blocked=False or delete.")
    from kvmd.api.status import CONDITION_TYPES
    from kvmd.render.vocabulary import suggestion

    known = {name.lower(): name for name in CONDITION_TYPES}
    if condition.lower() not in known:
        near = suggestion(condition, CONDITION_TYPES) or f"there are {', '.join(CONDITION_TYPES)}."
        raise click.UsageError(f"There is no condition '{condition}'; {near}")
    return known[condition.lower()], value or "True"


def _unmet(objects: list[dict[str, Any]], missing: list[str], condition: str, value: str) -> list[str]:
    from kvmd.render.tables import condition_of, is_true

    if not condition:
        return [f"{item['kind']}/{item['metadata']['name']} is still there" for item in objects]
    texts = [f"{reference} does not exist" for reference in missing]
    for item in objects:
        if is_true(item, condition) == (value == "True"):
            continue
        found = condition_of(item, condition) or {}
        why = found.get("message") or found.get("reason") or ""
        reference = f"{item['kind']}/{item['metadata']['name']}"
        texts.append(f"{reference} {condition}={value}{f' ({why})' if why else ''}")
    return texts


@click.command("topology")
@click.argument("vm", required=False)
@click.option("-o", "--output", type=click.Choice(["tree", "json", "dot"]), default="tree", show_default=True)
@pass_context
def topology_command(context: Context, vm: str | None, output: str) -> int:
    """Draw the packet path: guest NIC, TAP, bridge, VLAN or VXLAN, physical NIC, outside."""
    from kvmd.render.topology import topology_data, topology_dot, topology_tree
    from kvmd.render.values import listing, to_json

    name = the_ref((vm,), "VirtualMachine").name if vm else None
    machines = topology_data(context.client().objects("VirtualMachine"), name)
    if name is not None and not machines:
        raise Failure(EXIT_NOT_FOUND, f"there is no VirtualMachine/{name}", hint="kvmd get vm lists what there is")
    if output == "json":
        data(to_json(listing(machines)))
    elif output == "dot":
        data(topology_dot(machines))
    else:
        data(topology_tree(machines, style_of(sys.stdout)))
    return 0
