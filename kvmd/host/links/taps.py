"""TAP and TUN devices by ioctl (linux/if_tun.h): the one thing that netlink cannot create."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kvmd.errors import Unsupported
from kvmd.host.links.rtnetlink import Namespace
from kvmd.ops import TapCreate, TapOwner

DEVICE: Final = "/dev/net/tun"

_SET_INTERFACE, _SET_PERSIST, _SET_OWNER, _SET_GROUP, _SET_INDEX = (
    0x400454CA,
    0x400454CB,
    0x400454CC,
    0x400454CE,
    0x400454DA,
)
_MODES: Final = {"tun": 0x0001, "tap": 0x0002}
_NO_PACKET_INFORMATION, _VIRTIO_HEADER, _MULTI_QUEUE, _EXCLUSIVE = 0x1000, 0x4000, 0x0100, 0x8000


@contextmanager
def _device(namespace: Namespace) -> Iterator[int]:
    """Open the device: the namespace of the opener decides where the link will be."""
    try:
        descriptor = namespace.call(lambda: os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise Unsupported(
            f"{DEVICE} cannot be opened: {error.strerror}",
            hint=f"modprobe tun; ls -l {DEVICE}",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _identifier(value: int) -> int:
    """A uid or gid as fcntl takes it: a signed int of the same 32 bits. More bits would be cut off: another user."""
    if not 0 <= value < (1 << 32) - 1:
        raise ValueError(f"{value} is no number of a user or group")
    return value - (1 << 32) if value >= 1 << 31 else value


def _attach(descriptor: int, operation: TapCreate | TapOwner, extra: int) -> None:
    if operation.mode not in _MODES:
        raise ValueError(f"mode is {operation.mode!r}, neither tap nor tun")
    flags = _MODES[operation.mode] | _NO_PACKET_INFORMATION | extra
    flags |= _VIRTIO_HEADER if operation.vnet_hdr else 0
    flags |= _MULTI_QUEUE if operation.multi_queue else 0
    fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", operation.name.encode(), flags))


def _set_holder(descriptor: int, operation: TapCreate | TapOwner) -> None:
    if operation.owner is not None:
        fcntl.ioctl(descriptor, _SET_OWNER, _identifier(operation.owner))
    if operation.group is not None:
        fcntl.ioctl(descriptor, _SET_GROUP, _identifier(operation.group))


def create(namespace: Namespace, operation: TapCreate, index: int, mark: Callable[[], None]) -> None:
    """Create a persistent TAP or TUN under *index*; *mark* must mark it or raise.

    Raises OSError. Persistence comes last: killed earlier, the device vanishes with its descriptor.
    """
    with _device(namespace) as descriptor:
        fcntl.ioctl(descriptor, _SET_INDEX, struct.pack("=I", index))
        _attach(descriptor, operation, _EXCLUSIVE)
        mark()
        _set_holder(descriptor, operation)
        fcntl.ioctl(descriptor, _SET_PERSIST, 1)


def set_holder(namespace: Namespace, operation: TapOwner) -> None:
    """Change who may attach; None leaves alone, since the kernel cannot take an owner off. Raises OSError."""
    with _device(namespace) as descriptor:
        _attach(descriptor, operation, 0)
        _set_holder(descriptor, operation)
