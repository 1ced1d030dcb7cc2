"""Who else configures the links of this host: NetworkManager, systemd-networkd, netplan, ifupdown.

Two that configure one NIC undo each other, at the latest at the next boot: kvmd moves no addresses of theirs.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping

from kvmd.observed import Key, Link, LinkManager

_PLACES = (
    "etc/network/interfaces",
    "etc/network/interfaces.d",
    "etc/netplan",
    "run/netplan",
    "run/systemd/netif/links",
    "run/NetworkManager/devices",
)


class LinkManagers:
    """Read again only where one of the places, or a link's index, has changed."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._seen: object = None
        self._facts: Mapping[Key, LinkManager] = {}

    def look(self, links: Mapping[Key, Link]) -> Mapping[Key, LinkManager]:
        """The manager of each link that has one; the same mapping as before where nothing changed."""
        seen = (
            tuple(self._stamp(place) for place in _PLACES),
            frozenset((k.name, v.index) for k, v in links.items()),
        )
        if seen != self._seen:
            self._seen = seen
            found = {Key("manager", link.name): fact for link in links.values() if (fact := self.manager_of(link))}
            if found != self._facts:
                before = self._facts
                self._facts = {key: before[key] if before.get(key) == fact else fact for key, fact in found.items()}
        return self._facts

    def manager_of(self, link: Link) -> LinkManager | None:
        """Who configures that link, and what to write where so that it lets go of it."""
        name = link.name
        if self._in_netplan(name):
            hint = f"take {name} out of the files in /etc/netplan, then type: netplan apply"
            return LinkManager(name, "netplan", hint)
        if self._in_network_manager(link.index):
            return LinkManager(name, "NetworkManager", _network_manager(name))
        if self._in_networkd(link.index):
            return LinkManager(name, "systemd-networkd", _networkd(name))
        if self._in_ifupdown(name):
            hint = f"write `iface {name} inet manual` in the place of its stanzas in /etc/network/interfaces"
            return LinkManager(name, "ifupdown", hint)
        return None

    def _in_netplan(self, name: str) -> bool:
        quoted = re.compile(rf"^\s+[\"']?{re.escape(name)}[\"']?\s*:", re.MULTILINE)
        files = glob.glob(os.path.join(self._root, "etc/netplan/*.yaml"))
        return any(quoted.search(_without_comments(self._text(path))) for path in files)

    def _in_network_manager(self, index: int) -> bool:
        text = self._text(f"run/NetworkManager/devices/{index}")
        return re.search(r"^managed=(true|1)\s*$", text, re.MULTILINE) is not None

    def _in_networkd(self, index: int) -> bool:
        text = self._text(f"run/systemd/netif/links/{index}")
        state = re.search(r"^ADMIN_STATE=(\S+)", text, re.MULTILINE)
        return state is not None and state[1] not in ("unmanaged", "pending", "initialized", "linger")

    def _in_ifupdown(self, name: str) -> bool:
        files = ["etc/network/interfaces", *glob.glob(os.path.join(self._root, "etc/network/interfaces.d/*"))]
        stanza = re.compile(rf"^\s*iface\s+{re.escape(name)}\s+(?:inet6?\s+)?(\S+)", re.MULTILINE)
        return any(
            method != "manual" for path in files for method in stanza.findall(_without_comments(self._text(path)))
        )

    def _text(self, place: str) -> str:
        """Empty for what is not there, or cannot be read."""
        try:
            with open(os.path.join(self._root, place), encoding="utf-8", errors="replace") as stream:
                return stream.read(1 << 20)
        except OSError:
            return ""

    def _stamp(self, place: str) -> tuple[int, int]:
        try:
            status = os.stat(os.path.join(self._root, place))
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def _networkd(name: str) -> str:
    return (
        f"write into /etc/systemd/network/05-kvmd-{name}.network: [Match] Name={name} [Link] Unmanaged=yes (a line "
        "each), then type: networkctl reload"
    )


def _network_manager(name: str) -> str:
    return (
        f"write into /etc/NetworkManager/conf.d/kvmd-{name}.conf: [keyfile] unmanaged-devices=interface-name:{name} "
        "(a line each), then type: nmcli general reload"
    )
