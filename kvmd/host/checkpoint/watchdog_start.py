"""Starting the watchdog of a checkpoint outside kvmd's own unit."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

from kvmd.errors import Retry

ARMED_LINE: Final = b"armed\n"
START_SECONDS: Final = 10.0


class Watchdog:
    """Started, and watching, when this returns. Raises Retry where it cannot be.

    Where systemd runs it has a scope of its own: a stop of kvmd's unit ends everything in that unit.
    """

    def __init__(self, folder: str, object_: str, id_: str, namespace: str | None = None) -> None:
        words = [
            sys.executable,
            "-m",
            "kvmd.host.checkpoint.watchdog",
            folder,
            object_,
            id_,
            str(os.getpid()),
            namespace or "",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        for prefix in _prefixes(id_):
            self._process = self._start([*prefix, *words])
            if self._process is not None:
                return
        raise Retry("the watchdog of the checkpoint does not start, so nothing is changed", hint="kvmd check")

    def _start(self, words: list[str]) -> subprocess.Popen[bytes] | None:
        root = str(Path(__file__).resolve().parents[3])
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                cwd="/",
                env={**os.environ, "PYTHONPATH": root},
                start_new_session=True,
            )
        except OSError:
            return None
        assert process.stdout is not None
        if select.select([process.stdout], [], [], START_SECONDS)[0] and process.stdout.readline() == ARMED_LINE:
            return process
        process.kill()
        process.wait()
        return None

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It ends by itself once the checkpoint is decided; wait for that, so that it leaves no zombie."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(START_SECONDS)
        self._process.stdout.close()


def _prefixes(id_: str) -> list[list[str]]:
    """In a scope of its own where systemd runs, else (or where that fails) in a session of its own."""
    tool = shutil.which("systemd-run")
    if tool is None or not os.path.isdir("/run/systemd/system"):
        return [[]]
    scope = [tool, "--scope", "--quiet", "--collect", f"--unit=kvmd-checkpoint-{id_[:12]}"]
    return [[*scope, "--description=kvmd puts the host's network back unless it confirms", "--"], []]
