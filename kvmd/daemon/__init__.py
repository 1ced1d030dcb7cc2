"""The daemon: wait for a wake-up or the rescan, run a cycle; and the same machinery for one run in process."""

from kvmd.daemon.lock import daemon_holds_lock
from kvmd.daemon.loop import run_daemon
from kvmd.daemon.session import Session, render_object

__all__ = ["Session", "daemon_holds_lock", "render_object", "run_daemon"]
