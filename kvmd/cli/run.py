"""``kvmd run``: the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvmd.cli.context import Context, pass_context

if TYPE_CHECKING:
    from kvmd.settings import Settings


@click.command("run")
@click.option("--specs", metavar="DIR", help="Directory of the specs.")
@click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")
@click.option("--listen", metavar="HOST:PORT", help="Address for metrics and the read-only API.")
@click.option("--once", is_flag=True, help="Converge, print what is left, and exit with 0 or 1.")
@pass_context
def run_command(context: Context, specs: str | None, connect: str | None, listen: str | None, once: bool) -> int:
    """Run the daemon: make the host agree with the specs, and keep it so."""
    from kvmd.daemon import run_daemon

    def load() -> Settings:
        return context.settings(source__path=specs, libvirt__uri=connect, http__listen=listen)

    return run_daemon(load(), once=once, reload=load)
