"""Small objects for tests that need no operating system in the guest, and strangers made by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hermetic import Hermetic, wait_until

MARK = "<kvmd:mark "
MARK_NAMESPACE = "https://kvmd.dev/xmlns/libvirt/1"
# Timers of the bridge that run by themselves, and what a packet that passes changes.
RUNNING = re.compile(r".*_timer$|^topology_change|^stats|^num_|^carrier_|^linkmode$|^fdb_n_learned$")


def vm(name: str, strategy: str = "Halted", *, memory: str = "64Mi", annotations: str = "", more: str = "") -> str:
    """A machine with firmware only: off within 2 s of being asked, since nobody answers the power button."""
    notes = f", annotations: {{{annotations}}}" if annotations else ""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}{notes}}}
spec:
  runStrategy: {strategy}
  accelerator: tcg
  memory: {{guest: {memory}}}
  shutdown: {{methods: [acpi], timeoutSeconds: 2}}
{more}
"""


def network(name: str, subnet: int, *, annotations: str = "", more: str = "") -> str:
    """A NAT network with DHCP."""
    notes = f", annotations: {{{annotations}}}" if annotations else ""
    net = f"192.168.{subnet}"
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {{name: {name}{notes}}}
spec:
  bridge: {{name: vb-{name}}}
  ips: [{{address: {net}.1/24, dhcp: {{ranges: [{{start: {net}.100, end: {net}.150}}]}}}}]
{more}
"""


def link(kind: str, name: str, spec: str = "{}", *, annotations: str = "") -> str:
    """A Bridge, a Tap or a Tun."""
    notes = f", annotations: {{{annotations}}}" if annotations else ""
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}{notes}}}
spec: {spec}
"""


def steady(link: dict[str, Any]) -> dict[str, Any]:
    """A link as ``ip -j -d`` shows it, without what changes by itself."""
    return {
        key: steady(value) if isinstance(value, dict) else value
        for key, value in link.items()
        if not RUNNING.match(key)
    }


HAND_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid>
  <title>made by hand</title><description>of a person</description>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:aa:00:01'/><source network='handnet'/><model type='virtio'/>
    </interface>
    <interface type='ethernet'>
      <mac address='52:54:00:aa:00:02'/><target dev='handtap' managed='no'/><model type='virtio'/>
    </interface>
    <serial type='pty'/><video><model type='vga'/></video><watchdog model='i6300esb' action='reset'/>
  </devices>
</domain>
"""
HAND_NETWORK = """
<network><name>handnet</name><uuid>5d4c1d5c-0000-4000-8000-000000000002</uuid>
  <bridge name='virbr-hand' stp='off' delay='0'/>
  <ip address='192.168.77.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.77.10' end='192.168.77.20'/></dhcp>
  </ip>
</network>
"""
HAND_UUID = "5d4c1d5c-0000-4000-8000-000000000001"


class Strangers:
    """A running VM, a network, a bridge and a TAP that a person made, and what they looked like then."""

    def __init__(self, hermetic: Hermetic, folder: Path) -> None:
        self.hermetic, self.folder = hermetic, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.disk = folder / "hand.raw"
        self.disk.write_bytes(b"precious" + bytes(1 << 20))
        run, virsh = hermetic.run, hermetic.virsh
        virsh("net-define", self._file("net.xml", HAND_NETWORK))
        virsh("net-start", "handnet")
        virsh("net-autostart", "handnet")
        run("ip", "link", "add", "handbr", "type", "bridge")
        run("ip", "link", "set", "handbr", "up")
        run("ip", "addr", "add", "10.77.0.1/24", "dev", "handbr")
        run("ip", "tuntap", "add", "handtap", "mode", "tap", "vnet_hdr")
        run("ip", "link", "set", "handtap", "master", "handbr", "up")
        virsh("define", self._file("hand.xml", HAND_DOMAIN.format(name="hand", uuid=HAND_UUID, disk=self.disk)))
        virsh("autostart", "hand")
        virsh("start", "hand")
        wait_until(lambda: {hermetic.links()[name]["operstate"] for name in ("virbr-hand", "handbr")} == {"UP"}, 20)
        self.before = self.look()

    def _file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def look(self) -> dict[str, Any]:
        """Everything about them, as virsh, ip and the file system say."""
        virsh, links = self.hermetic.virsh, self.hermetic.links()
        addresses = self.hermetic.ip("addr", "show", "dev", "handbr")
        return {
            "domain": virsh("dumpxml", "hand", "--inactive"),
            "live": virsh("dumpxml", "hand"),
            "id": virsh("domid", "hand").strip(),
            "autostart": re.findall(r"Autostart: *(\w+)", virsh("dominfo", "hand")),
            "network": virsh("net-dumpxml", "handnet", "--inactive"),
            "live network": virsh("net-dumpxml", "handnet"),
            "network state": virsh("net-info", "handnet"),
            "links": {name: steady(links[name]) for name in ("handbr", "handtap", "virbr-hand") if name in links},
            "addresses": [f"{item['local']}/{item['prefixlen']}" for item in addresses[0]["addr_info"]],
            "disk": self.disk.read_bytes()[:8],
        }

    def unharmed(self) -> None:
        """Fail where anything differs."""
        now = self.look()
        differing = {key: (self.before[key], value) for key, value in now.items() if value != self.before[key]}
        if differing:
            pytest.fail(f"what a person made was changed: {differing}")

    def close(self) -> None:
        """Remove them."""
        for words in (
            ("destroy", "hand"),
            ("undefine", "hand"),
            ("net-destroy", "handnet"),
            ("net-undefine", "handnet"),
        ):
            self.hermetic.virsh(*words, check=False)
        for name in ("handtap", "handbr"):
            self.hermetic.run("ip", "link", "del", name, check=False)


def inventory(hermetic: Hermetic) -> dict[str, set[str]]:
    """Everything on the host that kvmd could have made: names by kind."""
    virsh = hermetic.virsh
    links = hermetic.links()
    return {
        "domains": set(virsh("list", "--all", "--name").split()),
        "networks": set(virsh("net-list", "--all", "--name").split()),
        "links": {
            name
            for name, item in links.items()
            if item.get("linkinfo", {}).get("info_kind") in ("bridge", "tun") and not name.startswith(("vnet", "vb-"))
        },
    }


def wipe(hermetic: Hermetic) -> None:
    """Remove everything from a host: the next test starts from nothing."""
    found = inventory(hermetic)
    for name in found["domains"]:
        hermetic.virsh("destroy", name, check=False)
        hermetic.virsh("undefine", name, "--snapshots-metadata", "--nvram", check=False)
    for name in found["networks"]:
        hermetic.virsh("net-destroy", name, check=False)
        hermetic.virsh("net-undefine", name, check=False)
    for name in hermetic.virsh("pool-list", "--all", "--name").split():
        hermetic.virsh("pool-destroy", name, check=False)
        hermetic.virsh("pool-undefine", name, check=False)
    for name, item in hermetic.links().items():
        if item.get("linkinfo", {}).get("info_kind") in ("bridge", "tun", "vlan", "vxlan", "veth"):
            hermetic.run("ip", "link", "del", name, check=False)
