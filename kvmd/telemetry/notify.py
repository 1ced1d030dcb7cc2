"""systemd's readiness protocol: datagrams to NOTIFY_SOCKET (sd_notify(3)); silent where there is none."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notify:
    """Says READY, RELOADING, STOPPING, WATCHDOG and STATUS to whoever started this process."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        path = environment.get("NOTIFY_SOCKET", "")
        # a leading '@' stands for the NUL of the abstract namespace
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_seconds = _watchdog(environment)

    @property
    def active(self) -> bool:
        """True where somebody listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Say that the service is up (or has finished reloading)."""
        self._send({"READY": "1", "STATUS": status})

    def reloading(self) -> None:
        """Say that the settings are being read again; ``ready`` ends it."""
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)})

    def stopping(self, status: str = "") -> None:
        """Say that the service is going down."""
        self._send({"STOPPING": "1", "STATUS": status})

    def watchdog(self) -> None:
        """Say that the loop turns; only the loop itself may call this."""
        if self.watchdog_seconds is not None:
            self._send({"WATCHDOG": "1"})

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send({"STATUS": text})

    def _send(self, variables: Mapping[str, str]) -> None:
        if not self._address:
            return
        lines = [f"{name}={' '.join(value.splitlines())}" for name, value in variables.items() if value]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.settimeout(1.0)
                connection.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            # a supervisor that is gone must not stop the work
            return


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the seconds within which systemd wants a sign of life, or None."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
