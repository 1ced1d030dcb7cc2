"""``kvmd vnc``: where the screen of a virtual machine can be looked at."""

from __future__ import annotations

import click

from kvmd.cli.context import EXIT_NOT_FOUND, Context, Failure, data, pass_context, the_ref


@click.command("vnc")
@click.argument("words", nargs=-1, required=True, metavar="VM")
@pass_context
def vnc_command(context: Context, words: tuple[str, ...]) -> int:
    """Print the address of the screen of a running virtual machine, as viewers take it."""
    ref = the_ref(words, "VirtualMachine")
    screen = context.client().object(ref).get("status", {}).get("graphics")
    if not screen:
        raise Failure(
            EXIT_NOT_FOUND, f"{ref} has no screen now", hint="it must run, and have devices.graphics: kvmd explain vm"
        )
    address = str(screen["address"])
    data(f"{screen['type']}{'+unix' if address.startswith('/') else ''}://{address}")
    return 0
