"""From the kernel's errnos to errors that say what the loop does next, and what a person could type."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from kvmd.errors import KvmdError, Refused, Retry, Stale, Unsupported
from kvmd.ops import (
    AddressAdd,
    BridgeCreate,
    LinkOp,
    LinkSet,
    RouteAdd,
    StackedCreate,
    TapCreate,
    TapOwner,
    VlanCreate,
    VxlanCreate,
)

GONE: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT})

_ADOPT = 'to take it over, annotate the object with kvmd.dev/adopt: "true"; to look at it: ip -d link show '


def exists(operation: LinkOp, what: str) -> Refused:
    """A name is taken by something that is not ours."""
    return Refused(
        f"cannot {operation.describe()}: {what} exists and is not managed by kvmd",
        hint=_ADOPT + operation.name,
    )


def explain(operation: LinkOp, code: int, text: str = "") -> KvmdError:
    """The error for an *operation* that the kernel refused with errno *code* and extended ack *text*."""
    reason = f"{os.strerror(code)} ({text})" if text else os.strerror(code)
    message = f"cannot {operation.describe()}: {reason}"
    return _BY_ERRNO.get(code, _other)(operation, message, text)


def _look(operation: LinkOp) -> str:
    return f"ip -d link show {operation.name}"


def _other(operation: LinkOp, message: str, _: str) -> KvmdError:
    return Retry(message, hint=f"kvmd tries again; to look: {_look(operation)}")


def _gone(operation: LinkOp, message: str, _: str) -> KvmdError:
    return Stale(f"{message}; it changed meanwhile", hint=f"kvmd plans again; to look: {_look(operation)}")


def _denied(operation: LinkOp, message: str, _: str) -> KvmdError:
    return Unsupported(
        f"{message}; it needs CAP_NET_ADMIN",
        hint="run kvmd as root, or: systemctl edit kvmd, AmbientCapabilities=CAP_NET_ADMIN",
    )


def _forbidden(operation: LinkOp, message: str, _: str) -> KvmdError:
    if isinstance(operation, AddressAdd | RouteAdd):
        return Refused(
            f"{message}; is IPv6 switched off there?",
            hint=f"sysctl net.ipv6.conf.{operation.name}.disable_ipv6=0",
        )
    return _denied(operation, message, "")


def _taken(operation: LinkOp, message: str, _: str) -> KvmdError:
    if isinstance(operation, StackedCreate):
        # The name was free a moment ago: it is the number that is taken.
        return Refused(
            f"{message}; that name or that id on this parent or port is taken",
            hint=f"ip -d link | grep 'id {operation.id} '",
        )
    if isinstance(operation, BridgeCreate | TapCreate):
        return exists(operation, "a link of that name")
    if isinstance(operation, LinkSet):
        return Refused(f"{message}; another link has that name", hint=f"ip link show {operation.port_mark}")
    return Refused(
        f"{message}; it is there already, from somebody else", hint=f"ip address; ip route; {_look(operation)}"
    )


def _busy(operation: LinkOp, message: str, _: str) -> KvmdError:
    if isinstance(operation, TapCreate):
        return exists(operation, "a TAP or TUN of that name")
    if isinstance(operation, TapOwner):
        return in_use(operation)
    if isinstance(operation, LinkSet) and operation.rename:
        why = "before Linux 6.2 only a link that is down can be renamed"
        return Refused(f"{message}; {why}", hint=f"ip link set {operation.name} down; kvmd does the rest")
    if isinstance(operation, LinkSet) and operation.master:
        why = "a macvtap on top of it keeps it from being a port"
    else:
        why = "its driver or another user holds it"
    return Refused(f"{message}; {why}", hint=_look(operation))


def in_use(operation: LinkOp) -> Refused:
    """A TAP that some process holds open."""
    return Refused(
        f"cannot {operation.describe()}: it is in use, a process holds it open",
        hint=f"stop the VM that uses it; to find it: grep -l 'iff:.*{operation.name}' /proc/[0-9]*/fdinfo/*",
    )


def _invalid(operation: LinkOp, message: str, _: str) -> KvmdError:
    why = ""
    if isinstance(operation, LinkSet) and operation.master:
        why = "; a TUN or another link without Ethernet cannot be a port of a bridge"
    elif isinstance(operation, TapOwner):
        why = "; mode and multiQueue must be those it was created with"
    return Refused(f"{message}{why}", hint=f"change its spec; to look: {_look(operation)}")


def _loop(operation: LinkOp, message: str, _: str) -> KvmdError:
    return Refused(f"{message}; a bridge cannot be a port of a bridge", hint="change its spec: 'bridge' or 'uplinks'")


def _range(operation: LinkOp, message: str, _: str) -> KvmdError:
    if isinstance(operation, StackedCreate) or (isinstance(operation, LinkSet) and operation.mtu is not None):
        return Refused(f"{message}; the link below has a smaller MTU", hint=f"ip link; to look: {_look(operation)}")
    return Refused(
        f"{message}; the kernel takes a forward delay of 2 to 30 s with STP on, a hello time of 1 to 10 s, a max age "
        "of 6 to 40 s, a path cost of 1 to 65535 and a port priority of 0 to 63",
        hint="change the value in its spec",
    )


def _lacking(operation: LinkOp, message: str, text: str) -> KvmdError:
    modules = {BridgeCreate: "bridge", TapCreate: "tun", TapOwner: "tun", VlanCreate: "8021q", VxlanCreate: "vxlan"}
    kind = modules.get(type(operation), "")
    if kind or "Unknown device type" in text:
        return Unsupported(
            f"{message}; this kernel has no such kind of link",
            hint=f"modprobe {kind or 'KIND'}, then: systemctl restart kvmd",
        )
    return Unsupported(f"{message}; this link or kernel cannot", hint=f"change its spec; to look: {_look(operation)}")


def _unreachable(operation: LinkOp, message: str, _: str) -> KvmdError:
    return Retry(
        f"{message}; the gateway is not on a network of this link, or the link is down",
        hint=f"ip address show {operation.name}; ip route show dev {operation.name}",
    )


_BY_ERRNO: Final[dict[int, Callable[[LinkOp, str, str], KvmdError]]] = {
    **dict.fromkeys(GONE, _gone),
    errno.EPERM: _denied,
    errno.EACCES: _forbidden,
    errno.EEXIST: _taken,
    errno.ENOTUNIQ: _taken,
    errno.EBUSY: _busy,
    errno.EINVAL: _invalid,
    errno.ELOOP: _loop,
    errno.ERANGE: _range,
    errno.EOPNOTSUPP: _lacking,
    errno.ENETUNREACH: _unreachable,
    errno.EHOSTUNREACH: _unreachable,
    errno.ENETDOWN: _unreachable,
}
