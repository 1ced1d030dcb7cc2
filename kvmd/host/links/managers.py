"""Who else configures the links of this host: NetworkManager, systemd-networkd, netplan, ifupdown.

Two that configure one NIC undo each other, at the latest at the next boot: kvmd moves no addresses of theirs.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from kvmd.observed import Key, Link, LinkManager

_PLACES = (
    "etc/network/interfaces",
    "etc/network/interfaces.d",
    "etc/netplan",
    "run/netplan",
    "run/systemd/netif/links",
    "run/NetworkManager/devices",
)
_NETPLAN = re.compile(r"^\s+[\"']?([^\s\"':]+)[\"']?\s*:", re.MULTILINE)
_STANZA = re.compile(r"^\s*iface\s+(\S+)\s+(?:inet6?\s+)?(\S+)", re.MULTILINE)


class _Named(NamedTuple):
    """What the files say: names of links, and the numbers of those that have a file of their own."""

    netplan: frozenset[str]
    ifupdown: frozenset[str]
    network_manager: frozenset[str]
    networkd: frozenset[str]


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
            named = self._read()
            found = {
                Key("manager", link.name): fact for link in links.values() if (fact := self._manager_of(link, named))
            }
            if found != self._facts:
                before = self._facts
                self._facts = {key: before[key] if before.get(key) == fact else fact for key, fact in found.items()}
        return self._facts

    def _read(self) -> _Named:
        """Read each file once, however many links there are."""
        netplan = glob.glob(os.path.join(self._root, "etc/netplan/*.yaml"))
        ifupdown = ["etc/network/interfaces", *glob.glob(os.path.join(self._root, "etc/network/interfaces.d/*"))]
        stanzas = [found for path in ifupdown for found in _STANZA.findall(_without_comments(self._text(path)))]
        return _Named(
            frozenset(name for path in netplan for name in _NETPLAN.findall(_without_comments(self._text(path)))),
            frozenset(name for name, method in stanzas if method != "manual"),
            self._numbers("run/NetworkManager/devices"),
            self._numbers("run/systemd/netif/links"),
        )

    def _manager_of(self, link: Link, named: _Named) -> LinkManager | None:
        """Who configures that link, and what to write where so that it lets go of it."""
        name, number = link.name, str(link.index)
        if name in named.netplan:
            hint = f"take {name} out of the files in /etc/netplan, then type: netplan apply"
            return LinkManager(name, "netplan", hint)
        if number in named.network_manager and self._in_network_manager(number):
            return LinkManager(name, "NetworkManager", _network_manager(name))
        if number in named.networkd and self._in_networkd(number):
            return LinkManager(name, "systemd-networkd", _networkd(name))
        if name in named.ifupdown:
            hint = f"write `iface {name} inet manual` in the place of its stanzas in /etc/network/interfaces"
            return LinkManager(name, "ifupdown", hint)
        return None

    def _in_network_manager(self, number: str) -> bool:
        text = self._text(f"run/NetworkManager/devices/{number}")
        return re.search(r"^managed=(true|1)\s*$", text, re.MULTILINE) is not None

    def _in_networkd(self, number: str) -> bool:
        text = self._text(f"run/systemd/netif/links/{number}")
        state = re.search(r"^ADMIN_STATE=(\S+)", text, re.MULTILINE)
        return state is not None and state[1] not in ("unmanaged", "pending", "initialized", "linger")

    def _numbers(self, folder: str) -> frozenset[str]:
        """The indexes of links for which there is a file in that folder."""
        try:
            return frozenset(os.listdir(os.path.join(self._root, folder)))
        except OSError:
            return frozenset()

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
