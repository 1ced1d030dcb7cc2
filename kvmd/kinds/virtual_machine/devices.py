"""Devices of which a guest has one or none, and where they stand in a domain's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Literal

from kvmd import xmlmap
from kvmd.observed.domains import AGENT_CHANNEL
from kvmd.xmlmap import Element, Place

# https://libvirt.org/formatdomain.html#consoles-serial-parallel-channel-devices: the agent looks for that name.
SoundModel = Literal["ich9", "ich7", "ich6", "ac97", "es1370", "sb16", "pcspk", "usb"]


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


def _tablet_put(root: Element, wanted: bool) -> None:
    devices = xmlmap.reach(root, "devices")
    for tablet in devices.findall("input[@type='tablet']"):
        devices.remove(tablet)
    if wanted:
        ElementTree.SubElement(devices, "input", {"type": "tablet", "bus": "usb"})


def _sound_put(root: Element, model: str | None) -> None:
    """Another model is another device, in another place."""
    xmlmap.cut(root, "devices/sound")
    if model is not None:
        ElementTree.SubElement(xmlmap.reach(root, "devices"), "sound", {"model": model})


TABLET = Place(xmlmap.presence("devices/input[@type='tablet']").get, _tablet_put)
SOUND = Place(xmlmap.attribute("devices/sound", "model").get, _sound_put)
RNG = Place(xmlmap.presence("devices/rng").get, _rng_put)
AGENT = Place(_agent_get, _agent_put)
