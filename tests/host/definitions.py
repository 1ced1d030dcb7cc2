"""Definitions on the real QEMU driver: libvirt completes, keeps or refuses what the simulated host is given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

from simulator import SOME_HOST, Impossible, Machine

from kvmd import ops, xmlmap
from kvmd.observed import Domain, Network


class Definitions(Machine):
    """The simulated host with libvirt's own hand on every definition: it completes it, keeps it or refuses it."""

    def __init__(self, connection: Any) -> None:
        capabilities = ElementTree.fromstring(connection.getCapabilities())
        aliases = {
            (item.text or "", item.get("canonical", ""))
            for item in capabilities.findall("guest/arch[@name='x86_64']/machine")
            if item.get("canonical")
        }
        super().__init__(
            replace(SOME_HOST, machines=tuple(sorted(aliases)), libvirt_version=connection.getLibVersion())
        )
        self.connection = connection
        self.defined = 0

    def define(self, xml: str) -> Domain:
        """Through libvirt and back."""
        import libvirt

        try:
            domain = self.connection.defineXML(xml)
        except libvirt.libvirtError as error:
            raise Impossible(f"{error}\n{xml}") from None
        self.defined += 1
        text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
        return self.keep_definition(xmlmap.parse(text))

    def define_network(self, xml: str) -> Network:
        """Through libvirt and back."""
        import libvirt

        try:
            made = self.connection.networkDefineXML(xml)
        except libvirt.libvirtError as error:
            raise Impossible(f"{error}\n{xml}") from None
        self.defined += 1
        return self.keep_network(xmlmap.parse(made.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)))

    def execute(self, operation: ops.Op) -> None:
        """Undefine there, too."""
        super().execute(operation)
        if isinstance(operation, ops.DomainUndefine):
            self.connection.lookupByUUIDString(operation.uuid).undefine()
        if isinstance(operation, ops.NetworkUndefine):
            self.connection.networkLookupByUUIDString(operation.uuid).undefine()

    def forget(self) -> None:
        """Undefine everything."""
        import libvirt

        for domain in self.connection.listAllDomains():
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        for network in self.connection.listAllNetworks():
            network.undefine()
