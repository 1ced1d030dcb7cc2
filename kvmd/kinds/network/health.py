"""Whether packets of guests get through the host: what is missing, by name, and what to type."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from kvmd import ops, xmlmap
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.network.document import ROUTED, State
from kvmd.observed import Forwarding, Key, Link
from kvmd.observed import Network as Fact
from kvmd.plan.difference import LEAVE
from kvmd.plan.look import Look

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


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as iptables writes it, and words that stand in it whoever wrote it."""

    chain: str
    text: str
    words: tuple[str, ...]
    verdicts: tuple[str, ...]

    def is_in(self, rules: tuple[str, ...]) -> bool:
        """True where one of them is this rule, in the words of iptables or of nft."""
        heads = (f" -A {self.chain} ", f"nft {_NFT[self.chain]} ")
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
        if network.version == 6:
            continue
        out = f" -o {live.device}" if live.device else ""
        back = f" -i {live.device}" if live.device else ""
        established = " -m conntrack --ctstate RELATED,ESTABLISHED" if live.forward == "nat" else ""
        words = str(network), bridge
        found.append(Rule("LIBVIRT_FWO", f"-s {network} -i {bridge}{out} -j ACCEPT", words, ("accept",)))
        found.append(
            Rule("LIBVIRT_FWI", f"-d {network}{back} -o {bridge}{established} -j ACCEPT", words, ("accept",))
        )
        if live.forward == "nat":
            target = "SNAT" if live.nat_addresses else "MASQUERADE"
            text = f"-s {network} ! -d {network}{out} -j {target}"
            found.append(Rule("LIBVIRT_PRT", text, (str(network),), ("masquerade", "snat")))
    return tuple(found)


def health(network: Fact, repair: bool, look: Look) -> tuple[tuple[Condition, ...], tuple[ops.NetworkRepair, ...]]:
    """The conditions of a running network, and what puts it right where its spec asks for that."""
    fact = look.fact(Key("forwarding", ""))
    link = look.fact(Key("link", network.bridge))
    if not isinstance(fact, Forwarding) or network.live is None or not isinstance(link, Link):
        return (), ()
    live = xmlmap.read(State, xmlmap.parse(network.live))
    switches = _switches(live, fact)
    rules = [rule for rule in required(live, network.bridge) if not rule.is_in(fact.rules)]
    own_table = any(rule.startswith("nft ") for rule in fact.rules)
    jumps = [] if own_table or not required(live, network.bridge) else _jumps(fact)
    told = [*_others(network, live, fact)]
    if (switches or rules or jumps) and repair:
        act = ops.NetworkRepair(network.name, network.uuid, switches, tuple(jumps), bool(rules or jumps))
        return tuple(told), (act,)
    if switches:
        command = " ".join(f"{name}=1" for name in switches)
        told.insert(0, _degraded("ForwardingOff", f"the kernel forwards no packets; type: sysctl -w {command}"))
    if rules or jumps:
        told.append(_degraded("RulesMissing", _missing(network.name, rules, jumps)))
    return tuple(told), ()


def _degraded(reason: str, text: str) -> Condition:
    return Condition(DEGRADED, True, reason, text)


def _switches(live: State, fact: Forwarding) -> tuple[str, ...]:
    if live.forward not in ROUTED or live.subnets is LEAVE:
        return ()
    versions = {ipaddress.ip_interface(subnet.name).version for subnet in live.subnets}
    found = [] if fact.ipv4 or 4 not in versions else ["net.ipv4.ip_forward"]
    return (*found, *([] if fact.ipv6 or 6 not in versions else ["net.ipv6.conf.all.forwarding"]))


def _jumps(fact: Forwarding) -> list[tuple[str, str, str]]:
    """Table, chain and what it should jump to."""
    return [
        (table, parent, chain)
        for chain, (table, parent) in _JUMPS.items()
        if f"{table} -A {parent} -j {chain}" not in fact.rules
    ]


def _missing(name: str, rules: list[Rule], jumps: list[tuple[str, str, str]]) -> str:
    """A reload writes the rules of networks; only a new process of libvirt writes the chains that they stand in."""
    tables = (_JUMPS[rule.chain][0] for rule in rules)
    lines = [f"{table} -A {rule.chain} {rule.text}" for table, rule in zip(tables, rules, strict=True)]
    lines += [f"{table} -A {parent} -j {chain}" for table, parent, chain in jumps]
    word = "restart" if jumps else "reload"
    return (
        f"somebody took firewall rules of network {name} away: {'; '.join(lines)}. To put them back type: "
        f"systemctl {word} libvirtd (virtnetworkd where it runs by itself; guests go on), or write "
        "`forward: {repair: true}`"
    )


def _others(network: Fact, live: State, fact: Forwarding) -> Iterator[Condition]:
    """What others' rules and switches do to it; those kvmd does not touch."""
    bridge = network.bridge
    own_table = any(rule.startswith("nft ") for rule in fact.rules)
    let = [
        rule
        for rule in fact.rules
        if "ACCEPT" in rule and (rule.startswith(("filter -A FORWARD", "filter -A DOCKER")))
    ]
    passes = any(f"-i {bridge} " in rule for rule in let) and any(f"-o {bridge} " in rule for rule in let)
    chain = "DOCKER-USER" if "filter :DOCKER-USER" in fact.rules else "FORWARD"
    if fact.drops and not passes and live.forward in ROUTED and (own_table or live.forward == "open"):
        yield _degraded(
            "ForwardDropped",
            "the firewall's FORWARD policy is DROP (Docker sets it) and nothing lets packets of this network by; "
            f"type: iptables -I {chain} -i {bridge} -j ACCEPT; iptables -I {chain} -o {bridge} -j ACCEPT",
        )
    within = any(f"-A LIBVIRT_FWX -i {bridge} -o {bridge} -j ACCEPT" in rule for rule in fact.rules)
    within = within or passes or any("--physdev-is-bridged" in rule for rule in let)
    if fact.bridged and fact.drops and not within:
        yield _degraded(
            "BridgedFramesDropped",
            "frames between guests pass the firewall, whose FORWARD policy is DROP (Docker sets both); type: "
            f"iptables -I {chain} -i {bridge} -o {bridge} -j ACCEPT",
        )
    for where, device in fact.astray:
        if where == bridge and live.forward in ROUTED:
            yield _degraded(
                "ReversePathFilter",
                f"rp_filter is strict and the way back to guests of {bridge} leads through {device}, so their "
                "packets are dropped; take that route away (ip route), or type: "
                f"sysctl -w net.ipv4.conf.{bridge}.rp_filter=2",
            )
