"""Putting back what forwarding of a network needs: switches of the kernel, libvirt's chains, the rules in them."""

from __future__ import annotations

import contextlib
from typing import Any

import libvirt

from kvmd import ops
from kvmd.errors import Refused, Retry
from kvmd.host.preflight.tools import output_of, read_text

# A reservation that no network has: libvirt writes the rules of a network anew when one is to go, there or not.
_MANGLE = ("mangle", "POSTROUTING", "LIBVIRT_PRT")
_NOBODY = "<host mac='52:54:00:00:00:00' ip='192.0.2.1'/>"
# The chains that a process of libvirt makes once, when it first starts a network.
_TABLE = """
add table {family} libvirt_network
add chain {family} libvirt_network forward {{ type filter hook forward priority 0; policy accept; }}
add chain {family} libvirt_network guest_output
add chain {family} libvirt_network guest_input
add chain {family} libvirt_network guest_cross
add rule {family} libvirt_network forward counter jump guest_cross
add rule {family} libvirt_network forward counter jump guest_input
add rule {family} libvirt_network forward counter jump guest_output
add chain {family} libvirt_network guest_nat {{ type nat hook postrouting priority 100; policy accept; }}
"""
_DEFAULT_BY_ADVERTISEMENT = 0x10000 | 0x40000  # RTF_DEFAULT, RTF_ADDRCONF


def repair(operation: ops.NetworkRepair, network: Any) -> None:
    """Put back what the operation names; the next look decides."""
    for name in operation.switches:
        if name.startswith("net.ipv6."):
            _keep_the_hosts_own_way(name)
        path = f"/proc/sys/{name.replace('.', '/')}"
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("1\n")
        except OSError as error:
            raise Retry(f"{path} cannot be written: {error.strerror}", hint=f"sysctl -w {name}=1") from None
    # libvirt writes nothing at all where one of its chains is gone: those of IPv6 and of the table mangle count, too.
    jumps = (*operation.jumps, _MANGLE) if operation.jumps else ()
    for tool in ("iptables", "ip6tables"):
        for table, parent, chain in jumps:
            command = (tool, "-w", "5", "-t", table)
            if output_of(*command, "-C", parent, "-j", chain):  # silent where it is there
                output_of(*command, "-N", chain)
                output_of(*command, "-I", parent, "-j", chain)
    for family in ("ip", "ip6") if operation.table else ():
        if not (output_of("nft", "list", "table", family, "libvirt_network") or "").startswith("table"):
            output_of("nft", _TABLE.format(family=family))
    if operation.rules:
        section, delete = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE
        with contextlib.suppress(libvirt.libvirtError):  # that nobody has it
            network.update(delete, section, 0, _NOBODY, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)


def _keep_the_hosts_own_way(name: str) -> None:
    """Raise Refused where the host has its way out by a router's advertisement: a host that forwards hears none."""
    for line in (read_text("/proc/net/ipv6_route") or "").splitlines():
        *_, flags, link = line.split()
        accepts = read_text(f"/proc/sys/net/ipv6/conf/{link}/accept_ra")
        if int(flags, 16) & _DEFAULT_BY_ADVERTISEMENT == _DEFAULT_BY_ADVERTISEMENT and accepts != "2":
            raise Refused(
                f"{name}=1 would take the host's own default route of IPv6 away, which a router advertises on {link}",
                hint=f"type first: sysctl -w net.ipv6.conf.{link}.accept_ra=2",
            )
