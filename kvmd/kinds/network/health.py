"""Whether packets of guests get through the host: what is missing, by name, and what to type."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from kvmd import ops, xmlmap
from kvmd.api.status import DEGRADED, Condition
from kvmd.kinds.network.document import ROUTED, State
from kvmd.kinds.network.firewall import IPV6, Jump, Rule, has_own_table, missing_jumps, missing_tables, required
from kvmd.observed import Forwarding, Key, Link
from kvmd.observed import Network as Fact
from kvmd.plan.difference import LEAVE
from kvmd.plan.look import Look


def health(network: Fact, repair: bool, look: Look) -> tuple[tuple[Condition, ...], tuple[ops.NetworkRepair, ...]]:
    """The conditions of a running network, and what puts it right where its spec asks for that."""
    fact = look.fact(Key("forwarding", ""))
    link = look.fact(Key("link", network.bridge))
    if not isinstance(fact, Forwarding) or network.live is None or not isinstance(link, Link):
        return (), ()
    live = xmlmap.read(State, xmlmap.parse(network.live))
    switches, needed = _switches(live, fact), required(live, network.bridge)
    rules = [rule for rule in needed if not rule.is_in(fact.rules)]
    jumps, tables = missing_jumps(needed, fact), missing_tables(needed, fact)
    told = [*_others(network, live, fact)]
    if (switches or rules or jumps) and repair:
        both = tuple(dict.fromkeys((table.removeprefix(IPV6), parent, chain) for table, parent, chain in jumps))
        act = ops.NetworkRepair(network.name, network.uuid, switches, both, bool(tables), bool(rules or jumps))
        return tuple(told), (act,)
    if switches:
        command = " ".join(f"{name}=1" for name in switches)
        told.insert(0, _degraded("ForwardingOff", f"the kernel forwards no packets; type: sysctl -w {command}"))
    if rules or jumps:
        told.append(_degraded("RulesMissing", _missing(network.name, rules, jumps, tables)))
    return tuple(told), ()


def _degraded(reason: str, text: str) -> Condition:
    return Condition(DEGRADED, True, reason, text)


def _versions(live: State) -> set[int]:
    return set() if live.subnets is LEAVE else {ipaddress.ip_interface(item.name).version for item in live.subnets}


def _switches(live: State, fact: Forwarding) -> tuple[str, ...]:
    if live.forward not in ROUTED:
        return ()
    versions = _versions(live)
    found = [] if fact.ipv4 or 4 not in versions else ["net.ipv4.ip_forward"]
    return (*found, *([] if fact.ipv6 or 6 not in versions else ["net.ipv6.conf.all.forwarding"]))


def _missing(name: str, rules: list[Rule], jumps: tuple[Jump, ...], tables: tuple[str, ...]) -> str:
    """A reload writes the rules of networks; only a new process of libvirt writes the chains that they stand in."""
    lines = [f"table {family} libvirt_network" for family in tables] + [rule.line for rule in rules]
    lines += [f"{table} -A {parent} -j {chain}" for table, parent, chain in jumps]
    word = "restart" if jumps or tables else "reload"
    return (
        f"somebody took firewall rules of network {name} away: {'; '.join(lines)}. To put them back type: "
        f"systemctl {word} libvirtd (virtnetworkd where it runs by itself; guests go on), or write "
        "`forward: {repair: true}`"
    )


@dataclass(frozen=True, slots=True)
class _Family:
    """What others do to packets of one version of IP."""

    tool: str
    head: str  # before its rules
    drops: bool  # its FORWARD policy is DROP
    bridged: bool  # it is asked about frames within a bridge


def _others(network: Fact, live: State, fact: Forwarding) -> Iterator[Condition]:
    """What others' rules and switches do to it; those kvmd does not touch."""
    yield from _dropped(network.bridge, live, fact, _Family("iptables", "", fact.drops, fact.bridged))
    if 6 in _versions(live):
        six = _Family("ip6tables", IPV6, fact.drops_ipv6, fact.bridged_ipv6)
        yield from _dropped(network.bridge, live, fact, six)
    for where, device in fact.astray:
        if where == network.bridge and live.forward in ROUTED:
            yield _degraded(
                "ReversePathFilter",
                f"rp_filter is strict and the way back to guests of {where} leads through {device}, so their "
                "packets are dropped; take that route away (ip route), or type: "
                f"sysctl -w net.ipv4.conf.{where}.rp_filter=2",
            )


def _dropped(bridge: str, live: State, fact: Forwarding, family: _Family) -> Iterator[Condition]:
    heads = tuple(f"{family.head}filter -A {chain}" for chain in ("FORWARD", "DOCKER"))
    let = [rule for rule in fact.rules if "ACCEPT" in rule and rule.startswith(heads)]
    passes = any(f"-i {bridge} " in rule for rule in let) and any(f"-o {bridge} " in rule for rule in let)
    command = f"{family.tool} -I {'DOCKER-USER' if f'{family.head}filter :DOCKER-USER' in fact.rules else 'FORWARD'}"
    own = has_own_table(fact) or live.forward == "open"
    if family.drops and not passes and live.forward in ROUTED and own:
        yield _degraded(
            "ForwardDropped",
            "the firewall's FORWARD policy is DROP (Docker sets it) and nothing lets packets of this network by; "
            f"type: {command} -i {bridge} -j ACCEPT; {command} -o {bridge} -j ACCEPT",
        )
    crossing = f"{family.head}filter -A LIBVIRT_FWX -i {bridge} -o {bridge} -j ACCEPT"
    within = any(crossing in rule for rule in fact.rules)
    within = within or passes or any("--physdev-is-bridged" in rule for rule in let)
    if family.bridged and family.drops and not within:
        yield _degraded(
            "BridgedFramesDropped",
            "frames between guests pass the firewall, whose FORWARD policy is DROP (Docker sets both); type: "
            f"{command} -i {bridge} -o {bridge} -j ACCEPT",
        )
