"""A guest's serial console on this terminal, or the file that it is written to, followed."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import termios
import threading
import time
import tty
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import libvirt

from kvmd.errors import BackendUnavailable, KvmdError, Unsupported

ESCAPE = b"\x1d"  # ^], as telnet and virsh have it
_CHUNK = 65_536
_LAST_BYTES = 16_384
_POLL_SECONDS = 0.2


class NoSuchDomain(KvmdError):
    """libvirt has no domain of that name."""


def attach(uri: str, name: str, *, stdin: int = 0, stdout: int = 1) -> None:
    """Connect *stdin* and *stdout* to the console of a running domain until ^], or until it stops."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    connection = _open(uri)
    try:
        domain = _domain(connection, name)
        path = console_file(domain.XMLDesc(0))
        if path is None:
            _interactive(connection, domain, stdin, stdout)
        else:
            follow(path, stdout, lambda: _is_running(domain))
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def _open(uri: str) -> Any:
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise BackendUnavailable(f"libvirt does not answer on {uri}: {error}", hint="kvmd check") from None


def _domain(connection: Any, name: str) -> Any:
    try:
        domain = connection.lookupByName(name)
    except libvirt.libvirtError:
        raise NoSuchDomain(f"libvirt has no domain '{name}'", hint="kvmd get vm lists what there is") from None
    if not domain.isActive():
        raise KvmdError(f"{name} is not running, so it has no console", hint=f"kvmd start {name}")
    return domain


def _is_running(domain: Any) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        # gone with its definition, or libvirt is
        return False


def console_file(xml: str) -> str | None:
    """Return the file that the console is written to, or None where it can be talked to."""
    root = ElementTree.fromstring(xml)
    devices = root.findall("./devices/serial") or root.findall("./devices/console")
    if not devices:
        raise Unsupported(
            "the guest has no serial console", hint="add spec.devices.serial; see kvmd explain vm.devices.serial"
        )
    if any(device.get("type") != "file" for device in devices):
        return None
    source = devices[0].find("source")
    return source.get("path") if source is not None else None


def follow(path: str, stdout: int, is_running: Callable[[], bool]) -> None:
    """Write the end of a file and all that is added to it, like tail -F, while *is_running*."""
    offset: int | None = None
    inode = 0
    while True:
        running = is_running()
        try:
            opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            opened = -1
        except OSError as error:
            raise KvmdError(f"cannot read the console {path}: {error.strerror}", hint="run it as root") from None
        if opened >= 0:
            try:
                found = os.fstat(opened)
                if not stat.S_ISREG(found.st_mode):
                    raise Unsupported(f"the console {path} is not a regular file")
                if offset is None:
                    offset = max(0, found.st_size - _LAST_BYTES)
                elif found.st_ino != inode or found.st_size < offset:
                    offset = 0
                inode = found.st_ino
                offset = _copy(opened, offset, stdout)
            finally:
                os.close(opened)
        if not running:
            return
        time.sleep(_POLL_SECONDS)


def _copy(opened: int, offset: int, stdout: int) -> int:
    while part := os.pread(opened, _CHUNK, offset):
        _write(stdout, part)
        offset += len(part)
    return offset


def _write(target: int, content: bytes) -> None:
    while content:
        content = content[os.write(target, content) :]


def _interactive(connection: Any, domain: Any, stdin: int, stdout: int) -> None:
    stream = connection.newStream(0)
    try:
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_SAFE)
    except libvirt.libvirtError as error:
        busy = error.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED
        hint = "somebody else is on it; only one may be at a time" if busy else "kvmd check"
        raise KvmdError(f"cannot open the console: {error}", hint=hint) from None
    ended, tell = os.pipe2(os.O_CLOEXEC)
    receiver = threading.Thread(target=_receive, args=(stream, stdout, tell), name="console", daemon=True)
    receiver.start()
    try:
        with _raw(stdin):
            _send(stream, stdin, ended)
    finally:
        # the receiver may sit in recv(): abort() wakes it, and it is a daemon where it does not
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        receiver.join(1.0)
        sys.stderr.write("\n")


def _receive(stream: Any, stdout: int, tell: int) -> None:
    with contextlib.suppress(libvirt.libvirtError, OSError):
        while isinstance(part := stream.recv(_CHUNK), bytes) and part:
            _write(stdout, part)
    os.close(tell)


def _send(stream: Any, stdin: int, ended: int) -> None:
    """Send what is typed until the escape or until the stream ends; an exhausted stdin only stops the sending."""
    sources = [stdin, ended]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            return
        typed = os.read(stdin, 1024)
        if not typed:
            sources.remove(stdin)
            continue
        typed, escape, _ = typed.partition(ESCAPE)
        with contextlib.suppress(libvirt.libvirtError):
            while typed:
                typed = typed[stream.send(typed) :]
        if escape:
            return


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Hand every key on as it is, while the block runs."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
