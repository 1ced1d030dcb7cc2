"""Devices of which a guest has one or none, and where they stand in a domain's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from kvmd import xmlmap
from kvmd.xmlmap import Element, Place

# https://libvirt.org/formatdomain.html#consoles-serial-parallel-channel-devices: the agent looks for that name.
AGENT_CHANNEL = "org.qemu.guest_agent.0"


def _rng_put(root: Element, wanted: bool) -> None:
    """Random numbers of the host's own pool, which never blocks."""
    xmlmap.cut(root, "devices/rng")
    if wanted:
        rng = ElementTree.SubElement(xmlmap.reach(root, "devices"), "rng", {"model": "virtio"})
        ElementTree.SubElement(rng, "backend", {"model": "random"}).text = "/dev/urandom"


def _agent_get(root: Element) -> bool:
    targets = (channel.find("target") for channel in xmlmap.children(root, "devices/channel"))
    return any(target is not None and target.get("name") == AGENT_CHANNEL for target in targets)


def _agent_put(root: Element, wanted: bool) -> None:
    """Other channels stay; the virtio-serial controller is libvirt's to add."""
    devices = xmlmap.reach(root, "devices")
    for channel in devices.findall("channel"):
        if channel.find(f"target[@name='{AGENT_CHANNEL}']") is not None:
            devices.remove(channel)
    if wanted:
        channel = ElementTree.SubElement(devices, "channel", {"type": "unix"})
        ElementTree.SubElement(channel, "target", {"type": "virtio", "name": AGENT_CHANNEL})


RNG = Place(xmlmap.presence("devices/rng").get, _rng_put)
AGENT = Place(_agent_get, _agent_put)
