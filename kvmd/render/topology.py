"""The packet path of every guest: NIC, TAP, bridge, uplink or NAT, outside; drawn, as JSON and as DOT."""

from __future__ import annotations

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
        "brokenAt": _hop_name(broken) if (broken := broken_hop(path)) else None,
    }


def broken_hop(path: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first hop that lets nothing through: on the way that all frames take, else where no way out is whole."""
    trunk, ways = _parts(path)
    found = next((hop for hop in trunk if hop.get("broken")), None)
    if found is not None or not ways:
        return found
    breaks = [next((hop for hop in way if hop.get("broken")), None) for way in ways]
    return breaks[0] if all(breaks) else None


def _parts(path: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[list[Mapping[str, Any]]]]:
    """The hops that every frame passes, and the ways out beyond the last of them."""
    trunk = [hop for hop in path if "behind" not in hop]
    beyond = [hop for hop in path if "behind" in hop]
    ways = []
    for first in (hop for hop in beyond if "" in hop["behind"]):
        way, following = [first], _after(first, beyond)
        while following is not None and len(way) < len(beyond):
            way.append(following)
            following = _after(following, beyond)
        ways.append(way)
    return trunk, ways


def _after(hop: Mapping[str, Any], beyond: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((other for other in beyond if hop["name"] in other["behind"]), None)


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
    lines += [f"   {line}" for line in _chains(path, style)]
    broken = broken_hop(path)
    if broken is not None:
        why = broken["broken"] if isinstance(broken["broken"], str) else broken.get("state") or "broken"
        text = f"{style.glyph('bad')} breaks at {_hop_name(broken)}: {why}"
        lines.append("   " + style.paint(text, "red"))
    lines += [f"   {style.glyph('bad')} {_hop_name(hop)}: {hop['narrows']}" for hop in path if hop.get("narrows")]
    return lines


def _chains(path: Sequence[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """Yield the hops in order; of several ways out each further one is a line of its own."""
    if not path:
        return
    trunk, ways = _parts(path)
    arrow, before = style.glyph("arrow"), [_drawn(hop, style) for hop in trunk]
    if not ways:
        kind = path[-1].get("hop")
        end = ["outside"] if kind in _WAYS_OUT else ["(no uplink)"] if kind == "bridge" else []
        yield arrow.join([*before, *end])
    for way in ways:
        yield arrow.join([*before, *(_drawn(hop, style) for hop in way), "outside"])
        before = [f"and {_hop_name(trunk[-1])}"] if trunk else []


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
            beyond: dict[str, str] = {}  # what may lie before a hop on a way out, by the name that the hop gives it
            for hop, identity in _identified(interface["path"], before):
                broken = bool(hop.get("broken"))
                behind = [beyond.get(name, before) for name in hop["behind"]] if "behind" in hop else [before]
                if identity != before:
                    nodes[identity] = _node(identity, _label(hop), "ellipse", broken)
                    edges |= {(start, identity): "red" if broken else "black" for start in behind}
                if "behind" in hop:
                    beyond[str(hop["name"])] = identity
                else:
                    before = identity
    lines = ["digraph topology {", "  rankdir=LR;", *nodes.values()]
    lines += [f"  {_quoted(start)} -> {_quoted(end)} [color={colour}];" for (start, end), colour in edges.items()]
    return "\n".join([*lines, "}"]) + "\n"


def _label(hop: Mapping[str, Any]) -> str:
    """A hop with its state and its MTU."""
    more = [str(hop["state"])] if hop.get("state") else []
    more += [f"MTU {hop['mtu']}"] if hop.get("mtu") else []
    return "\n".join([_hop_name(hop), *more])


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
