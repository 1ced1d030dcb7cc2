#!/usr/bin/env python3
"""Run a command as the child of a process that reaps orphans, for machines whose PID 1 does so late or never.

libvirt waits for the process of a stopped guest to vanish; QEMU is an orphan by then. Where PID 1 is systemd it
vanishes at once; in a container or a chroot it can stay a zombie, and every `destroy` takes 2 seconds.
Usage: reaper.py COMMAND [ARGUMENT...]. It ends when the last process below it has.
"""

import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: reaper.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 64
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
