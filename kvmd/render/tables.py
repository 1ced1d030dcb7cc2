"""Objects, events and checks as aligned columns, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kvmd.render.style import PLAIN, Style

Object = Mapping[str, Any]
_ASKING = (
    "SpecInvalid",
    "Conflict",
    "CopiedMark",
    "BackendUnavailable",
    "Stalled",
    "Blocked",
    "PruneHeld",
    "Degraded",
    "RestartRequired",
    "Reconciling",
)
_BAD = frozenset(_ASKING[:5]) | {"NotReady"}


def columns(rows: Sequence[Sequence[str]], colours: Callable[[str], tuple[str, ...]] | None = None) -> str:
    """Align *rows*, the first of which is the heading; *colours* gives the escape codes of a cell."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            padding = " " * (widths[index] - len(cell)) if index < len(row) - 1 else ""
            codes = colours(cell) if colours else ()
            shown = f"\x1b[{';'.join(codes)}m{cell}\x1b[0m" if codes and cell else cell
            cells.append(shown + padding)
        lines.append("   ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def condition_of(item: Object, type_: str) -> Mapping[str, Any] | None:
    """Return one condition of an object's status, or None."""
    conditions = item.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type_), None)


def is_true(item: Object, type_: str) -> bool:
    """True where the object has that condition with status True."""
    condition = condition_of(item, type_)
    return condition is not None and condition["status"] == "True"


def state_of(item: Object) -> str:
    """Return the one word that matters most of an object's conditions."""
    for type_ in _ASKING:
        if is_true(item, type_):
            return type_
    return "Ready" if is_true(item, "Ready") else "NotReady"


def _message_of(item: Object) -> str:
    state = state_of(item)
    condition = condition_of(item, "Ready" if state == "NotReady" else state)
    if condition is None or state == "Ready":
        return ""
    return str(condition.get("message") or condition.get("reason") or "")


def _names(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value)
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable):
        return "" if value is None else str(value)
    parts = [
        str(item.get("name") or item.get("cidr") or item) if isinstance(item, Mapping) else str(item)
        for item in value
    ]
    return ",".join(parts)


def _count(value: Any) -> str:
    return (
        str(len(value)) if isinstance(value, Sequence | Mapping) and not isinstance(value, str) else str(value or 0)
    )


def _status(name: str, default: str = "") -> Callable[[Object], str]:
    return lambda item: _names(item.get("status", {}).get(name, default))


def _spec(name: str) -> Callable[[Object], str]:
    return lambda item: _names(item.get("spec", {}).get(name))


def _yes(name: str) -> Callable[[Object], str]:
    return lambda item: {True: "yes", False: "no"}.get(item.get("status", {}).get(name), "unknown")


def _guest_addresses(item: Object) -> str:
    """Leases; where a NIC has none, what the agent in the guest says, and that it does."""
    found: list[str] = []
    for interface in item.get("status", {}).get("interfaces", ()):
        said = (f"{address} (agent)" for address in interface.get("agentAddresses") or () if "fe80:" not in address)
        found += interface.get("addresses") or said
    return ",".join(found)


def _interface_names(item: Object) -> str:
    found = []
    for interface in item.get("status", {}).get("interfaces", ()):
        attachment = interface.get("attachment")
        to = interface.get("tap") or (_names(attachment) if attachment else "")
        found.append(f"{interface.get('name')}:{to}".rstrip(":"))
    return ",".join(found)


Column = tuple[str, Callable[[Object], str]]


def _link_addresses(item: Object) -> str:
    """Link-local addresses are on every link and say nothing."""
    addresses = item.get("status", {}).get("addresses") or ()
    return ",".join(address for address in addresses if not address.startswith("fe80:"))


_LINK: tuple[Column, ...] = (("STATE", _status("operState", "unknown")), ("ADDRESSES", _link_addresses))
_LINK_WIDE: tuple[Column, ...] = (("CARRIER", _yes("carrier")),)
_KIND_COLUMNS: dict[str, tuple[Column, ...]] = {
    "VirtualMachine": (("POWER", _status("power", "unknown")), ("ADDRESSES", _guest_addresses)),
    "VirtualMachineSnapshot": (("MACHINE", _spec("virtualMachine")), ("TAKEN", _status("taken"))),
    "VirtualMachineRestore": (("MACHINE", _spec("virtualMachine")), ("SNAPSHOT", _spec("snapshot"))),
    "Network": (("ACTIVE", _yes("active")), ("BRIDGE", _status("bridge"))),
    "Bridge": (*_LINK, ("PORTS", _status("ports"))),
    "Tap": (("STATE", _status("operState", "unknown")), ("BRIDGE", _spec("bridge"))),
    "Tun": _LINK,
    "Vlan": (*_LINK, ("PARENT", _spec("parent"))),
    "Vxlan": (*_LINK, ("ID", _spec("id"))),
}
_KIND_WIDE: dict[str, tuple[Column, ...]] = {
    "VirtualMachine": (("ACCELERATOR", _status("accelerator")), ("INTERFACES", _interface_names)),
    "Network": (("LEASES", lambda item: _count(item.get("status", {}).get("leases"))),),
    "Bridge": _LINK_WIDE,
    "Tap": _LINK_WIDE,
    "Tun": _LINK_WIDE,
    "Vlan": _LINK_WIDE,
    "Vxlan": _LINK_WIDE,
}


