"""What decides over packets that pass between links: switches of the kernel, and the rules of libvirt's networks.

The rules are read by a thread, with the tools that wrote them, and only in doubt: when a network changed, when the
kernel says that there is another ruleset than was read, and with every relist. What others' rules do is theirs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvmd.host.preflight.tools import output_of, read_text
from kvmd.identity import kept
from kvmd.observed import Forwarding, Key, Network

FORWARDING = Key("forwarding", "")
SPACING_SECONDS = 5.0  # between two reads, whatever others do to their rules
# libvirt takes the rules of a network away and writes them anew when a reservation changes (1 to 2 s were measured).
CALM_SECONDS = 2.0
TRIES = 10
_NETFILTER = 12  # NETLINK_NETFILTER
_GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_OTHERS = ("FORWARD", "DOCKER-USER")  # where people let the packets of a network through


class ForwardingFacts:
    """The last answer, and the thread that gets the next one."""

    def __init__(self, relist: float, wake: Callable[[], None]) -> None:
        self._relist, self._wake = relist, wake
        self._facts: Mapping[Key, Forwarding] = {}
        self._stale = threading.Event()
        self._busy = threading.Lock()
        self._read_at = 0.0
        self._generation = self._forgotten = 0
        self._backend = ""  # what libvirt was last seen to write its rules with
        self._networks: tuple[Mapping[Key, Any], tuple[str, ...]] = ({}, ())

    def mark_stale(self) -> None:
        """A network changed: its rules may have, too."""
        self._stale.set()

    def forget(self) -> None:
        """They were put back: what was read before is not so, and nothing is done on its strength."""
        self._forgotten += 1
        self._facts = {}

    def look(self, facts: Mapping[Key, Any]) -> Mapping[Key, Forwarding]:
        """The last answer; asks for another where there is doubt. Only the very first one is waited for."""
        bridges = self._bridges(facts)
        if not bridges:
            return self._facts
        if not self._read_at:
            self._take(generation(), read(bridges, ""))
        elif self._in_doubt(self._facts.get(FORWARDING)) and self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, args=(bridges,), name="forwarding-facts", daemon=True).start()
        return self._facts

    def _bridges(self, facts: Mapping[Key, Any]) -> tuple[str, ...]:
        if facts is not self._networks[0]:
            networks = (fact for key, fact in facts.items() if key.type == "network" and isinstance(fact, Network))
            found = tuple(sorted(network.bridge for network in networks if network.active and network.bridge))
            if found != self._networks[1]:
                self._stale.set()
            self._networks = facts, found
        return self._networks[1]

    def _in_doubt(self, known: Forwarding | None) -> bool:
        age = time.monotonic() - self._read_at
        if known is None or age < SPACING_SECONDS:
            return known is None
        switched = (known.ipv4, known.ipv6, known.bridged, known.bridged_ipv6) != _switches()
        return switched or self._stale.is_set() or age > self._relist or generation() != self._generation

    def _run(self, bridges: tuple[str, ...]) -> None:
        before = self._facts
        try:
            for _ in range(TRIES):
                forgotten = self._forgotten
                found = self._read_calmly(bridges)
                if forgotten == self._forgotten:
                    self._take(*found)
                    break
        finally:
            self._busy.release()
        if self._facts is not before:
            self._wake()

    def _read_calmly(self, bridges: tuple[str, ...]) -> tuple[int, Forwarding]:
        """Believe two readings that agree: the first may have come in the middle of a change."""
        self._stale.clear()
        number, found = generation(), read(bridges, self._backend)
        for _ in range(TRIES):
            if found == self._facts.get(FORWARDING):
                break
            time.sleep(CALM_SECONDS)
            number, before, found = generation(), found, read(bridges, self._backend)
            if found == before:
                break
        return number, found

    def _take(self, number: int, found: Forwarding) -> None:
        self._generation, self._read_at, self._backend = number, time.monotonic(), found.backend
        known = self._facts.get(FORWARDING)
        if (fact := kept(known, found)) is not known:
            self._facts = {FORWARDING: fact}


def generation() -> int:
    """The number of the kernel's present ruleset (nf_tables, which today's iptables writes to, too); 0: unknown."""
    message = struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 0, 0, 0, 0, 0)
    with (
        contextlib.suppress(OSError, struct.error),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as link,
    ):
        link.settimeout(1)
        link.send(message)
        answer = link.recv(512)
        if struct.unpack_from("=H", answer, 4)[0] == 10 << 8 | 15:  # NFT_MSG_NEWGEN; NFTA_GEN_ID comes first
            return int(struct.unpack_from("!I", answer, 24)[0])
    return 0


def read(bridges: Iterable[str], backend: str) -> Forwarding:
    """All of it, now; *backend* is what libvirt was seen to write its rules with before."""
    saved, saved6 = output_of("iptables-save") or "", output_of("ip6tables-save") or ""
    own, own6 = _own_table("ip"), _own_table("ip6")
    ipv4, ipv6, bridged, bridged_ipv6 = _switches()
    rules = (*_iptables(saved, ""), *_iptables(saved6, "ip6 "), *_nftables(own, "nft"), *_nftables(own6, "nft6"))
    strict = _switch("ipv4/conf/all/rp_filter")
    return Forwarding(
        ipv4,
        ipv6,
        bridged,
        drops=":FORWARD DROP" in saved,
        rules=tuple(dict.fromkeys(rules)),
        bridged_ipv6=bridged_ipv6,
        drops_ipv6=":FORWARD DROP" in saved6,
        backend=_backend(own + own6, saved + saved6) or backend or _configured(),
        astray=tuple(
            found
            for bridge in bridges
            if (strict or _switch(f"ipv4/conf/{bridge}/rp_filter"))
            for found in _astray(bridge)
        ),
    )


def _own_table(family: str) -> str:
    found = output_of("nft", "-s", "list", "table", family, "libvirt_network") or ""
    return found if found.startswith("table") else ""  # else it says that there is none


def _backend(own: str, saved: str) -> str:
    """What libvirt writes its rules with, by what is there; "" where there is nothing of it."""
    return "nftables" if own else "iptables" if ":LIBVIRT_" in saved else ""


def _configured() -> str:
    """The same by libvirt's configuration; unsaid, Debian's takes iptables (measured on 12 and 13)."""
    text = read_text("/etc/libvirt/network.conf") or ""
    found = re.search(r'^\s*firewall_backend\s*=\s*"(\w+)"', text, re.MULTILINE)
    return found[1] if found else "iptables"


def _switches() -> tuple[bool, bool, bool, bool]:
    """IPv4, IPv6, and whether frames of each within a bridge pass the firewall: four small reads."""
    return (
        _switch("ipv4/ip_forward"),
        _switch("ipv6/conf/all/forwarding"),
        _switch("bridge/bridge-nf-call-iptables"),
        _switch("bridge/bridge-nf-call-ip6tables"),
    )


def _switch(name: str) -> bool:
    return read_text(f"/proc/sys/net/{name}") == "1"


def _iptables(saved: str, head: str) -> Iterable[str]:
    """``nat -A LIBVIRT_PRT …`` after *head*: what libvirt wrote, and where people let packets through beside it."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A ") and ("LIBVIRT_" in line or (table == "filter" and line.split()[1] in _OTHERS)):
            yield f"{head}{table} {line}"
        elif table == "filter" and line.startswith(":DOCKER-USER "):
            yield f"{head}filter :DOCKER-USER"


