"""Drives on servers: which way each is reached, what must be asked or fetched first, and what status says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kvmd import ops
from kvmd.api.resource import Ref, hash_of
from kvmd.api.status import BLOCKED, DEGRADED, FETCH_FAILED, RECONCILING, STALLED, Condition
from kvmd.errors import Blocked
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.domain import State
from kvmd.kinds.virtual_machine.login import Spoken, check_login, login_of, why_cached
from kvmd.kinds.virtual_machine.remote import FETCHED, choose, parse
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import Domain, Image, Key, Server, Transfer
from kvmd.plan.look import Look

MOST_ATTEMPTS = 5  # then a person should look


@dataclass(frozen=True, slots=True)
class Drives:
    """The spec with every URL in the place of a file, or the file that was fetched from there."""

    spec: Any = None
    operations: tuple[ops.Op, ...] = ()  # that start to ask or to fetch
    waits: bool = False  # one cannot be reached yet: until then the guest cannot start
    conditions: tuple[Condition, ...] = ()
    wake_at: float | None = None
    resolved: Mapping[str, str] = field(default_factory=dict)  # what was chosen: the mark remembers it
    shown: tuple[Mapping[str, Any], ...] = ()

    @property
    def status(self) -> Mapping[str, Any]:
        """The part of the status that says how each is reached; nothing where there are none."""
        return {"drives": list(self.shown)} if self.shown else {}

    def asked(self, domain: Domain | None, operations: tuple[ops.Op, ...]) -> bool:
        """True where what is done follows from a choice that the definition does not know yet: nobody's drift."""
        if operations and all(isinstance(item, ops.ServerAsk | ops.ImageFetch) for item in operations):
            return True
        then = domain.mark.resolved if domain is not None and domain.mark is not None else {}
        return any(then.get(name) != value for name, value in self.resolved.items())


@dataclass(frozen=True, slots=True)
class _Remote:
    """What a disk or its medium says of a server."""

    url: str
    access: str
    read_only: bool
    format: str
    item: Spoken  # the disk or the medium
    login: ops.Login

    @property
    def word(self) -> str:
        """What a choice was made for; another word is another choice."""
        return f"{self.access} {self.url}{'' if self.login == ops.NOBODY else ' with a login'}"

    @property
    def file(self) -> str:
        """Its name in the image store: what one login may read is not another's."""
        who = [] if self.login == ops.NOBODY else [asdict(self.login)]
        return f"media-{hash_of([self.url, *who])[:16]}.{self.format}"


def remote_of(disk: Disk) -> _Remote | None:
    """What a disk has on a server, if it has."""
    if disk.media is not None and disk.media.url is not None:
        return _Remote(disk.media.url, disk.media.access, True, "raw", disk.media, login_of(disk.media))
    if disk.url is not None:
        return _Remote(disk.url, disk.access, disk.read_only, disk.format or "raw", disk, login_of(disk))
    return None


def drives_of(ref: Ref, spec: Spec, config: State | None, look: Look) -> Drives:
    """Choose a way for each; what cannot be reached yet stays what the definition has, or out."""
    if all(remote_of(disk) is None for disk in spec.disks):
        return Drives(spec)
    present = {disk.name: disk.source for disk in config.disks} if config else {}
    disks: list[Disk] = []
    operations: dict[ops.Op, None] = {}
    conditions: dict[Condition, None] = {}
    wakes: list[float] = []
    resolved: dict[str, str] = {}
    shown: list[Mapping[str, Any]] = []
    waits = False
    for disk in spec.disks:
        remote = remote_of(disk)
        if remote is None:
            disks.append(disk)
            continue
        kept = _kept(ref, disk.name, remote, look)
        chosen = kept or _chosen(remote, look)
        source, act = _source(remote, chosen, look)
        errand = _unreadable(ref, remote, look) if act is not None or source == remote.url else None
        if errand is None and act is not None:
            errand = _errand(act, look)
        if errand is not None:
            waits = True
            operations |= dict.fromkeys(errand.operations)
            conditions |= dict.fromkeys(errand.conditions)
            wakes += [errand.wake_at] if errand.wake_at is not None else []
        if chosen is not None and (source is not None or kept is not None):
            # Not before it can be used: by the news in the mark it is known for no drift when it comes.
            key = f"access.{disk.name}"
            resolved |= {key: chosen[0], f"{key}.word": remote.word, f"{key}.why": chosen[1]}
        shown.append(_shown(disk.name, remote, chosen, look))
        if source is not None:
            disks.append(_with_source(disk, source, remote))
        elif disk.name in present:
            disks.append(_with_source(disk, present[disk.name], remote, remote.url))
    resolved_spec = spec.model_copy(update={"disks": tuple(disks)})
    return Drives(
        resolved_spec,
        tuple(operations),
        waits,
        tuple(conditions),
        min(wakes, default=None),
        resolved=resolved,
        shown=tuple(shown),
    )


