"""``kvmd check``: can this host do what kvmd needs?"""

from __future__ import annotations

import sys

import click

from kvmd.cli.context import Context, data, message, pass_context, style_of

_COLOURS = {"ok": "green", "warning": "yellow", "warn": "yellow", "failed": "red", "fail": "red", "error": "red"}


@click.command("check")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--connect", metavar="URI", help="libvirt connection, e.g. qemu:///system.")
@pass_context
def check_command(context: Context, output: str, connect: str | None) -> int:
    """Check the kernel modules, devices, QEMU, libvirt and network of this host."""
    settings = context.settings(libvirt__uri=connect)
    from kvmd.host.preflight import run_checks

    checks = run_checks(settings.libvirt.uri)
    bad = [check for check in checks if str(check.status) in ("failed", "fail", "error")]
    if output == "json":
        from kvmd.render.values import to_json

        names = ("name", "status", "found", "why", "fix")
        data(to_json({"ok": not bad, "checks": [{name: getattr(check, name) for name in names} for check in checks]}))
        return int(bool(bad))
    style = style_of(sys.stdout)
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        status = str(check.status)
        word = style.paint(f"{status:<8}", _COLOURS.get(status, "dim"))
        data(f"{word} {check.name:<{width}}  {check.found}".rstrip())
        if status != "ok":
            for label, text in (("why", check.why), ("fix", check.fix)):
                for line in str(text).splitlines() if text else ():
                    data(f"{'':<8} {'':<{width}}  {label}: {line}")
    message(f"{len(checks)} checks, {len(bad)} failed")
    return int(bool(bad))
