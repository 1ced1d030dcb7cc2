"""Specs as users might write them, for tests that want many: every field, every kind, names that fit together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from kvmd.api.resource import API_VERSION, Ref, Resource
from kvmd.kinds import CONTROLLERS
from kvmd.settings import Source
from kvmd.sources.decode import decode_file

Document = dict[str, Any]
SPECS = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
UPLINKS = ("eno1", "eno2")
_ABSENT = object()


def document(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> Document:
    """A document as a file holds it."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": dict(spec),
    }


def decoded(documents: Sequence[Document], file: str = "specs.yaml") -> dict[Ref, Resource]:
    """The resources of documents, through the real reader; a fault in one is a failure."""
    if not documents:
        return {}
    text = "\n---\n".join(json.dumps(item) for item in documents)
    found = decode_file(text.encode(), file, Source(), SPECS)
    assert not found.problems, "\n".join(str(problem) for problem in found.problems)
    return {resource.ref: resource for resource in found.resources}


def _fields(**strategies: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Each field written or left out."""
    items = {name: st.just(_ABSENT) | strategy for name, strategy in strategies.items()}
    return st.fixed_dictionaries(items).map(
        lambda found: {name: value for name, value in found.items() if value is not _ABSENT}
    )


_DELETION = st.sampled_from(["Delete", "Orphan"])
_OWNERS = st.sampled_from(["root", "libvirt-qemu", 1000, None])


@st.composite
def bridges(draw: st.DrawFn, number: int, free_uplinks: list[str]) -> Document:
    """A bridge with addresses of its own."""
    spec = draw(
        _fields(
            stp=st.booleans(),
            mtu=st.sampled_from([1400, 1500, 9000, None]),
            forwardDelaySeconds=st.sampled_from([2, 15, None]),
            deletionPolicy=_DELETION,
        )
    )
    if free_uplinks and draw(st.booleans()):
        spec["uplinks"] = [{"name": free_uplinks.pop()}]
    choices = [f"10.{number}.0.1/24", f"10.{number}.1.1/16", f"FD00:{number}::1/64", f"fe80::{number}/64"]
    static = draw(st.lists(st.sampled_from(choices), unique=True, max_size=3))
    if static:
        spec["addresses"] = {"from": "Static", "static": static}
    elif draw(st.booleans()):
        spec["addresses"] = {"from": "None"}
    return document("Bridge", f"br{number}", spec)


@st.composite
def taps(draw: st.DrawFn, number: int, bridge_names: Sequence[str]) -> Document:
    """A TAP, perhaps on a bridge."""
    spec = draw(
        _fields(
            owner=_OWNERS,
            group=st.sampled_from(["kvm", None]),
            multiQueue=st.booleans(),
            mtu=st.sampled_from([1400, None]),
            mac=st.just(f"FE:54:00:00:00:{number:x}"),
            deletionPolicy=_DELETION,
        )
    )
    if bridge_names and draw(st.booleans()):
        spec["bridge"] = draw(st.sampled_from(list(bridge_names)))
    return document("Tap", f"tap{number}", spec)


@st.composite
def tuns(draw: st.DrawFn, number: int) -> Document:
    """A TUN with addresses and routes."""
    routes = [
        {"to": f"10.{20 + number}.0.0/16"},
        {"to": f"10.{40 + number}.0.0/16", "metric": 7, "via": f"10.9.{number}.2"},
        {"to": f"FD0{number}::/64"},
    ]
    spec = draw(
        _fields(
            owner=_OWNERS,
            mtu=st.sampled_from([1400, None]),
            addresses=st.lists(
                st.sampled_from([f"10.9.{number}.1/30", f"FD09:{number}::1/64"]), unique=True, max_size=2
            ),
            deletionPolicy=_DELETION,
        )
    )
    spec["routes"] = draw(st.lists(st.sampled_from(routes), unique_by=lambda route: route["to"], max_size=3))
    return document("Tun", f"tun{number}", spec)


@st.composite
def networks(draw: st.DrawFn, number: int) -> Document:
    """A network of libvirt."""
    prefix = f"192.168.{100 + number}"
    dhcp = draw(
        _fields(
            ranges=st.just([{"start": f"{prefix}.100", "end": f"{prefix}.199"}]),
            hosts=st.just([{"mac": f"52:54:00:AA:00:0{number}", "ip": f"{prefix}.9", "name": "printer"}]),
        )
    )
    four: dict[str, Any] = {"address": f"{prefix}.1/24"} | ({"dhcp": dhcp} if dhcp else {})
    choices = [four, {"address": f"FD00:{100 + number}::1/64"}, {"address": f"172.16.{number}.1/24"}]
    ips = draw(st.lists(st.sampled_from(choices), unique_by=lambda ip: ip["address"], max_size=3))
    modes = ["nat", "isolated", *(["route", "open"] if ips else [])]
    spec: dict[str, Any] = draw(
        _fields(
            forward=st.builds(lambda mode: {"mode": mode}, st.sampled_from(modes)),
            domain=st.sampled_from([{"name": "lab.example"}, {"name": None}]),
            disruptionPolicy=st.sampled_from(["Wait", "Replug"]),
            deletionPolicy=_DELETION,
        )
    )
    bridge = draw(_fields(name=st.just(f"virbr-t{number}"), stp=st.booleans()))
    spec |= {"bridge": bridge} if bridge else {}
    spec |= {"ips": ips} if ips or draw(st.booleans()) else {}
    return document("Network", f"net{number}", spec)


@st.composite
def _cpus(draw: st.DrawFn) -> dict[str, Any]:
    vcpus = draw(st.integers(1, 4))
    cpu: dict[str, Any] = draw(_fields(model=st.sampled_from(["host-model", "maximum", "Nehalem", None])))
    cpu |= draw(st.sampled_from([{}, {"vcpus": vcpus}, {"vcpus": vcpus, "maxVcpus": 4}]))
    if draw(st.integers(0, 3)) == 0:
        cpu |= {"topology": {"sockets": cpu.get("maxVcpus", cpu.get("vcpus", 1)), "cores": 1}}
    return cpu


@st.composite
def _disks(draw: st.DrawFn, machine: str, q35: bool, orders: Any) -> list[dict[str, Any]]:
    found = []
    for name in draw(st.lists(st.sampled_from(["root", "data", "logs", "cd0", "cd1"]), unique=True, max_size=4)):
        path = f"/var/lib/libvirt/images/{machine}-{name}.img"
        disk: dict[str, Any] = {"name": name}
        if name.startswith("cd"):
            disk |= {"device": "cdrom"}
            disk |= draw(
                st.sampled_from([{}, {"media": None}, {"media": {"path": path}}, {"media": {"path": "/dev/sr0"}}])
            )
            disk |= draw(_fields(bus=st.sampled_from(["sata", "scsi", "usb"])))
        else:
            disk |= {"path": path, "format": draw(st.sampled_from(["raw", "qcow2"]))}
            buses = ["virtio", "scsi", "sata", "usb", *(() if q35 else ("ide",))]
            disk |= draw(
                _fields(
                    bus=st.sampled_from(buses),
                    readOnly=st.booleans(),
                    serial=st.sampled_from(["root01", "A.b_+-1", None]),
                    cache=st.sampled_from(["none", "writeback", "default"]),
                )
            )
        if draw(st.integers(0, 3)) == 0:
            disk["bootOrder"] = next(orders)
        found.append(disk)
    return found


@st.composite
def _interfaces(draw: st.DrawFn, number: int, world: World, orders: Any) -> list[dict[str, Any]]:
    found = []
    names = draw(st.lists(st.sampled_from(["net0", "net1", "net2"]), unique=True, max_size=3))
    for name in names:
        choices: list[dict[str, Any]] = [{"user": {}}]
        choices += [{"bridge": bridge} for bridge in world.bridges]
        choices += [{"network": network} for network in world.networks]
        choices += [{"tap": world.taps[-1]}] if world.taps else []
        nic = {"name": name} | draw(st.sampled_from(choices))
        if "tap" in nic:
            world.taps.pop()
        nic |= draw(
            _fields(
                mac=st.just(f"52:54:0:0:{number}:{name[-1]}"),
                model=st.sampled_from(["virtio", "e1000", "rtl8139"]),
                link=st.sampled_from(["up", "down"]),
            )
        )
        if "network" in nic and draw(st.booleans()):
            nic["ip"] = f"192.168.{100 + int(nic['network'][-1])}.{10 + 10 * number + int(name[-1])}"
        if draw(st.integers(0, 3)) == 0:
            nic["bootOrder"] = next(orders)
        found.append(nic)
    return found


class World:
    """The names that the objects of one world may still use."""

    def __init__(self, bridges: list[str], networks: list[str], taps: list[str]) -> None:
        self.bridges, self.networks, self.taps = bridges, networks, taps


@st.composite
def machines(draw: st.DrawFn, number: int, world: World) -> Document:
    """A virtual machine with every field that there is."""
    orders = itertools.count(1)
    machine = draw(st.sampled_from(["q35", "pc", "pc-q35-7.2"]))
    guest = draw(st.sampled_from(["256Mi", "512Mi", "1Gi"]))
    memory = {"guest": guest} | draw(_fields(maxGuest=st.sampled_from(["1Gi", "2Gi"]), hotplug=st.just("Balloon")))
    spec: dict[str, Any] = {"memory": memory} | draw(
        _fields(
            runStrategy=st.sampled_from(["Always", "RerunOnFailure", "Once", "Manual", "Halted"]),
            accelerator=st.sampled_from(["auto", "tcg", None]),
            cpu=_cpus(),
            kernelBoot=st.sampled_from(
                [
                    None,
                    {"kernel": {"path": "/boot/vmlinuz"}},
                    {"kernel": {"path": "/boot/vmlinuz"}, "initrd": {"path": "/boot/initrd"}, "args": ""},
                    {"kernel": {"path": "/boot/vmlinuz"}, "initrd": None, "args": 'console=ttyS0 a="b" <&>'},
                ]
            ),
            shutdown=_fields(
                methods=st.sampled_from([["acpi"], ["agent", "acpi"]]),
                timeoutSeconds=st.sampled_from([20, 120]),
                forceAfterTimeout=st.booleans(),
            ),
            updatePolicy=_fields(restart=st.sampled_from(["Never", "Manual", "Automatic"])),
            driftPolicy=st.sampled_from(["Correct", "Report", "Ignore"]),
            deletionPolicy=_DELETION,
        )
    )
    spec |= {} if machine == "q35" and draw(st.booleans()) else {"machine": machine}
    spec["disks"] = draw(_disks(f"vm{number}", "q35" in machine, orders))
    spec["interfaces"] = draw(_interfaces(number, world, orders))
    names = draw(st.lists(st.sampled_from(["console", "second"]), unique=True, max_size=2))
    serial = [{"name": name} | draw(_fields(file=st.just(f"/var/log/vm{number}-{name}.log"))) for name in names]
    spec |= {"devices": {"serial": serial}} if serial else {}
    annotations = draw(
        _fields(
            **{
                "kvmd.dev/restarted-at": st.sampled_from(["then", "now"]),
                "kvmd.dev/prune": st.sampled_from(["enabled", "disabled", "confirm"]),
            }
        )
    )
    return document("VirtualMachine", f"vm{number}", spec, **({"annotations": annotations} if annotations else {}))


@st.composite
def worlds(draw: st.DrawFn, least: int = 0) -> list[Document]:
    """Everything that one directory asks for."""
    free = list(UPLINKS)
    found: list[Document] = []
    for number in range(draw(st.integers(0, 2))):
        found.append(draw(bridges(number, free)))
    names = [item["metadata"]["name"] for item in found]
    for number in range(draw(st.integers(0, 3))):
        found.append(draw(taps(number, names)))
    tap_names = [item["metadata"]["name"] for item in found if item["kind"] == "Tap"]
    found += [draw(tuns(number)) for number in range(draw(st.integers(0, 2)))]
    nets = [draw(networks(number)) for number in range(draw(st.integers(0, 2)))]
    world = World(names, [item["metadata"]["name"] for item in nets], tap_names)
    found += nets
    found += [draw(machines(number, world)) for number in range(draw(st.integers(least, 3)))]
    return found
