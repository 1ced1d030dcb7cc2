"""``python -m kvmd`` and the command ``kvmd``."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback


def main() -> None:
    """Run the command line, and end the process with its code.

    At once, without taking the interpreter apart: a thread in libvirt's event loop calls into Python at any time, and
    one that does so then ends a command that has said all it had to say with a segmentation fault (seen on a busy
    machine, libvirt 9.0, Python 3.11: ``kvmd plan`` ended with -11).
    """
    code: object = 1
    try:
        from kvmd.cli.main import cli

        cli()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:  # it was closed before the start
                stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
