"""Neighbours hear of a new MAC: else they send to the old one until their own doubt, 37 s as measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from kvmd.host.links.rtnetlink import Namespace

# With these the kernel itself says a new MAC for every address of the link (ARP, neighbour advertisement).
_SWITCHES: Final = ("/proc/sys/net/ipv4/conf/{}/arp_notify", "/proc/sys/net/ipv6/conf/{}/ndisc_notify")


@contextlib.contextmanager
def announced(namespace: Namespace, names: Iterable[str]) -> Iterator[None]:
    """Have the kernel announce the MACs that these links get meanwhile; where it cannot, all else goes on."""
    places = [switch.format(name) for name in names for switch in _SWITCHES]
    changed = namespace.call(lambda: [place for place in places if _set(place, "1")]) if places else []
    try:
        yield
    finally:
        if changed:
            namespace.call(lambda: [_set(place, "0") for place in changed])


def _set(place: str, value: str) -> bool:
    """True where that was another value before."""
    with contextlib.suppress(OSError):
        path = Path(place)
        if path.read_text(encoding="ascii").strip() != value:
            path.write_text(value, encoding="ascii")
            return True
    return False
