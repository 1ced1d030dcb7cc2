"""Worlds with everything that a spec can say: what `generators` draws, and what has more needs than that.

Links on links, drives on servers, macvtap, installers, orders and windows, snapshots and names on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generators import _MAKERS, Chance, Document, Names, document, machine
from generators import machine_for as host_for
from hypothesis import strategies as st
from simulator import Machine

from kvmd.api.resource import Ref, Resource
from kvmd.observed import Fact, Key, Link

PARENTS = ("eno3", "eno4", "eno5")  # of links on links
DELETION = ("Delete", "Orphan")


def vlan(number: int, chance: Chance, names: Names) -> Document:
    """A VLAN on a NIC that nobody has, perhaps on a bridge."""
    spec: dict[str, Any] = {"parent": f"eno{3 + number}", "id": 100 + number} | _stacked(
        number, chance, names, "10.100"
    )
    return document("Vlan", f"vlan{number}", spec | chance.fields(mtu=(1400, None)))


def vxlan(number: int, chance: Chance, names: Names) -> Document:
    """A VXLAN to one other host, or to a group of them."""
    spec: dict[str, Any] = {"id": 40 + number} | _stacked(number, chance, names, "10.110")
    if chance.random() < 0.5:
        spec |= {"remote": f"192.0.2.{number + 1}"} | chance.fields(local=("192.0.2.200",), parent=("eno5",))
    else:
        spec |= {"group": f"239.1.1.{number + 1}", "parent": "eno5"}
    return document("Vxlan", f"vxlan{number}", spec | chance.fields(port=(4789, 8472), mtu=(1300, None)))


def _stacked(number: int, chance: Chance, names: Names, net: str) -> dict[str, Any]:
    """What both have: a bridge or addresses, and a name."""
    spec = chance.fields(nameOnHost=(f"My_{net[-3:]}_{number}",), deletionPolicy=DELETION)
    if names.bridges and chance.random() < 0.5:
        return spec | {"bridge": chance.choice(names.bridges)}
    return spec | chance.fields(addresses=([f"{net}.{number}.1/24"], []))


def wide_machine(number: int, chance: Chance, names: Names) -> Document:
    """A machine of `generators`, with what those do not say."""
    made = machine(number, chance, names)
    spec = made["spec"]
    spec |= chance.fields(
        nameOnHost=(f"VM_{number}",),
        startup=({"order": 10 * number}, {"order": 5, "delaySeconds": 1}, {}),
        dependsOn=([{"kind": "Network", "name": name, "condition": "Ready"} for name in names.networks[:1]], []),
        updatePolicy=(
            {"restart": "Window", "window": {"schedule": "0 3 * * sun", "duration": "2h", "timeZone": "Asia/Tokyo"}},
            {"restart": "Manual"},
        ),
        install=(*_installers(names), None) if _can_install(spec) else (None,),
    )
    if chance.random() < 0.3 and spec.get("runStrategy", "Always") == "Always":
        spec["updatePolicy"] = spec.get("updatePolicy", {}) | {"onGuestReboot": chance.choice(("Ignore", "Apply"))}
    if spec.get("cloudInit") and "userData" not in spec["cloudInit"] and chance.random() < 0.5:
        spec["cloudInit"]["userDataFrom"] = chance.choice(
            ({"file": "/etc/kvmd/secrets/user-data"}, {"systemdCredential": "user-data"})
        )
    cpu = spec.get("cpu")
    if cpu and cpu.get("topology"):
        cpu["topology"] |= chance.fields(threads=(1,))
    spec["disks"] += list(_drives(number, chance, names))
    if names.uplinks and chance.random() < 0.3:
        direct = {"device": names.uplinks[-1]} | chance.fields(mode=("bridge", "vepa", "private"))
        spec["interfaces"].append({"name": "macvtap", "direct": direct})
    return made


def _can_install(spec: dict[str, Any]) -> bool:
    return spec.get("kernelBoot") is None and spec.get("runStrategy", "Always") in ("Always", "Manual", "Halted")


def _installers(names: Names) -> list[dict[str, Any]]:
    found = [{"image": image} for image in names.images[:1]] + [
        {"url": "https://a.example/install.iso"},
        {"path": "/var/lib/libvirt/images/d.iso"},
    ]
    return [{"from": source, "doneWhen": "GuestPoweroff"} for source in found]


def _drives(number: int, chance: Chance, names: Names) -> list[dict[str, Any]]:
    """Disks on servers and images."""
    found: list[dict[str, Any]] = [
        {"name": "far", "url": f"nbd://a.example/disk{number}", "format": "raw"}
        | chance.fields(access=("Auto", "Direct")),
        {"name": "web", "url": f"https://a.example/{number}.qcow2", "format": "qcow2", "readOnly": True}
        | chance.fields(access=("Auto", "Direct", "Cached")),
        {"name": "tray", "device": "cdrom", "media": {"url": "https://a.example/tray.iso", "access": "Auto"}},
    ]
    found += [{"name": "golden", "image": image, "readOnly": True} for image in names.images[:1]]
    return chance.some(found, 2) if chance.random() < 0.5 else []


def snapshots(documents: list[Document], chance: Chance) -> list[Document]:
    """Snapshots of machines that run or not, and a way back."""
    found: list[Document] = []
    for item in documents:
        if item["kind"] != "VirtualMachine" or not _can_be_snapshot(item["spec"]) or chance.random() < 0.3:
            continue
        name = item["metadata"]["name"]
        spec = {"virtualMachine": name, "memory": False} | chance.fields(nameOnHost=(f"Of_{name}",))
        found.append(document("VirtualMachineSnapshot", f"{name}-first", spec))
        if chance.random() < 0.5:
            back = {"virtualMachine": name, "snapshot": f"{name}-first"}
            found.append(document("VirtualMachineRestore", f"{name}-back", back))
    return found


def _can_be_snapshot(spec: dict[str, Any]) -> bool:
    """True where every disk that the machine may write is a qcow2 file, and there is one: kept inside of it."""
    disks = [disk for disk in spec["disks"] if disk.get("device") != "cdrom" and not disk.get("readOnly")]
    inside = all("path" in disk and disk["format"] == "qcow2" for disk in disks)
    return bool(disks) and inside and (spec.get("firmware") or {}).get("type") != "efi" and not spec.get("install")


def named(item: Document, chance: Chance) -> Document:
    """The same with what every link and network may have."""
    kind, name = item["kind"], item["metadata"]["name"]
    if kind in ("Bridge", "Tap", "Tun", "Network") and chance.random() < 0.2:
        item["spec"]["nameOnHost"] = f"My_{name}"
    if kind == "Tun":
        item["spec"] |= chance.fields(group=("kvm", None))
    if kind == "Bridge":
        _guard(item["spec"], chance)
    return item


def _guard(spec: dict[str, Any], chance: Chance) -> None:
    addresses = spec.get("addresses", {})
    if addresses.get("from") == "Static" and chance.random() < 0.2:
        net = next((cidr for cidr in addresses["static"] if cidr.endswith("/24")), None)
        addresses |= {} if net is None else {"gateway": net.replace(".1/24", ".254")}
    addresses |= chance.fields(dynamic=("Refuse", "Move")) if addresses else {}
    probe = chance.fields(defaultGateway=(True, False), addresses=([], ["192.0.2.10"]))
    spec |= chance.fields(safety=({"probe": probe, "rollbackAfterSeconds": 20}, {"probe": probe}))


MAKERS = tuple((wide_machine if make is machine else make, most) for make, most in _MAKERS[:-1])
MAKERS += ((vlan, 2), (vxlan, 2), (wide_machine, 3))


@st.composite
def worlds(draw: st.DrawFn, machines: int = 0) -> list[Document]:
    """Everything that one directory asks for, with at least that many *machines*."""
    names = Names()
    found: list[Document] = []
    for make, most in MAKERS:
        least = machines if make is wide_machine else 0
        seeds = draw(st.lists(st.integers(0, 2**32), min_size=least, max_size=most))
        for number, seed in enumerate(seeds):
            chance = Chance(seed)
            found.append(named(make(number, chance, names), chance))
    return found + snapshots(found, Chance(draw(st.integers(0, 2**32))))


def links_of_the_host() -> dict[Key, Fact]:
    """The NICs that specs may name."""
    return {key: fact for key, fact in machine_for().facts.items() if key.type == "link"}


def machine_for(*wished: Mapping[Ref, Resource]) -> Machine:
    """A host with every file and NIC that the specs name."""
    made = host_for(*wished)
    for number, name in enumerate(PARENTS):
        made.add_link(Link(name, 0, "", mac=f"02:00:00:00:01:0{number}", up=True, carrier=True, mtu=1500))
    return made
