"""The command ``kvmd``: its families, and what every error becomes: a message, a hint and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from kvmd import __version__
from kvmd.cli.context import EXIT_USAGE, Context, code_of, complain
from kvmd.errors import KvmdError

# command: its module in kvmd.cli, its one line of help; a family is imported when one of its commands is asked for
_COMMANDS = {
    "run": ("run", "Run the daemon."),
    "check": ("check", "Check this host; each fault comes with its fix."),
    "validate": ("validate", "Check spec files, offline."),
    "plan": ("plan", "Show what would be done, and do nothing."),
    "diff": ("plan", "Show how the host differs from the specs."),
    "apply": ("plan", "Plan, show, ask, act."),
    "get": ("get", "List objects."),
    "describe": ("get", "Show all that is known of one object."),
    "events": ("get", "Show what happened."),
    "wait": ("get", "Wait until objects have a condition."),
    "topology": ("get", "Draw the packet path of every guest."),
    "explain": ("language", "Explain a kind or a field."),
    "schema": ("language", "Print the JSON Schema of all kinds."),
    "import": ("import_", "Print specs of what others made on this host."),
    "render": ("language", "Print the libvirt XML or netlink attributes of an object."),
    "start": ("act", "Start a virtual machine."),
    "stop": ("act", "Shut a virtual machine down."),
    "restart": ("act", "Restart a virtual machine, with its pending changes."),
    "console": ("console", "Attach to the console of a virtual machine."),
    "vnc": ("vnc", "Print the address of the screen of a virtual machine."),
    "approve": ("act", "Approve what only a person may."),
    "suspend": ("act", "Leave an object alone until it is resumed."),
    "resume": ("act", "Take care of a suspended object again."),
    "reconcile": ("act", "Look at an object now."),
}


class Cli(click.Group):
    """Loads families when they are used, suggests near names, and maps errors to the exit codes of API.md."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of a first use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the family of a command and return it."""
        known = _COMMANDS.get(cmd_name)
        if known is None:
            return None
        module = importlib.import_module(f"kvmd.cli.{known[0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; click 8.1 does not suggest one, so this does."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            suggestion = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"There is no command '{name}'.{suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "kvmd",
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with the code that the outcome has."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.UsageError as error:
            error.show()
            sys.exit(EXIT_USAGE)
        except click.ClickException as error:
            error.show()
            sys.exit(1)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except KvmdError as error:
            complain(error)
            sys.exit(code_of(error))
        except ModuleNotFoundError as error:
            if error.name != "libvirt":
                raise
            complain(KvmdError("the libvirt bindings for Python are missing", hint="apt install python3-libvirt"))
            sys.exit(1)
        except OSError as error:
            complain(KvmdError(f"{error.filename or 'input/output'}: {error.strerror or error}"))
            sys.exit(1)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


@click.group(
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed or invalid (diff: different), 2 changes (diff: trouble), 3 not found, "
    "4 daemon unreachable, 5 timeout, 6 refused by policy, 64 usage.",
)
@click.option("--config", metavar="FILE", help="Settings file.  [default: /etc/kvmd/kvmd.yaml]")
@click.version_option(__version__, prog_name="kvmd")
@click.pass_context
def cli(context: click.Context, config: str | None) -> None:
    """Virtual machines, bridges and TAPs of this host, declared as files."""
    context.obj = Context(config)
