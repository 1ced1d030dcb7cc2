"""The worlds that the properties are checked on leave nothing out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from generators import Chance, Document, Names
from worlds import MAKERS, named, snapshots

from kvmd.api.schema import leaves
from kvmd.kinds import CONTROLLERS

# The simulated host has no passt and no VLAN filter; settings of ports, logins and rates have planning cases.
UNDRAWN = {
    "Bridge": ("uplinks[].", "defaultPvid", "vlanFiltering", "maxAgeSeconds", "multicastQuerier"),
    "Network": ("bandwidth.", "portgroups[].bandwidth.", "dns.srv[].", "forward.repair", "ips[]."),
    "Tap": ("port.",),
    "VirtualMachine": (
        "interfaces[].user.",
        "devices.tablet",
        "devices.sound",
        "install.from.kernelBoot.",
        *(f"disks[].{drive}{part}" for drive in ("", "media.") for part in ("authFrom.", "cookiesFrom.", "tls.")),
    ),
}


def world(seed: int) -> list[Document]:
    """One of each at most, and snapshots of them."""
    names = Names()
    found = []
    for make, most in MAKERS:
        for number in range(most):
            chance = Chance(f"{seed} {make.__name__} {number}")
            found.append(named(make(number, chance, names), chance))
    return found + snapshots(found, Chance(seed))


def written(spec: Any, path: str = "") -> Iterator[str]:
    """The paths of everything that a spec says."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            where = f"{path}.{key}" if path else key
            yield where
            yield from written(value, where)
    elif isinstance(spec, list):
        for item in spec:
            yield from written(item, f"{path}[]")


def test_every_field_of_every_kind_is_drawn() -> None:
    found = {(item["kind"], path) for seed in range(150) for item in world(seed) for path in written(item["spec"])}
    fields = {
        (kind, leaf.path.removeprefix("spec."))
        for kind, controller in CONTROLLERS.items()
        for leaf in leaves(controller.Spec)
        if leaf.leaf
    }
    assert not [(kind, path) for kind, path in fields - found if not path.startswith(UNDRAWN.get(kind, ()))]
