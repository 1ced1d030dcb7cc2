"""``kvmd console``: the guest's serial console."""

from __future__ import annotations

import sys

import click

from kvmd.cli.context import EXIT_NOT_FOUND, EXIT_UNREACHABLE, Context, Failure, message, pass_context, the_ref


@click.command("console")
@click.argument("words", nargs=-1, required=True, metavar="VM")
@click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")
@pass_context
def console_command(context: Context, words: tuple[str, ...], connect: str | None) -> int:
    """Attach to the console of a virtual machine; leave with ^].

    A console that goes to a file is followed instead, until ^C.
    """
    ref = the_ref(words, "VirtualMachine")
    settings = context.settings(libvirt__uri=connect)
    name = ref.name
    try:
        item = context.client().object(ref)
        name = item.get("spec", {}).get("nameOnHost") or name
    except Failure as failure:
        # a console is most wanted when something is wrong: it works without the daemon
        if failure.code not in (EXIT_UNREACHABLE, EXIT_NOT_FOUND):
            raise
    from kvmd.host.libvirtd.console import NoSuchDomain, attach

    if sys.stdin.isatty():
        message(f"Console of {name}; leave with ^] (with ^C where it is written to a file).")
    try:
        attach(settings.libvirt.uri, name)
    except KeyboardInterrupt:
        # following a file ends this way; a console that can be talked to hands ^C to the guest
        return 0
    except NoSuchDomain as error:
        raise Failure(EXIT_NOT_FOUND, error.message, hint=error.hint) from None
    return 0
