"""The screen: VNC or SPICE, on localhost or a socket unless asked, its password by reference; and the video card.

Facts hold a digest in the place of a password (kvmd/host/libvirtd/passwords.py): it can be compared, never shown.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any, Literal

from kvmd import xmlmap
from kvmd.api.quantity import Address, HostPath, Text
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.virtual_machine.secret import SecretFrom, password_fact, secret_credential, secret_file
from kvmd.plan.look import Look
from kvmd.xmlmap import Element, Place

LOCALHOST = "127.0.0.1"
SOCKET = "socket"
ALIAS_VIDEO = "ua-video"  # of a card that kvmd made
DEFAULT_VIDEO = "vga"  # what BIOS, UEFI and every guest can drive
_UNLESS = "NextBoot where there was no password before, or is none afterwards"
_SCREENS = ("vnc", "spice")


class PasswordFrom(SecretFrom):
    """Where the password is read that no spec and no log shall show: exactly one."""

    file: HostPath | None = secret_file("web-vnc", unless=_UNLESS)
    systemd_credential: Text | None = secret_credential("web-vnc", unless=_UNLESS)


class Graphics(SpecModel):
    """The screen of the machine, to be looked at from elsewhere."""

    type: Literal["vnc", "spice"] = leaf("vnc", about="The protocol.", example="vnc", update=Update.NEXT_BOOT)
    listen: Address | Literal["socket"] = leaf(
        LOCALHOST,
        about="Address to listen on, or `socket` for a UNIX socket that libvirt makes. Anything but localhost shows "
        "the screen to the network.",
        example="127.0.0.1",
        update=Update.NEXT_BOOT,
    )
    password_from: PasswordFrom | None = branch(
        None,
        about="The password; null asks for none, a new content is a new password. VNC takes eight characters.",
    )


class Video(SpecModel):
    """The video card."""

    model: Literal["vga", "virtio", "qxl", "bochs", "cirrus", "ramfb", "none"] = leaf(
        DEFAULT_VIDEO, about="Its model.", example="virtio", update=Update.NEXT_BOOT
    )


def _screen(root: Element) -> Element | None:
    return next((item for item in xmlmap.children(root, "devices/graphics") if item.get("type") in _SCREENS), None)


def _type_get(root: Element) -> str | None:
    screen = _screen(root)
    return None if screen is None else screen.get("type")


def _type_put(root: Element, type: str | None) -> None:
    devices = xmlmap.reach(root, "devices")
    screen = _screen(root)
    listen = None if screen is None else _listen_get(root)
    if screen is not None:
        devices.remove(screen)
    if type is None:
        while (screen := _screen(root)) is not None:
            devices.remove(screen)
    if type != "spice":
        # They speak SPICE with somebody whom there is no more.
        for tag in ("audio[@type='spice']", "channel[@type='spicevmc']", "redirdev[@type='spicevmc']"):
            for device in devices.findall(tag):
                devices.remove(device)
    if type is not None:
        ElementTree.SubElement(devices, "graphics", {"type": type})
        if listen is not None:
            _listen_put(root, listen)


def _listen_get(root: Element) -> str | None:
    """None where libvirt's own settings decide."""
    screen = _screen(root)
    if screen is None:
        return None
    listen = screen.find("listen")
    if listen is None:
        return SOCKET if screen.get("socket") else screen.get("listen")
    if listen.get("type") == "address":
        return listen.get("address")
    return SOCKET if listen.get("type") == "socket" else f"{listen.get('type')}:{listen.get('network', '')}"


def _listen_put(root: Element, listen: str | None) -> None:
    screen = _screen(root)
    if screen is None:
        return
    for name in ("listen", "socket", *(("port", "autoport", "tlsPort") if listen == SOCKET else ())):
        screen.attrib.pop(name, None)
    for child in screen.findall("listen"):
        screen.remove(child)
    if listen == SOCKET:
        screen.insert(0, ElementTree.Element("listen", {"type": "socket"}))
        return
    if screen.get("port") is None:
        screen.set("autoport", "yes")
    if listen is not None:
        screen.insert(0, ElementTree.Element("listen", {"type": "address", "address": listen}))


def _password_get(root: Element) -> str | None:
    screen = _screen(root)
    return None if screen is None else screen.get("passwd")


def _password_put(root: Element, password: str | None) -> None:
    screen = _screen(root)
    if screen is None:
        return
    if password is None:
        for name in ("passwd", "passwdValidTo"):
            screen.attrib.pop(name, None)
    else:
        screen.set("passwd", password)


def _video_put(root: Element, model: str | None) -> None:
    """The first card is the one that the firmware draws on; another model has other memory and another place."""
    devices = xmlmap.reach(root, "devices")
    first = devices.find("video")
    if first is not None:
        devices.remove(first)
    if model is not None:
        card = ElementTree.SubElement(devices, "video")
        ElementTree.SubElement(card, "model", {"type": model})
        ElementTree.SubElement(card, "alias", {"name": ALIAS_VIDEO})


def owns(xml: str | None) -> frozenset[str]:
    """The leaf of the first card, where that is of our making: what came with a screen goes with it."""
    if xml is None or ALIAS_VIDEO not in xml:
        return frozenset()
    named = xmlmap.parse(xml).find(f"devices/video[1]/alias[@name='{ALIAS_VIDEO}']")
    return frozenset() if named is None else frozenset({"devices.video.model"})


TYPE = Place(_type_get, _type_put)
LISTEN = Place(_listen_get, _listen_put)
PASSWORD = Place(_password_get, _password_put)
VIDEO = Place(xmlmap.attribute("devices/video/model", "type").get, _video_put)


@dataclass(frozen=True, slots=True)
class Screen:
    """What a spec asks of graphics and video."""

    type: str | None = None
    listen: str | None = None
    password: str | None = None
    secrets: tuple[str, ...] = ()
    video: str | None = None


def screen_of(ref: Ref, graphics: Graphics | None, video: Video | None, look: Look) -> Screen:
    """Render it; raises Blocked while a password cannot be read."""
    model = video.model if video is not None else DEFAULT_VIDEO if graphics is not None else None
    if graphics is None:
        return Screen(video=model)
    password: str | None = None
    secrets: tuple[str, ...] = ()
    if graphics.password_from is not None:
        fact = password_fact(ref, graphics.password_from, look)
        password, secrets = fact.password, (fact.name,)
    return Screen(graphics.type, graphics.listen, password, secrets, model)


def live_screen(root: Element, password: str | None) -> str:
    """The element of the running screen with another password: nothing else of it changes live."""
    copy = ElementTree.fromstring(ElementTree.tostring(root))
    _password_put(copy, password)
    screen = _screen(copy)
    assert screen is not None
    return xmlmap.serialise(screen)


def status_of(live: str | None) -> dict[str, Any]:
    """Where the screen of a running machine can be looked at."""
    screen = _screen(xmlmap.parse(live)) if live is not None and "<graphics" in live else None
    if screen is None:
        return {}
    listen = screen.find("listen")
    path = None if listen is None else listen.get("socket")
    host = screen.get("listen") or (None if listen is None else listen.get("address")) or LOCALHOST
    port = screen.get("port") or screen.get("tlsPort") or ""
    address = path or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return {"graphics": {"type": screen.get("type"), "address": address, "password": bool(screen.get("passwd"))}}
