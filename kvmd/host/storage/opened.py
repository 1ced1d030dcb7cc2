"""Files that were replaced under running guests: QEMU goes on with the one that it opened, whatever has its name now.

A file is compared with what QEMU has open when its guest or it is new; afterwards that costs a look-up.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace

from kvmd.observed import Domain, Fact, File, Key

PIDS = "/run/libvirt/qemu"
_ID = re.compile(r"<domain\b[^>]*\bid=['\"](\d+)['\"]")
Identity = tuple[int, int]  # device and inode
Use = tuple[str, str, str]  # a guest, its run, and a path that it names


class Opened:
    """What each running guest was seen to have open of the files that specs name."""

    def __init__(self, pids: str = PIDS) -> None:
        self._pids = pids
        self._seen: dict[Use, Identity] = {}  # what it has open
        self._unproven: dict[Use, Identity] = {}  # what is there, and QEMU has not open; it may never have had it
        self._replaced: dict[str, File] = {}

    def look(
        self, files: Mapping[Key, Fact], domains: Mapping[Key, Fact], holders: Mapping[str, tuple[str, ...]]
    ) -> Mapping[Key, Fact]:
        """The facts of *files*, those that were replaced with what their guest has open; the same where none was."""
        seen: dict[Use, Identity] = {}
        unproven: dict[Use, Identity] = {}
        replaced: dict[Key, Fact] = {}
        for key, file in files.items():
            if not isinstance(file, File) or file.kind != "regular":
                continue
            for name in holders.get(file.path, ()):
                domain = domains.get(Key("domain", name))
                run = _ID.search(domain.live or "") if isinstance(domain, Domain) else None
                if run is not None and (held := self._held(file, (name, run[1], file.path), seen, unproven)):
                    known, fact = self._replaced.get(file.path), replace(file, replaced=held)
                    replaced[key] = known if known is not None and known == fact else fact
        self._seen, self._unproven = seen, unproven
        self._replaced = {fact.path: fact for fact in replaced.values() if isinstance(fact, File)}
        return {**files, **replaced} if replaced else files

    def _held(self, file: File, use: Use, seen: dict[Use, Identity], unproven: dict[Use, Identity]) -> str:
        """The old file, as this process can reach it; "" where the guest has the one that is there."""
        now, before = (file.device, file.inode), self._seen.get(use)
        if before is not None:
            seen[use] = before
        if before == now:
            return ""
        if self._unproven.get(use) == now:
            unproven[use] = now
            return ""
        opened = self._opened(use[0])
        if now in opened:
            seen[use] = now
            return ""
        # Without having seen it open under that name, only a file that was deleted since is a proof.
        gone = {f"{path} (deleted)" for path in (file.path, file.real)}
        held = next((link for identity, (link, aim) in opened.items() if identity == before or aim in gone), "")
        if not held:
            unproven[use] = now
        return held

    def _opened(self, name: str) -> dict[Identity, tuple[str, str]]:
        """What the QEMU of a guest has open: where it can be reached, and where that leads."""
        found: dict[Identity, tuple[str, str]] = {}
        with contextlib.suppress(OSError, ValueError):
            with open(f"{self._pids}/{name}.pid", encoding="ascii") as file:
                folder = f"/proc/{int(file.read())}/fd"
            for number in os.listdir(folder):
                with contextlib.suppress(OSError):
                    link = f"{folder}/{number}"
                    status = os.stat(link)
                    found[(status.st_dev, status.st_ino)] = link, os.readlink(link)
        return found
