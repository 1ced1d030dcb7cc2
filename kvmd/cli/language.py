"""``kvmd explain``, ``schema`` and ``render``: the language, from its one schema."""

from __future__ import annotations

import sys

import click

from kvmd.cli.context import (
    EXIT_NOT_FOUND,
    Context,
    Failure,
    data,
    one_reference,
    pass_context,
    style_of,
    the_kind,
    the_ref,
)


@click.command("explain")
@click.argument("what", metavar="KIND[.FIELD]", required=False)
@click.option("--recursive", is_flag=True, help="Show every field below.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explain_command(what: str | None, recursive: bool, output: str) -> int:
    """Explain a kind or a field, e.g. vm.memory."""
    from kvmd.kinds import CONTROLLERS
    from kvmd.render import vocabulary
    from kvmd.render.explain import UnknownField, explain, explain_data
    from kvmd.render.values import to_json

    if what is None:
        data("\n".join(vocabulary.kind_names()) + "\n")
        return 0
    word, _, field = what.partition(".")
    kind = the_kind(word)
    spec = CONTROLLERS[kind].Spec
    try:
        if output == "json":
            data(to_json(explain_data(spec, field)))
        else:
            data(explain(kind, spec, field, recursive=recursive, style=style_of(sys.stdout)))
    except UnknownField as error:
        near = (
            f"did you mean kvmd explain {word}.{error.near.removeprefix('spec.').replace('[]', '')}?"
            if error.near
            else ""
        )
        raise Failure(
            EXIT_NOT_FOUND, f"{kind} has no field '{field}'", hint=near or f"kvmd explain {word} --recursive"
        ) from None
    return 0


@click.command("schema")
@click.argument("kind", required=False)
@pass_context
def schema_command(context: Context, kind: str | None) -> int:
    """Print the JSON Schema (draft 2020-12) of every kind, or of one."""
    from kvmd.kinds import CONTROLLERS
    from kvmd.render.json_schema import json_schema
    from kvmd.render.values import to_json

    kinds = [the_kind(kind)] if kind else list(CONTROLLERS)
    data(to_json(json_schema({name: CONTROLLERS[name].Spec for name in kinds})))
    return 0


@click.command("render")
@one_reference
@click.option("--specs", metavar="DIR", help="Directory of the specs.")
@pass_context
def render_command(context: Context, words: tuple[str, ...], specs: str | None) -> int:
    """Print the XML or the netlink attributes that an object's spec becomes."""
    ref = the_ref(words)
    settings = context.settings(source__path=specs)
    from kvmd.daemon import render_object

    data(render_object(settings, ref))
    return 0
