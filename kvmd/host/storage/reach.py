"""Whether QEMU may open its files: each path is walked as the user that it runs as, to the first thing that bars it.

Before a start, so that nothing is begun that cannot end well, and after a failure, to say what it was.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from kvmd.errors import Retry
from kvmd.host.storage.backing import chain_of, source_of

QEMU_CONF = "/etc/libvirt/qemu.conf"
ASK_SECONDS = 10.0
_DENIED, _ODD_FIRMWARE = "ermission denied", "system firmware block device"
_ACCESS_LIST = "system.posix_acl_access"
_ENTER, _READ, _WRITE = "-x", "-r", "-w"


@dataclass(frozen=True, slots=True)
class User:
    """Who QEMU runs as on this host."""

    number: int
    group: int

    @property
    def name(self) -> str:
        """As people say it."""
        try:
            return pwd.getpwuid(self.number).pw_name
        except KeyError:
            return str(self.number)

    def may(self, what: str, path: str) -> bool:
        """Asked of the kernel as that user, so that access lists count, too."""
        groups = {self.group}
        with contextlib.suppress(KeyError):
            groups |= set(os.getgrouplist(self.name, self.group))
        who = (f"--reuid={self.number}", f"--regid={self.group}", f"--groups={','.join(map(str, sorted(groups)))}")
        command = ["setpriv", *who, "--", "test", what, path]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS)
        except (OSError, subprocess.SubprocessError):
            return True  # nobody knows
        return done.returncode != 1  # another code is setpriv's own trouble


def walk(what: str, domain: str, user: User | None) -> None:
    """Raise Retry with the cure where a file of a domain that is about to start cannot be reached."""
    if user is not None and user.number:
        why, cure = barred(domain, user)
        if why:
            raise Retry(f"{what}: {why}", hint=cure)


def says_of_a_file(error: str) -> bool:
    """True where libvirt's or QEMU's message may be about a file that cannot be used."""
    return _DENIED in error or _ODD_FIRMWARE in error


def explain(error: str, domain: str, capabilities: str) -> tuple[str, str]:
    """What is the matter with a file of a domain, and what to type."""
    if _ODD_FIRMWARE in error:
        nvram = ElementTree.fromstring(domain).findtext("os/nvram") or "its NVRAM file"
        return f"{nvram} is no NVRAM of its firmware: {error}", f"it gets a fresh one after: mv {nvram} {nvram}.old"
    user = user_of(domain, capabilities)
    why, cure = barred(domain, user) if user is not None else ("", "")
    return why or error, cure or "no directory or mode on the way bars it; see: journalctl -k -g DENIED"


def user_of(domain: str, capabilities: str) -> User | None:
    """Who the QEMU of a domain runs as: by its own label, else by what libvirt says of its host."""
    models = ElementTree.fromstring(capabilities).findall("host/secmodel")
    labels = [model.findtext("baselabel") for model in models if model.findtext("model") == "dac"]
    own = ElementTree.fromstring(domain).findtext("seclabel[@model='dac']/label")
    label = re.fullmatch(r"\+?(\d+):\+?(\d+)", own or next(iter(labels), None) or "")
    return None if label is None else User(int(label[1]), int(label[2]))


def barred(domain: str, user: User) -> tuple[str, str]:
    """What bars the way to the files of a domain's XML, and what to type; both "" where nothing does."""
    for path, writes in _files(ElementTree.fromstring(domain)):
        for folder in map(str, reversed(PurePath(path).parents)):
            if not _open_to_all(folder) and not user.may(_ENTER, folder):
                why = f"QEMU runs as {user.name}, who may not enter {folder} ({_shown(folder)}), on the way to {path}"
                return why, f"type: chmod o+x {folder} (or for it alone: setfacl -m u:{user.name}:x {folder})"
        needs = (_READ, _WRITE) if writes else (_READ,)
        if not _libvirt_owns() and not all(user.may(what, path) for what in needs):
            why = f"QEMU runs as {user.name}, who may not {'write to' if writes else 'read'} {path} ({_shown(path)})"
            return why, f"type: setfacl -m u:{user.name}:{'rw' if writes else 'r'} {path}"
    return "", ""


def _open_to_all(folder: str) -> bool:
    """True where nobody need be asked: everybody may enter it, or it is not there, which others tell."""
    try:
        return bool(os.stat(folder).st_mode & stat.S_IXOTH) and _ACCESS_LIST not in os.listxattr(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _files(root: ElementTree.Element) -> Iterator[tuple[str, bool]]:
    """Every file that a start opens, and whether it is written to; with what disks stand on."""
    for element in root.findall("devices/disk"):
        path, format = source_of(element)
        writes = element.find("readonly") is None
        for file, _ in chain_of(path, format) if path else ():
            yield file, writes
            writes = False
    for place in ("os/kernel", "os/initrd"):
        if path := root.findtext(place) or "":
            yield path, False


def _libvirt_owns() -> bool:
    """True where libvirt gives each file to QEMU's user at a start, which is its default."""
    try:
        with open(QEMU_CONF, encoding="utf-8", errors="replace") as file:
            return re.search(r"^\s*dynamic_ownership\s*=\s*0", file.read(), re.MULTILINE) is None
    except OSError:
        return True


def _shown(path: str) -> str:
    """Mode and owner, as ls shows them."""
    try:
        status = os.stat(path)
        owner = pwd.getpwuid(status.st_uid).pw_name
    except (OSError, KeyError):
        return "?"
    return f"{stat.filemode(status.st_mode)} {owner}"