def _nftables(listed: str, head: str) -> Iterable[str]:
    """``nft guest_nat …``: the rules of libvirt's own table."""
    chain = ""
    for line in map(str.strip, listed.splitlines()):
        if found := re.fullmatch(r"chain (\S+) \{", line):
            chain = found[1]
        elif chain and line and line != "}" and not line.startswith("type "):
            yield f"{head} {chain} {line}"


def _astray(bridge: str) -> Iterable[tuple[str, str]]:
    """The link that answers to guests on a bridge would leave by, where it is another: a strict filter drops them."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        for link in json.loads(
            output_of("ip", "-j", "-4", "route", "show", "dev", bridge, "proto", "kernel") or "[]"
        ):
            address = _guest_in(str(link["dst"]), str(link.get("prefsrc", "")))
            way = json.loads(output_of("ip", "-j", "-4", "route", "get", address) or "[]")
            if way and way[0]["dev"] != bridge and way[0].get("type") not in ("broadcast", "local"):
                yield bridge, str(way[0]["dev"])


def _guest_in(subnet: str, own: str) -> str:
    """The last address of a subnet that a guest may have: not the broadcast address, nor the host's *own*."""
    network = ipaddress.IPv4Network(subnet)
    last = max(network.num_addresses - (2 if network.prefixlen < 31 else 1), 0)
    return str(network[last - 1] if last and str(network[last]) == own else network[last])