def _columns_of(kind: str, wide: bool, prefix: str) -> list[Column]:
    chosen: list[Column] = [
        ("NAME", lambda item: f"{prefix}{item['metadata']['name']}"),
        ("READY", lambda item: "yes" if is_true(item, "Ready") else "no"),
        *_KIND_COLUMNS.get(kind, ()),
        ("PENDING", lambda item: _count(item.get("status", {}).get("pendingChanges", ()))),
        ("STATE" if kind not in ("Bridge", "Tap", "Tun", "Vlan", "Vxlan") else "CONDITION", state_of),
    ]
    if wide:
        chosen += [
            *_KIND_WIDE.get(kind, ()),
            ("GENERATION", _generation),
            ("SOURCE", _status("source")),
            ("MESSAGE", _message_of),
        ]
    return chosen


def _generation(item: Object) -> str:
    status = item.get("status", {})
    return f"{status.get('observedGeneration', 0)}/{status.get('generation', 0)}"


def _cell_colours(cell: str) -> tuple[str, ...]:
    if cell in ("Ready", "yes", "running", "up", "ok"):
        return ("32",)
    if cell in _BAD or cell in ("crashed", "down", "failed", "error"):
        return ("31",)
    if cell in _ASKING or cell in ("Warning", "warning"):
        return ("33",)
    return ()


def objects_table(
    objects: Sequence[Object], *, wide: bool = False, headings: bool = True, style: Style = PLAIN
) -> str:
    """One table per kind; where there are several kinds, each name carries its own."""
    kinds = list(dict.fromkeys(item["kind"] for item in objects))
    tables = []
    for kind in kinds:
        chosen = _columns_of(kind, wide, f"{kind}/" if len(kinds) > 1 else "")
        rows = [[read(item) or "-" for _, read in chosen] for item in objects if item["kind"] == kind]
        rows.insert(0, [heading for heading, _ in chosen])
        text = columns(rows, _cell_colours if style.colour else None)
        tables.append(text if headings else text.split("\n", 1)[1])
    return ("\n" if headings else "").join(tables)


def object_rows(objects: Sequence[Object], *, wide: bool = False) -> dict[str, str]:
    """One line per object, by reference: what ``get -w`` compares."""
    rows = {}
    for item in objects:
        reference = f"{item['kind']}/{item['metadata']['name']}"
        cells = [read(item) or "-" for _, read in _columns_of(item["kind"], wide, f"{item['kind']}/")]
        rows[reference] = "   ".join(cells)
    return rows


def names(objects: Sequence[Object]) -> str:
    """``Kind/name``, one a line."""
    return "".join(f"{item['kind']}/{item['metadata']['name']}\n" for item in objects)


def age(seconds: float) -> str:
    """A duration as kubectl writes it: 5s, 3m, 2h, 4d."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size or (unit == "d" and whole >= size):
            return f"{whole // size}{unit}"
    return f"{whole}s"


def events_table(
    events: Sequence[Mapping[str, Any]], now: float, *, headings: bool = True, style: Style = PLAIN
) -> str:
    """Events, oldest first."""
    rows = [["LAST SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"]]
    rows += [
        [age(now - item["time"]), item["type"], item["reason"], item["object"], str(item["count"]), item["message"]]
        for item in events
    ]
    text = columns(rows, _cell_colours if style.colour else None)
    return text if headings else text.split("\n", 1)[1]


def event_line(event: Mapping[str, Any], style: Style = PLAIN) -> str:
    """One event on one line, with the time of day: what watching prints."""
    moment = datetime.fromtimestamp(event["time"], UTC).astimezone().strftime("%H:%M:%S")
    warning = event["type"] == "Warning"
    mark = style.paint(style.glyph("bad" if warning else "ok"), "red" if warning else "green")
    count = f" (x{event['count']})" if event["count"] > 1 else ""
    return f"{moment} {mark} {event['object']}  {event['reason']}: {event['message']}{count}"
