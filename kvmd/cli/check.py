"""``kvmd check``: can this host do what kvmd needs?"""

from __future__ import annotations

import sys

import click

from kvmd.cli.context import Context, data, message, pass_context, style_of

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "info": "dim"}


@click.command("check")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")
@pass_context
def check_command(context: Context, output: str, connect: str | None) -> int:
    """Check the kernel modules, devices, QEMU, libvirt and network of this host."""
    settings = context.settings(libvirt__uri=connect)
    from kvmd.host.preflight.rows import run_checks

    checks = run_checks(settings.libvirt.uri)
    bad = [check for check in checks if check.status == "fail"]
    if output == "json":
        from kvmd.render.values import to_json

        names = ("name", "status", "found", "why", "fix")
        data(to_json({"ok": not bad, "checks": [{name: getattr(check, name) for name in names} for check in checks]}))
        return int(bool(bad))
    style = style_of(sys.stdout)
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        word = style.paint(f"{check.status:<5}", _COLOURS[check.status])
        data(f"{word} {check.name:<{width}}  {check.found}".rstrip())
        if check.status in ("warn", "fail"):
            for label, text in (("why", check.why), ("fix", check.fix)):
                for line in text.splitlines():
                    data(f"{'':<5} {'':<{width}}  {label}: {line}")
    message(f"{len(checks)} checks, {len(bad)} failed")
    return int(bool(bad))
