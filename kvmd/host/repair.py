"""Putting back what forwarding of a network needs: switches of the kernel, libvirt's chains, the rules in them."""

from __future__ import annotations

import contextlib
from typing import Any

import libvirt

from kvmd import ops
from kvmd.errors import Retry
from kvmd.host.preflight_tools import output_of

# A reservation that no network has: libvirt writes the rules of a network anew when one is to go, there or not.
_MANGLE = ("mangle", "POSTROUTING", "LIBVIRT_PRT")
_NOBODY = "<host mac='52:54:00:00:00:00' ip='192.0.2.1'/>"


def repair(operation: ops.NetworkRepair, network: Any) -> None:
    """Put back what the operation names; the next look decides."""
    for name in operation.switches:
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
    if operation.rules:
        section, delete = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE
        with contextlib.suppress(libvirt.libvirtError):  # that nobody has it
            network.update(delete, section, 0, _NOBODY, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)
