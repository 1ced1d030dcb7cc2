"""The firewall rules that libvirt makes for a network, and which of them are missing, in the words of either tool."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kvmd.kinds.network.document import State
from kvmd.observed import Forwarding
from kvmd.plan.difference import LEAVE

IPV6 = "ip6 "  # before what ip6tables has
# Where libvirt's chains are jumped to from; one process of it makes them once, and writes no rule where one is gone.
_JUMPS = {
    "LIBVIRT_INP": ("filter", "INPUT"),
    "LIBVIRT_OUT": ("filter", "OUTPUT"),
    "LIBVIRT_FWO": ("filter", "FORWARD"),
    "LIBVIRT_FWI": ("filter", "FORWARD"),
    "LIBVIRT_FWX": ("filter", "FORWARD"),
    "LIBVIRT_PRT": ("nat", "POSTROUTING"),
}
_NFT = {"LIBVIRT_FWO": "guest_output", "LIBVIRT_FWI": "guest_input", "LIBVIRT_PRT": "guest_nat"}
_NFT_TABLES = {"ip": "nft ", "ip6": "nft6 "}
Jump = tuple[str, str, str]  # table (after ``ip6`` that of IPv6), chain, libvirt's chain that it should jump to


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as iptables writes it, and words that stand in it whoever wrote it."""

    version: int
    chain: str
    text: str
    words: tuple[str, ...]
    verdicts: tuple[str, ...]

    @property
    def line(self) -> str:
        """What iptables-save or ip6tables-save would show, its table first."""
        return f"{IPV6 * (self.version == 6)}{_JUMPS[self.chain][0]} -A {self.chain} {self.text}"

    def is_in(self, rules: tuple[str, ...]) -> bool:
        """True where one of them is this rule, in the words of iptables or of nft."""
        heads = (f" -A {self.chain} ", f"{_NFT_TABLES['ip6' if self.version == 6 else 'ip']}{_NFT[self.chain]} ")
        found = (rule for rule in rules if any(head in f" {rule}" for head in heads))
        return any(
            all(word in rule.replace('"', "").split() for word in self.words)
            and any(verdict in rule.lower() for verdict in self.verdicts)
            for rule in found
        )


def required(live: State, bridge: str) -> tuple[Rule, ...]:
    """The rules that libvirt made for the network when it was started, as far as guests would miss them."""
    if live.forward not in ("nat", "route") or live.subnets is LEAVE:
        return ()
    found: list[Rule] = []
    for subnet in live.subnets:
        network = ipaddress.ip_interface(subnet.name).network
        translated = live.forward == "nat" and (network.version == 4 or live.nat_ipv6)
        out = f" -o {live.device}" if live.device else ""
        back = f" -i {live.device}" if live.device else ""
        established = " -m conntrack --ctstate RELATED,ESTABLISHED" if translated else ""
        words = str(network), bridge
        text = f"-s {network} -i {bridge}{out} -j ACCEPT"
        found.append(Rule(network.version, "LIBVIRT_FWO", text, words, ("accept",)))
        text = f"-d {network}{back} -o {bridge}{established} -j ACCEPT"
        found.append(Rule(network.version, "LIBVIRT_FWI", text, words, ("accept",)))
        if translated:
            target = "SNAT" if live.nat_addresses and network.version == 4 else "MASQUERADE"
            text = f"-s {network} ! -d {network}{out} -j {target}"
            found.append(Rule(network.version, "LIBVIRT_PRT", text, (str(network),), ("masquerade", "snat")))
    return tuple(found)


def has_own_table(fact: Forwarding) -> bool:
    """True where libvirt writes into nftables itself, be its table there now or not."""
    return fact.backend == "nftables" or any(rule.startswith(tuple(_NFT_TABLES.values())) for rule in fact.rules)


def missing_jumps(needed: tuple[Rule, ...], fact: Forwarding) -> tuple[Jump, ...]:
    """Where no packet gets to libvirt's chains any more."""
    if has_own_table(fact):
        return ()
    heads = dict.fromkeys(IPV6 * (rule.version == 6) for rule in needed)
    return tuple(
        (f"{head}{table}", parent, chain)
        for head in heads
        for chain, (table, parent) in _JUMPS.items()
        if f"{head}{table} -A {parent} -j {chain}" not in fact.rules
    )


def missing_tables(needed: tuple[Rule, ...], fact: Forwarding) -> tuple[str, ...]:
    """The families, ip and ip6, of which libvirt's own table is gone."""
    if not has_own_table(fact):
        return ()
    families = dict.fromkeys("ip6" if rule.version == 6 else "ip" for rule in needed)
    return tuple(item for item in families if not any(rule.startswith(_NFT_TABLES[item]) for rule in fact.rules))
