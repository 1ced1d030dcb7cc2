"""The watchdog of a checkpoint: puts everything back when nobody confirms (``python -m`` this module)."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Final

from kvmd.host.checkpoint.guarded import roll_back
from kvmd.host.checkpoint.journal import ARMED, CheckpointFiles
from kvmd.host.checkpoint.record import boot_seconds
from kvmd.host.checkpoint.watchdog_start import ARMED_LINE
from kvmd.host.links.kernel import Links

LOOK_SECONDS: Final = 0.1


def main(words: list[str]) -> int:
    """Watch: ``FOLDER OBJECT ID PID NAMESPACE``. Ends when the checkpoint is decided."""
    folder, object_, id_, pid, namespace = words
    files, links = CheckpointFiles(os.path.dirname(folder)), Links(namespace or None)
    entry = files.find(object_)
    if entry is None or entry.id != id_:
        return 1
    try:
        master = os.pidfd_open(int(pid))
    except ProcessLookupError:
        master = -1
    os.write(1, ARMED_LINE)
    while True:
        dead = master < 0 or bool(select.select([master], [], [], LOOK_SECONDS)[0])
        found = files.find(object_)
        if found is None or found.id != id_ or found.state != ARMED:
            return 0
        if dead or boot_seconds() >= entry.deadline:
            why = "kvmd ended before it was confirmed" if dead else "it was not confirmed in time"
            try:
                roll_back(files, links, entry, why)
            except Exception as error:  # nobody else is left to try again
                os.write(2, f"kvmd watchdog: {object_}: {error}\n".encode())
                time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
