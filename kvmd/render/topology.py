"""The packet path of every guest: NIC, TAP, bridge, uplink or NAT, outside; drawn, as JSON and as DOT."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmd.render.style import PLAIN, Style

Object = Mapping[str, Any]
_WAYS_OUT = ("uplink", "vlan", "vxlan", "network", "nat", "user")


def topology_data(objects: Sequence[Object], name: str | None = None) -> list[dict[str, Any]]:
    """One entry per virtual machine (or the one of that name), each interface with its first broken hop."""
    return [
        {
            "object": f"{item['kind']}/{item['metadata']['name']}",
            "power": item.get("status", {}).get("power", "unknown"),
            "interfaces": [_interface(interface) for interface in item.get("status", {}).get("interfaces", ())],
        }
        for item in objects
        if item["kind"] == "VirtualMachine" and name in (None, item["metadata"]["name"])
    ]


def _interface(interface: Mapping[str, Any]) -> dict[str, Any]:
    path = [dict(hop) for hop in interface.get("path") or ()]
    return {
        "name": interface.get("name", ""),
        "mac": interface.get("mac", ""),
        "attachment": interface.get("attachment", ""),
        "addresses": list(interface.get("addresses") or ()),
        "path": path,
        "brokenAt": next((_hop_name(hop) for hop in path if hop.get("broken")), None),
    }


def _hop_name(hop: Mapping[str, Any]) -> str:
    kind, name = str(hop.get("hop", "")), str(hop.get("name") or "")
    return f"{kind} {name}" if name and name != kind else kind


def topology_tree(data: Sequence[Mapping[str, Any]], style: Style = PLAIN) -> str:
    """Draw the paths, one chain per NIC."""
    lines: list[str] = []
    for machine in data:
        power = machine["power"]
        shown = style.paint(power, "green" if power == "running" else "dim")
        lines.append(f"{style.paint(machine['object'], 'bold')}  {shown}")
        interfaces = machine["interfaces"]
        for index, interface in enumerate(interfaces):
            last = index == len(interfaces) - 1
            first, *rest = interface_lines(interface, style)
            lines.append(style.glyph("corner" if last else "tee") + first)
            lines += [("   " if last else style.glyph("bar")) + line for line in rest]
        if not interfaces:
            lines.append(f"{style.glyph('corner')}no interfaces")
    return "\n".join(lines) + "\n" if lines else "No virtual machines.\n"


def interface_lines(interface: Mapping[str, Any], style: Style = PLAIN) -> list[str]:
    """Return one NIC as lines: what it is, its path, and where the path breaks."""
    addresses = " ".join(interface.get("addresses") or ()) or "no address known"
    lines = [f"{style.paint(str(interface.get('name', '')), 'cyan')}  {interface.get('mac', '')}  {addresses}"]
    path = interface.get("path") or ()
    if path:
        lines.append("   " + style.glyph("arrow").join(_chain(path, style)))
    broken = next((hop for hop in path if hop.get("broken")), None)
    if broken is not None:
        why = broken["broken"] if isinstance(broken["broken"], str) else broken.get("state") or "broken"
        text = f"{style.glyph('bad')} breaks at {_hop_name(broken)}: {why}"
        lines.append("   " + style.paint(text, "red"))
    lines += [f"   {style.glyph('bad')} {_hop_name(hop)}: {hop['narrows']}" for hop in path if hop.get("narrows")]
    return lines


def _chain(path: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """Yield the hops in order; uplinks of one bridge stand side by side, and what lies beyond is the outside."""
    for kind, group in itertools.groupby(path, key=lambda hop: str(hop.get("hop", ""))):
        yield " + ".join(_drawn(hop, style) for hop in group)
        last = kind
    if last in _WAYS_OUT:
        yield "outside"
    elif last == "bridge":
        yield "(no uplink)"


def _drawn(hop: Mapping[str, Any], style: Style) -> str:
    state = str(hop.get("state") or "")
    text = _hop_name(hop) + (f" ({state})" if state else "")
    return style.paint(text, "red") if hop.get("broken") else text


def topology_dot(data: Sequence[Mapping[str, Any]]) -> str:
    """Return a Graphviz digraph in which a shared bridge is one node."""
    nodes: dict[str, str] = {}
    edges: dict[tuple[str, str], str] = {}
    for machine in data:
        for interface in machine["interfaces"]:
            before = f"{machine['object']}:{interface['name']}"
            nodes[before] = _node(before, f"{machine['object']}\n{interface['name']}", "box", False)
            for hop, identity in _identified(interface["path"], before):
                broken = bool(hop.get("broken"))
                if identity != before:
                    nodes[identity] = _node(identity, _hop_name(hop), "ellipse", broken)
                    edges[before, identity] = "red" if broken else "black"
                before = identity
    lines = ["digraph topology {", "  rankdir=LR;", *nodes.values()]
    lines += [f"  {_quoted(start)} -> {_quoted(end)} [color={colour}];" for (start, end), colour in edges.items()]
    return "\n".join([*lines, "}"]) + "\n"


def _identified(path: Sequence[Mapping[str, Any]], nic: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each hop with its node; the guest's own NIC and its user-mode NAT are not shared between guests."""
    for hop in path:
        kind = str(hop.get("hop", ""))
        if kind == "nic":
            yield hop, nic
        elif kind in ("user", "slirp", "passt"):
            yield hop, f"{nic}:{kind}"
        else:
            yield hop, _hop_name(hop)


def _node(identity: str, label: str, shape: str, broken: bool) -> str:
    colour = ", color=red" if broken else ""
    return f"  {_quoted(identity)} [label={_quoted(label)}, shape={shape}{colour}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
