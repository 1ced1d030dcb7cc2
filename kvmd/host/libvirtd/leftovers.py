"""What a libvirtd that died in the middle of a start leaves running: a dnsmasq that holds a network's address.

libvirt does not know it any more, so it neither stops it nor starts another beside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

PATIENCE_SECONDS = 2.0


def end_dnsmasq(network: str, bridge: str) -> bool:
    """End every dnsmasq of that network, which must not be active, in our network namespace; True where one was."""
    ended: list[int] = []
    try:
        ours = os.stat("/proc/self/ns/net").st_ino
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and (process := _open(int(entry))) is not None:
                if _is_its_dnsmasq(entry, network, bridge, ours):
                    _end(process)
                    ended.append(process)
                else:
                    os.close(process)
        _wait(ended)
    finally:
        for process in ended:
            os.close(process)
    return bool(ended)


def _open(pid: int) -> int | None:
    """A descriptor of the process: what is read of it afterwards and killed cannot be another one."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _end(process: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(process, signal.SIGTERM)


def _is_its_dnsmasq(entry: str, network: str, bridge: str, namespace: int) -> bool:
    """libvirt names the network in the configuration file, and the bridge in the environment."""
    try:
        with open(f"/proc/{entry}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
        if not words or not words[0].endswith(b"dnsmasq") or not _names(words, network):
            return False
        with open(f"/proc/{entry}/environ", "rb") as file:
            variables = file.read(65536).split(b"\0")
        return f"VIR_BRIDGE_NAME={bridge}".encode() in variables and (
            os.stat(f"/proc/{entry}/ns/net").st_ino == namespace
        )
    except OSError:
        return False


def _names(words: list[bytes], network: str) -> bool:
    return any(
        word.startswith(b"--conf-file=") and word.endswith(f"/dnsmasq/{network}.conf".encode()) for word in words
    )


def _wait(processes: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        select.select([process], [], [], max(0.0, deadline - time.monotonic()))
