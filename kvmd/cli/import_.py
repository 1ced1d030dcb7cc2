"""``kvmd import``: what is on the host already, as specs that change nothing."""

from __future__ import annotations

import click

from kvmd.cli.context import EXIT_FAILED, EXIT_NOT_FOUND, Context, Failure, data, message, pass_context, the_kind


@click.command("import")
@click.argument("words", nargs=-1, metavar="[NAME | KIND/NAME | KIND]")
@click.option("--all", "everything", is_flag=True, help="Every object that is not kvmd's.")
@click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")
@pass_context
def import_command(context: Context, words: tuple[str, ...], everything: bool, connect: str | None) -> int:
    """Print specs of what others made; each adopts its object, restarts nothing and plans to no change.

    What a spec cannot say stays as it is on the host and is named on stderr.
    """
    if everything == bool(words) or len(words) > 1:
        raise click.UsageError("Name one object, or say --all.")
    kind, name = _what(words[0]) if words else (None, None)
    settings = context.settings(libvirt__uri=connect)
    from kvmd.daemon import Session
    from kvmd.daemon.importing import import_objects
    from kvmd.render.values import sized, to_yaml_documents

    with Session(settings) as session:
        imported, failures = import_objects(session, kind, name)
    if not imported and not failures and name is not None:
        raise Failure(
            EXIT_NOT_FOUND, f"nothing on this host is called {name} and is not kvmd's", hint="virsh list --all"
        )
    if imported:
        data(to_yaml_documents([sized(item.document) for item in imported]))
    for item in imported:
        for unsaid in item.unsaid:
            message(f"{item.ref}: not said, and left as it is: {unsaid}")
    for failure in failures:
        message(f"not imported: {failure}")
    return EXIT_FAILED if failures and not everything else 0


def _what(word: str) -> tuple[str | None, str | None]:
    kind, separator, name = word.partition("/")
    return (the_kind(kind), name or None) if separator else (None, word)
