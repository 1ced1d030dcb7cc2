"""NICs in a portgroup of their network: whether the network has it, and which limits are its."""

from __future__ import annotations

import copy

from kvmd import ops, xmlmap
from kvmd.api.resource import Ref
from kvmd.kinds.virtual_machine.domain import ALIAS_NIC, Known, State, nic_elements
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain, Key, Network
from kvmd.plan.difference import Change
from kvmd.plan.look import Look
from kvmd.xmlmap import Element

_PLUGS = (ops.DomainStart, ops.DomainAttach, ops.DomainUpdateDevice)


def unready(operation: ops.Op, spec: Spec, look: Look) -> tuple[str, ...]:
    """The portgroups that an operation needs and their networks have not: libvirt would silently set no limits."""
    nics = [nic for nic in spec.interfaces if nic.portgroup] if isinstance(operation, _PLUGS) else []
    if isinstance(operation, ops.DomainAttach | ops.DomainUpdateDevice):
        nics = [nic for nic in nics if operation.alias == ALIAS_NIC + nic.name]
    return tuple(why for nic in nics if (why := _why_not(nic, look)))


def ready(spec: Spec, look: Look) -> bool:
    """True where every portgroup that it names is there."""
    return not any(nic.portgroup and _why_not(nic, look) for nic in spec.interfaces)


def _why_not(nic: Interface, look: Look) -> str:
    key = look.key(Ref("Network", str(nic.network)))
    network = look.fact(key)
    if not isinstance(network, Network) or network.live is None:
        return ""  # waited for by itself
    names = sorted(item.get("name", "") for item in xmlmap.parse(network.live).findall("portgroup"))
    if nic.portgroup in names:
        return ""
    return f"portgroup {nic.portgroup}, which network {key.name} does not have (it has: {', '.join(names) or 'none'})"


def without_its_limits(
    changes: tuple[Change, ...], domain: Domain, known: Known, want: State, look: Look
) -> tuple[Change, ...]:
    """Leave out limits that a running NIC has from its portgroup: libvirt shows them as if they were its own."""
    if not any(".bandwidth." in change.path for change in changes):
        return changes
    own = own_limits(domain, known)
    grouped = {
        f"interfaces[{nic.name}].bandwidth."
        for nic in want.interfaces
        if own.get(nic.name) is None and _limited(nic.attachment, nic.portgroup, look)
    }
    return tuple(
        change for change in changes if change.after is not None or not change.path.startswith(tuple(grouped))
    )


def _limited(attachment: str, portgroup: str | None, look: Look) -> bool:
    """True where that group, or the one that is taken where none is named, sets limits."""
    kind, _, name = attachment.partition(":")
    network = look.fact(Key("network", name)) if kind == "network" else None
    if not isinstance(network, Network) or network.live is None:
        return False
    groups = xmlmap.parse(network.live).findall("portgroup")
    mine = [item for item in groups if (item.get("name") == portgroup if portgroup else item.get("default") == "yes")]
    return any(item.find("bandwidth") is not None for item in mine)


def own_limits(domain: Domain, known: Known) -> dict[str, Element | None]:
    """The limits that the definition gives each NIC itself."""
    if not domain.config:
        return {}
    return {name: nic.find("bandwidth") for name, nic in nic_elements(xmlmap.parse(domain.config), known)}


def with_own_limits(element: Element, domain: Domain, known: Known, name: str) -> Element:
    """A running NIC without the limits of the group that it leaves: as its own they would go with it."""
    changed = copy.deepcopy(element)
    xmlmap.cut(changed, "bandwidth")
    if (own := own_limits(domain, known).get(name)) is not None:
        changed.append(copy.deepcopy(own))
    return changed
