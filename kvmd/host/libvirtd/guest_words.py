"""What guests say of themselves by their agent: asked rarely, beside the cycle, and never waited for.

A guest that stands still in the middle of an answer keeps its own thread, and few may do so at once: nothing that
decides over guests hangs on this. What a guest says is shown to people, so it is cut to what can be shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt

from kvmd.errors import KvmdError
from kvmd.host.libvirtd.connection import Recorder, connect
from kvmd.identity import changed, kept
from kvmd.observed import Domain, Fact, GuestNic, GuestWords, Key
from kvmd.settings import Libvirt

FIRST_SECONDS = 5.0  # a guest has its agent before it has its addresses; then ever more rarely
MOST_AT_ONCE = 4
MOST_NICS = 32
LONGEST = 128
_PARTS = (
    libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME,
    libvirt.VIR_DOMAIN_GUEST_INFO_OS,
    libvirt.VIR_DOMAIN_GUEST_INFO_INTERFACES,
)


@dataclass(slots=True)
class _Guest:
    """A running machine with an agent: what it said last, and when it is asked again."""

    uuid: str
    words: GuestWords | None = None
    again_at: float = 0.0
    delay: float = FIRST_SECONDS
    asked: bool = False  # a thread waits for its answer


class AgentWords:
    """The last answers, and the threads that get the next ones."""

    def __init__(self, settings: Libvirt, recorder: Recorder, wake: Callable[[], None]) -> None:
        self._settings, self._recorder, self._wake = settings, recorder, wake
        self._lock = threading.Lock()
        self._domains: Mapping[Key, Fact] = {}
        self._guests: dict[str, _Guest] = {}
        self._asking = 0
        self._news = False
        self._facts: Mapping[Key, GuestWords] = {}

    def look(self, domains: Mapping[Key, Fact]) -> Mapping[Key, GuestWords]:
        """The last answers, the same object while they are the same; asks who has not been asked for long."""
        with self._lock:
            for key in changed(self._domains, domains):
                self._note(key, domains.get(key))
            self._domains = domains
            now = time.monotonic()
            for name, guest in self._guests.items():
                if now >= guest.again_at and not guest.asked and self._asking < MOST_AT_ONCE:
                    guest.asked = True
                    self._asking += 1
                    threading.Thread(target=self._ask, args=(name, guest), name="guest-agent", daemon=True).start()
            if self._news:
                self._news = False
                self._facts = {Key("guest", name): guest.words for name, guest in self._guests.items() if guest.words}
            return self._facts

    def _note(self, key: Key, fact: Fact | None) -> None:
        """A domain is another than before (lock held): forget an agent that went, and ask one that came."""
        if key.type != "domain":
            return
        if not isinstance(fact, Domain) or fact.agent != "connected":
            self._news |= self._guests.pop(key.name, None) is not None
        elif key.name not in self._guests or self._guests[key.name].uuid != fact.uuid:
            self._guests[key.name] = _Guest(fact.uuid)

    def _ask(self, name: str, guest: _Guest) -> None:
        words = None
        try:
            connection = connect(self._settings)
            try:
                words = read(connection.lookupByUUIDString(guest.uuid), name)
                self._recorder.libvirt_call("guestInfo", "read", "ok")
            finally:
                connection.close()
        except (KvmdError, libvirt.libvirtError):
            self._recorder.libvirt_call("guestInfo", "read", "error")
        with self._lock:
            self._asking -= 1
            guest.asked = False
            news = words is not None and words != guest.words
            guest.words = kept(guest.words, words) if words is not None else guest.words
            guest.delay = FIRST_SECONDS if news else min(2 * guest.delay, self._settings.relist)
            guest.again_at = time.monotonic() + guest.delay
            self._news |= news
        if news:
            self._wake()


def read(domain: Any, name: str) -> GuestWords:
    """Everything that this agent knows how to say. Raises libvirtError where it says nothing."""
    said: dict[str, Any] = {}
    errors = []
    for part in _PARTS:
        try:
            said |= domain.guestInfo(part, 0)
        except libvirt.libvirtError as error:
            errors.append(error)
    if len(errors) == len(_PARTS):
        raise errors[-1]
    system = said.get("os.pretty-name") or said.get("os.name")
    return GuestWords(
        name,
        _shown(said.get("hostname")),
        _shown(system),
        _shown(said.get("os.kernel-release")),
        tuple(_nics(said)),
    )


def _nics(said: Mapping[str, Any]) -> Iterator[GuestNic]:
    for index in range(min(int(said.get("if.count", 0)), MOST_NICS)):
        one = f"if.{index}"
        count = min(int(said.get(f"{one}.addr.count", 0)), MOST_NICS)
        addresses = (
            f"{_shown(said.get(f'{one}.addr.{number}.addr'))}/{said.get(f'{one}.addr.{number}.prefix', '')}"
            for number in range(count)
        )
        yield GuestNic(_shown(said.get(f"{one}.name")), _shown(said.get(f"{one}.hwaddr")).lower(), tuple(addresses))


def _shown(value: Any) -> str:
    text = str(value or "")[:LONGEST]
    return text if text.isprintable() else ""
