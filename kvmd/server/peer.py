"""Who is at the other end of the UNIX socket, as the kernel says."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; the socket module does not name it
_MOST_GROUPS = 65536  # NGROUPS_MAX


@dataclass(frozen=True, slots=True)
class Peer:
    """A process: its user, its groups and its number when it connected."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @classmethod
    def of(cls, connection: socket.socket) -> Peer | None:
        """Read SO_PEERCRED and SO_PEERGROUPS; None where it is not a UNIX socket."""
        if connection.family != socket.AF_UNIX:
            return None
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        try:
            listed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
        except OSError:
            listed = b""
        return cls(pid, uid, gid, struct.unpack(f"{len(listed) // 4}I", listed[: len(listed) // 4 * 4]))

    def may_act(self, group: int) -> bool:
        """True for root, for the user that runs the daemon, and for members of the socket's *group*."""
        return self.uid in (0, os.geteuid()) or group in (self.gid, *self.groups)

    def as_data(self) -> dict[str, int]:
        """The form that acts and logs carry."""
        return {"pid": self.pid, "uid": self.uid, "gid": self.gid}
