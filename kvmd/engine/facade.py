"""What the running agent offers to its front doors: the server, and the commands that act in process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from kvmd.plan.model import Plan


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one object; equal ones are counted, not repeated. *time* is UNIX seconds."""

    sequence: int
    time: float
    object: str  # Kind/name, or Source or Host
    type: str  # Normal | Warning
    reason: str  # CamelCase
    message: str
    count: int = 1

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an act: *code* is an exit code of API.md (0 done, 1 failed, 3 not found, 6 refused)."""

    code: int
    message: str
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """The JSON form."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "data": self.data}


class Agent(Protocol):
    """The daemon as its front doors see it. Every call returns at once, from memory; none waits for libvirt."""

    def objects(self) -> list[dict[str, Any]]:
        """Every object with status: ``{apiVersion, kind, metadata, spec, status}``.

        ``status`` has ``observedGeneration``, ``generation``, ``conditions``, ``pendingChanges``, ``source`` and
        what the kind adds: for a VirtualMachine ``power`` (running, shutoff, …), ``accelerator``,
        ``interfaces: [{name, mac, attachment, tap, addresses, path: [{hop, name, state, broken}]}]``; for a
        Network ``active``, ``bridge``, ``leases``; for links ``operState``, ``carrier``, ``addresses``, ``ports``.
        """

    def events(self, after: int = 0) -> list[Event]:
        """Events with a sequence above *after*, oldest first (a ring of 1,000)."""

    def plan(self) -> Plan:
        """What would be done now."""

    def source(self) -> dict[str, Any]:
        """``{path, revision, digest, files, complete, reason, problems: [str], held: [...], pruneDigest}``."""

    def act(self, verb: str, reference: str, options: dict[str, Any]) -> Answer:
        """approve | suspend | resume | reconcile | start | stop | restart | apply, on ``Kind/name`` or ``prune``."""

    def healthy(self) -> tuple[bool, dict[str, Any]]:
        """The loop turns (``/healthz``)."""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """One complete look was taken and libvirt answers (``/readyz``)."""

    def metrics(self) -> bytes:
        """The exposition of ``/metrics`` (text format 0.0.4)."""
