"""The acts that only a person may do: approve, suspend, resume, reconcile, start, stop, restart."""

from __future__ import annotations

from typing import Any

import click

from kvmd.cli.context import Context, confirm, message, one_reference, pass_context, the_ref

_MACHINE = "VirtualMachine"


def _report(answer: dict[str, Any]) -> int:
    message(answer.get("message") or "done")
    if answer.get("hint"):
        message(answer["hint"])
    return 0


def _power(verb: str, about: str) -> click.Command:
    def command(context: Context, words: tuple[str, ...]) -> int:
        return _report(context.client().act(verb, str(the_ref(words, _MACHINE))))

    made = click.argument("words", nargs=-1, required=True, metavar="VM")(pass_context(command))
    return click.command(verb, help=about)(made)


start_command = _power("start", "Start a virtual machine (runStrategy Manual).")
stop_command = _power("stop", "Shut a virtual machine down; refused under runStrategy Always, which names Halted.")
restart_command = _power("restart", "Restart a virtual machine once, with its pending changes.")


def _simple(verb: str, about: str) -> click.Command:
    def command(context: Context, words: tuple[str, ...]) -> int:
        return _report(context.client().act(verb, str(the_ref(words))))

    return click.command(verb, help=about)(one_reference(pass_context(command)))


suspend_command = _simple("suspend", "Report an object, but leave it alone until it is resumed.")
resume_command = _simple("resume", "Take care of a suspended object again.")


@click.command("reconcile")
@click.argument("words", nargs=-1, metavar="[KIND/NAME]")
@pass_context
def reconcile_command(context: Context, words: tuple[str, ...]) -> int:
    """Look at an object (or, without one, at everything) now, and forget its backoff."""
    return _report(context.client().act("reconcile", str(the_ref(words)) if words else ""))


@click.command("approve")
@click.argument("words", nargs=-1, required=True, metavar="KIND/NAME|prune")
@click.option("--digest", help="Approve only this list of removals (prune).")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_context
def approve_command(context: Context, words: tuple[str, ...], digest: str | None, yes: bool) -> int:
    """Approve the disruption that an object waits for, or (prune) the removals that are held back."""
    client = context.client()
    if words != ("prune",):
        return _report(client.act("approve", str(the_ref(words))))
    source = client.get("/api/v1/source")
    held = source.get("held") or []
    if not held:
        message("Nothing is held back: there is nothing to approve.")
        return 0
    message("These objects have no spec any more and would be removed:")
    for item in held:
        message(f"  - {item}")
    if not confirm("Remove them?", yes=yes or digest is not None):
        message("Nothing was approved.")
        return 1
    return _report(client.act("approve", "prune", {"digest": digest or source.get("pruneDigest", "")}))
