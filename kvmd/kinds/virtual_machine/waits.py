"""What the next operations of a guest must wait for: files that are not there, TAPs that somebody else holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmd import ops
from kvmd.api.resource import Ref
from kvmd.api.status import BLOCKED, DEGRADED, Condition
from kvmd.errors import Refused
from kvmd.kinds.virtual_machine import direct, port_group, tap_queues
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.domain import ALIAS_DISK, ALIAS_NIC, State
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.observed import File, Key, Link
from kvmd.plan.look import Look


@dataclass(frozen=True, slots=True)
class Possible:
    """The operations that can be carried out now, and what is said of the others."""

    operations: tuple[ops.Op, ...]
    conditions: tuple[Condition, ...]
    all: bool  # False where one must wait


def file_of(disk: Disk) -> str | None:
    """The file behind a disk or in the tray of a CD-ROM."""
    return disk.media.path if disk.media else disk.path


def files_of(spec: Spec) -> tuple[str, ...]:
    """Every file that must be there before the guest starts."""
    boot = spec.kernel_boot
    found = [file_of(disk) for disk in spec.disks]
    found += [boot.kernel.path, boot.initrd.path if boot.initrd else None] if boot else []
    return tuple(path for path in found if path)


def folders_of(spec: Spec) -> tuple[str, ...]:
    """Every folder that it shares."""
    return tuple(share.path for share in spec.filesystems)


def consoles_of(spec: Spec) -> tuple[str, ...]:
    """The files that consoles are written to."""
    return tuple(serial.file for serial in spec.serials if serial.file)


def written_by(spec: Spec) -> tuple[str, ...]:
    """Every file and folder that the guest, or what it prints, changes."""
    disks = tuple(disk.path for disk in spec.disks if disk.path and not disk.read_only)
    return (*consoles_of(spec), *disks, *folders_of(spec))


def refuse_odd_consoles(ref: Ref, spec: Spec, look: Look) -> None:
    """Raise Refused for a console file that is no plain file: libvirt truncates it at each start."""
    for path in consoles_of(spec):
        fact = look.fact(Key("file", path))
        if isinstance(fact, File) and fact.kind not in ("regular", "missing", "denied"):
            raise Refused(f"{ref}: the console file {path} is a {fact.kind}", hint="name a plain file")


def absent_files(spec: Spec, look: Look) -> tuple[str, ...]:
    """Those of them that are no file now, and shares that are no folder."""
    found = ((path, look.fact(Key("file", path))) for path in files_of(spec))
    absent = [path for path, fact in found if not isinstance(fact, File) or fact.kind not in ("regular", "block")]
    folders = ((path, look.fact(Key("file", path))) for path in folders_of(spec))
    absent += [path for path, fact in folders if not isinstance(fact, File) or fact.kind != "directory"]
    return tuple(absent)


def replaced_files(spec: Spec, look: Look) -> tuple[File, ...]:
    """Those of them that the running guest has not open, but another one that was there when it started."""
    found = (look.fact(Key("file", path)) for path in files_of(spec))
    return tuple(fact for fact in found if isinstance(fact, File) and fact.replaced)


def possible(
    asked: tuple[Spec, State | None],
    operations: tuple[ops.Op, ...],
    absent: tuple[str, ...],
    look: Look,
    unknown: bool,
) -> Possible:
    """Leave out what would open a missing file or a TAP in use; everything beside it goes on.

    *asked* is the spec, and the definition as it is.

    With *unknown* the guest cannot start: something that it stands on is known to nobody.
    """
    spec, config = asked
    lacking: dict[str, None] = {}
    held: dict[str, None] = {}
    links: dict[str, None] = {}
    kept: list[ops.Op] = []
    if rescued := bool(replaced_files(spec, look)):
        # Somebody may be copying what only the paused guest still has.
        operations = tuple(item for item in operations if not isinstance(item, ops.DomainResume))
    for operation in operations:
        files = [path for path in _opens(operation, spec) if path in absent]
        taps = [tap for tap in _plugs(operation, spec, look) if _is_held(tap, look)]
        unready = (*direct.unready(operation, spec, look), *port_group.unready(operation, spec, look))
        unready += tap_queues.unready(operation, spec, config, look)
        if not files and not taps and not unready and not (unknown and isinstance(operation, ops.DomainStart)):
            kept.append(operation)
        lacking |= dict.fromkeys(f"{path} (a folder)" if path in folders_of(spec) else path for path in files)
        held |= dict.fromkeys(taps)
        links |= dict.fromkeys(unready)
    if any(isinstance(item, ops.DomainStart) for item in operations if item not in kept):
        # A start that waits is not noted as begun: a guest that runs Once would never run.
        kept = [item for item in kept if not (isinstance(item, ops.LedgerWrite) and item.value in ("started", ""))]
    said = (*_conditions(tuple(lacking), tuple(held), absent), *_unready(tuple(links)), *_replaced(spec, look))
    waits = lacking or held or links or unknown or rescued
    return Possible(tuple(kept), said, not waits)


def _opens(operation: ops.Op, spec: Spec) -> tuple[str, ...]:
    if isinstance(operation, ops.DomainStart):
        return (*files_of(spec), *folders_of(spec))
    if isinstance(operation, ops.DomainAttach | ops.DomainUpdateDevice):
        found = (file_of(disk) for disk in spec.disks if operation.alias == ALIAS_DISK + disk.name)
        return tuple(path for path in found if path)
    return ()


def _plugs(operation: ops.Op, spec: Spec, look: Look) -> tuple[str, ...]:
    if not isinstance(operation, ops.DomainStart | ops.DomainAttach):
        return ()
    nics = [nic for nic in spec.interfaces if nic.tap]
    if isinstance(operation, ops.DomainAttach):
        nics = [nic for nic in nics if operation.alias == ALIAS_NIC + nic.name]
    return tuple(look.key(Ref("Tap", str(nic.tap))).name for nic in nics)


def _is_held(tap: str, look: Look) -> bool:
    link = look.fact(Key("link", tap))
    return isinstance(link, Link) and link.carrier


def _unready(links: tuple[str, ...]) -> Iterator[Condition]:
    if links:
        yield Condition(BLOCKED, True, "LinkNotReady", f"waits for {'; '.join(links)}")


def _replaced(spec: Spec, look: Look) -> Iterator[Condition]:
    for fact in replaced_files(spec, look):
        text = (
            f"{fact.path} was replaced under the running guest, which goes on with the one that it had; that is lost "
            "when the guest stops, so kvmd neither restarts it nor lets it on while it is paused; to keep it, virsh "
            "suspend the guest and type: "
            f"cp --sparse=always {fact.replaced} {fact.path}.rescued"
        )
        yield Condition(DEGRADED, True, "FileReplaced", text)


def _conditions(lacking: tuple[str, ...], held: tuple[str, ...], absent: tuple[str, ...]) -> Iterator[Condition]:
    if lacking:
        cure = "put it there, it is looked at every few seconds"
        text = f"waits for {', '.join(lacking)}: not a file on this host; {cure}"
        yield Condition(BLOCKED, True, "FileMissing", text)
    elif absent:
        text = f"{', '.join(absent)} is not a file on this host; the next start will wait for it"
        yield Condition(DEGRADED, True, "FileMissing", text)
    if held:
        text = f"waits for {', '.join(held)}: another process holds that TAP; to see which type: kvmd topology"
        yield Condition(BLOCKED, True, "TapInUse", text)