def _unreadable(ref: Ref, remote: _Remote, look: Look) -> Drives | None:
    """What to say where a part of its login cannot be read: the next start waits for it, and nothing else does."""
    try:
        check_login(ref, remote.item, look)
    except Blocked as error:
        domain = look.fact(look.key(ref))
        kind = DEGRADED if isinstance(domain, Domain) and domain.active else BLOCKED
        return Drives(conditions=(Condition(kind, True, "LoginNotReadable", str(error)),))
    return None


def _errand(act: ops.StorageOp, look: Look) -> Drives:
    """Start it, wait for its end, or say why it failed and wait for its time."""
    fact = look.fact(Key("transfer", act.errand))
    if not isinstance(fact, Transfer):
        return Drives(operations=(act,))
    if not fact.problem:
        return Drives(conditions=(Condition(RECONCILING, True, "UnderWay", act.describe()),))
    if look.now >= fact.again_at:
        return Drives(operations=(act,))
    kind = STALLED if fact.final or fact.attempts >= MOST_ATTEMPTS else RECONCILING
    text = f"{fact.problem} (attempt {fact.attempts})"
    return Drives(conditions=(Condition(kind, True, FETCH_FAILED, text),), wake_at=fact.again_at)


def _kept(ref: Ref, name: str, remote: _Remote, look: Look) -> tuple[str, str] | None:
    """What was chosen for that very word before."""
    applied = look.applied(ref)
    before = applied.resolved if applied else {}
    key = f"access.{name}"
    if before.get(f"{key}.word") != remote.word or key not in before:
        return None
    return before[key], before.get(f"{key}.why", "")


def _chosen(remote: _Remote, look: Look) -> tuple[str, str] | None:
    """What the host says now; None where it must be asked first."""

    def ask() -> tuple[bool, str] | None:
        fact = look.fact(Key("server", remote.url))
        return (fact.direct, fact.why) if isinstance(fact, Server) else None

    if remote.login != ops.NOBODY and (protocol := parse(remote.url).protocol) in FETCHED:
        return "Cached", why_cached(protocol)
    return choose(remote.url, remote.access, remote.read_only, ask)


def _source(remote: _Remote, chosen: tuple[str, str] | None, look: Look) -> tuple[str | None, ops.StorageOp | None]:
    """What the guest is given, or what must be done first."""
    if chosen is None:
        address = parse(remote.url)
        other = remote.access == "Auto" and remote.read_only and address.protocol in FETCHED
        return None, ops.ServerAsk(address.host, remote.url, address.driver, other)
    if chosen[0] == "Direct":
        return remote.url, None
    if isinstance(look.fact(Key("image", remote.file)), Image):
        return f"{look.rules.images}/{remote.file}", None
    return None, ops.ImageFetch(remote.file, remote.format, None, url=remote.url, login=remote.login)


def _with_source(disk: Disk, source: str | None, remote: _Remote, awaited: str | None = None) -> Disk:
    """The disk on a file, or on what it has until the *awaited* URL can be used; that this stands there says so."""
    if disk.media is not None:
        media = disk.media.model_copy(update={"path": source, "url": awaited})
        return disk.model_copy(update={"media": media if source else None})
    return disk.model_copy(update={"path": source, "url": awaited, "format": remote.format})


def _shown(name: str, remote: _Remote, chosen: tuple[str, str] | None, look: Look) -> Mapping[str, Any]:
    found: dict[str, Any] = {"name": name, "url": remote.url, "access": chosen[0] if chosen else None}
    if chosen is not None:
        found["why"] = chosen[1]
    transfer = look.fact(Key("transfer", remote.file))
    if isinstance(transfer, Transfer) and not transfer.problem:
        found["progress"] = {"doneBytes": transfer.done, "totalBytes": transfer.total or None}
    return found
