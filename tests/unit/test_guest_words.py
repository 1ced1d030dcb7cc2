"""What guests say of themselves: cut to what can be shown, and never waited for."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")

from kvmd.host.libvirtd import guest_words  # noqa: E402
from kvmd.observed import Domain, Key  # noqa: E402
from kvmd.settings import Libvirt  # noqa: E402

LIVE = "<domain><channel><target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel></domain>"


class Guest:
    """A domain whose agent answers whatever it likes."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def guestInfo(self, part: int, _flags: int) -> dict[str, Any]:
        if part == libvirt.VIR_DOMAIN_GUEST_INFO_OS:
            raise libvirt.libvirtError("this agent does not know that")
        return self._said


def test_what_a_guest_says_is_cut_to_what_can_be_shown() -> None:
    nics = {"if.count": 10**9, "if.0.name": "eth0\x1b[2J", "if.0.hwaddr": "52:54:00:AA:00:01", "if.0.addr.count": 1}
    said = {"hostname": "w" * 5000, **nics, "if.0.addr.0.addr": "10.0.0.5", "if.0.addr.0.prefix": 24}
    words = guest_words.read(Guest(said), "web")
    assert len(words.host_name) == guest_words.LONGEST and len(words.nics) == guest_words.MOST_NICS
    assert words.nics[0].name == "" and words.nics[0].mac == "52:54:00:aa:00:01"
    assert words.nics[0].addresses == ("10.0.0.5/24",) and words.system == ""


def test_guests_that_do_not_answer_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most four are waited for, each by a thread of its own; a look returns at once."""
    asked, go_on = threading.Semaphore(0), threading.Event()

    def hang(_settings: Libvirt) -> Any:
        asked.release()
        go_on.wait(20)
        raise libvirt.libvirtError("gone")

    monkeypatch.setattr(guest_words, "connect", hang)
    words = guest_words.AgentWords(Libvirt(), SimpleNamespace(libvirt_call=lambda *_: None), lambda: None)  # type: ignore[arg-type]
    states = ["connected"] * 9 + ["disconnected"]
    domains = {
        Key("domain", f"vm{i}"): Domain(f"vm{i}", f"u{i}", "running", "booted", None, LIVE.format(state))
        for i, state in enumerate(states)
    }
    try:
        before = time.monotonic()
        for _ in range(3):
            assert words.look(domains) == {}
        assert time.monotonic() - before < 2
        assert all(asked.acquire(timeout=5) for _ in range(guest_words.MOST_AT_ONCE))
        assert not asked.acquire(timeout=0.2)
    finally:
        go_on.set()
