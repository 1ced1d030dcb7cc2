"""Helpers: an anonymous network namespace, and ``ip`` as the independent oracle in it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CLONE_NEWNET = 0x40000000


class NetNamespace:
    """A namespace that lives as long as this object (or a socket in it); nothing on the host changes."""

    def __init__(self) -> None:
        self._descriptor = -1
        thread = threading.Thread(target=self._unshare)
        thread.start()
        thread.join(10)
        assert self._descriptor >= 0, "unshare(CLONE_NEWNET) failed: needs root"
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def _unshare(self) -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0:
            self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def run(self, *command: str) -> str:
        """Run a command in the namespace."""
        entering = ("nsenter", f"--net={self.path}", *command)
        return subprocess.run(entering, check=True, capture_output=True, text=True, timeout=20).stdout

    def ip(self, line: str) -> str:
        """Run ``ip`` with the words of *line*."""
        return self.run("ip", *line.split())

    def shell(self, script: str) -> None:
        """Run a shell script in the namespace: cheaper than many single calls."""
        self.run("sh", "-ec", script)

    def json(self, line: str) -> list[dict[str, Any]]:
        """What ``ip -j -d`` says."""
        found: list[dict[str, Any]] = json.loads(self.run("ip", "-j", "-d", *line.split()) or "[]")
        return [entry for entry in found if entry]

    def links(self) -> dict[str, dict[str, Any]]:
        """All links by name."""
        return {entry["ifname"]: entry for entry in self.json("link show")}

    def addresses(self, name: str) -> list[str]:
        """The addresses of a link, in the kernel's order, without link-local ones of IPv6."""
        entries = self.json(f"addr show dev {name}")[0]["addr_info"]
        return [
            f"{entry['local']}/{entry['prefixlen']}"
            for entry in entries
            if not (entry["family"] == "inet6" and entry["scope"] == "link")
        ]

    def close(self) -> None:
        """Let the namespace go."""
        os.close(self._descriptor)


@contextmanager
def namespace() -> Iterator[NetNamespace]:
    """A namespace for one test."""
    opened = NetNamespace()
    try:
        yield opened
    finally:
        opened.close()
