"""How a kind sees the rest of the world: every read is recorded, absences too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kvmd.api.resource import Claim, Ref, Reference, Resource
from kvmd.observed import HOST, Fact, Host, Key
from kvmd.plan.model import Applied, Controller, FileProvider, ObjectMemory, Rules

NOTHING_REMEMBERED = ObjectMemory()


@dataclass(frozen=True, slots=True)
class World:
    """Everything that planning may read, as look-up tables. Values keep their identity while they are equal."""

    specs: Mapping[Ref, Resource]
    facts: Mapping[Key, Fact]
    applied: Mapping[Ref, Applied]
    memory: Mapping[Ref, ObjectMemory]
    users: Mapping[Ref, tuple[Reference, ...]]
    claimants: Mapping[Claim, tuple[Ref, ...]]
    keys: Mapping[Ref, Key]  # where the host has the objects that carry our mark
    controllers: Mapping[str, Controller]
    rules: Rules
    departing: frozenset[Ref] = field(default_factory=frozenset)
    tables: Mapping[str, Mapping[Any, Any]] = field(default_factory=lambda: MappingProxyType({}))


Reads = dict[tuple[str, Any], Any]


class Look:
    """The eyes of one object's planning. *now* is monotonic; whoever uses it must set ``wake_at``."""

    def __init__(self, world: World, now: float) -> None:
        self.world = world
        self.now = now
        self.reads: Reads = {}
        self._tables = world.tables

    def _read(self, table: str, key: Any) -> Any:
        value = self.reads[table, key] = self._tables[table].get(key)
        return value

    def spec(self, ref: Ref) -> Resource | None:
        """The spec of an object, or None."""
        found: Resource | None = self._read("specs", ref)
        return found

    def fact(self, key: Key) -> Fact | None:
        """What the host has under that key, or None."""
        found: Fact | None = self._read("facts", key)
        return found

    def host(self) -> Host:
        """The host itself."""
        fact = self._read("facts", HOST)
        return fact if isinstance(fact, Host) else Host(machine_id="")

    def applied(self, ref: Ref) -> Applied | None:
        """What was last applied of an object, or None where nobody knows."""
        found: Applied | None = self._read("applied", ref)
        return found

    def memory(self, ref: Ref) -> ObjectMemory:
        """What the engine remembers of an object."""
        return self._read("memory", ref) or NOTHING_REMEMBERED

    def users(self, ref: Ref) -> tuple[Reference, ...]:
        """Who names this object, in specs and in what is about to be removed."""
        return self._read("users", ref) or ()

    def claimants(self, claim: Claim) -> tuple[Ref, ...]:
        """Who claims that, in order of right: the present holder first."""
        return self._read("claimants", claim) or ()

    def stored_at(self, path: str) -> Key | None:
        """The pool with that directory, or the volume or image that lies there."""
        found: Key | None = self._read("stored", path)
        return found

    def spellings(self, path: str) -> tuple[str, ...]:
        """The names in specs that lead to that path."""
        return self._read("spellings", path) or ()

    def key(self, ref: Ref) -> Key:
        """The fact key of another object: where it is marked, else where its spec or its name puts it."""
        marked: Key | None = self._read("keys", ref)
        if marked is not None:
            return marked
        resource = self.spec(ref)
        return self.controller(ref).host_key(ref, resource.spec if resource else None, self)

    def marked(self, ref: Ref) -> tuple[Key, ...]:
        """Everything that carries an object's mark, also under a name that is not the object's."""
        return self._read("marks", ref) or ()

    def departing_names(self, ref: Ref) -> frozenset[str]:
        """Names on the host of those users of an object that are about to go themselves: they go first."""
        sources = (user.source for user in self.users(ref))
        return frozenset(self.key(source).name for source in sources if self.spec(source) is None)

    def usable(self, ref: Ref) -> bool:
        """True where another object is there and can be built upon now."""
        return self.controller(ref).usable(ref, self)

    def file(self, ref: Ref) -> tuple[str, str] | None:
        """Path and format of the file that another object is; None where nobody knows it."""
        controller = self.controller(ref)
        return controller.file_of(ref, self) if isinstance(controller, FileProvider) else None

    def controller(self, ref: Ref) -> Controller:
        """The controller of an object's kind."""
        return self.world.controllers[ref.kind]

    @property
    def rules(self) -> Rules:
        """The settings that planning obeys (they do not change while a planner lives)."""
        return self.world.rules
