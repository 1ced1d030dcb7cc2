"""One file under two names: a Volume and its path, a link and where it leads, a disk and the log of a console.

Claims compare words; here the words are followed to files. A start empties the file of a console, and two guests that
write to one disk destroy it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from kvmd.api.resource import Claim, Ref
from kvmd.errors import Conflict, Refused
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.kinds.virtual_machine.waits import consoles_of, files_of
from kvmd.observed import Domain, File, Holders, Image, Key, Volume
from kvmd.plan.look import Look
from kvmd.plan.paths import real_path


@dataclass(frozen=True, slots=True)
class _Part:
    """Something in a spec that is a file: every name that is known of it, the last one where it leads."""

    words: str
    names: tuple[str, ...]
    is_console: bool = False
    writes: bool = True


def refuse_same_files(ref: Ref, spec: Spec, domain: Domain | None, look: Look) -> None:
    """Raise Refused or Conflict where one of its files is another's, or its own under another name."""
    parts = tuple(_parts(spec, look))
    for index, part in enumerate(parts):
        for other in parts[:index]:
            if (part.is_console or (part.writes and other.writes)) and set(part.names) & set(other.names):
                raise Refused(
                    f"{ref}: {part.words} and {other.words} are the same file",
                    hint=f"name another file for {part.words}",
                )
        if part.is_console:
            _refuse_console(ref, part, domain, look)
        if part.writes:
            _refuse_rivals(ref, part, look)


def _parts(spec: Spec, look: Look) -> Iterator[_Part]:
    """Consoles last: it is for them to give way."""
    written = {disk.path for disk in spec.disks if disk.path and not disk.read_only}
    for path in dict.fromkeys(files_of(spec)):
        yield _Part(path, _names(path, look), writes=path in written)
    for disk in spec.disks:
        if disk.volume and (found := look.file(Ref("Volume", disk.volume))) is not None:
            names = tuple(dict.fromkeys((found[0], _real_of(found[0], look))))
            yield _Part(f"Volume/{disk.volume}", names, writes=not disk.read_only)
    for path in consoles_of(spec):
        yield _Part(f"the console file {path}", _names(path, look), is_console=True)


def _names(path: str, look: Look) -> tuple[str, ...]:
    return tuple(dict.fromkeys((path, real_path(path, look))))


def _real_of(path: str, look: Look) -> str:
    fact = _stored(path, look)
    return fact.real if isinstance(fact, Volume) and fact.real else path


def _stored(path: str, look: Look) -> Volume | Image | None:
    key = look.stored_at(path)
    fact = look.fact(key) if key is not None else None
    return fact if isinstance(fact, Volume | Image) else None


def _volumes(name: str, look: Look) -> tuple[Ref, ...]:
    """The Volumes whose file that is, or will be."""
    folder, _, file = name.rpartition("/")
    key = look.stored_at(folder)
    pools = {ref.name for ref in look.claimants(Claim("directory", folder))}
    pools |= {key.name} if key is not None and key.type == "pool" else set()
    return tuple(ref for pool in sorted(pools) for ref in look.claimants(Claim("volume", f"{pool}/{file}")))


def _refuse_console(ref: Ref, part: _Part, domain: Domain | None, look: Look) -> None:
    """Raise Refused for a file that is more than what this guest printed."""
    path = part.names[0]
    for name in part.names:
        fact = _stored(name, look)
        whose = next((str(volume) for volume in _volumes(name, look)), "")
        if not whose and fact is not None and fact.mark is not None:
            whose = str(fact.mark.ref)
        holders = look.fact(Key("holders", name))
        if not whose and isinstance(holders, Holders):
            others = sorted(set(holders.domains) - {look.key(ref).name})
            whose = f"that of the domain {others[0]}" if others else holders.overlays[0] if holders.overlays else ""
        if whose:
            raise Refused(
                f"{ref}: the console file {path} is {whose}, and a start would empty it",
                hint="name a file of its own",
            )
    file = look.fact(Key("file", path))
    printed = domain is not None and _is_in(domain, part.names)
    if isinstance(file, File) and file.binary and not printed:
        raise Refused(
            f"{ref}: the console file {path} is there already and is no text that a guest printed; a start would "
            "empty it",
            hint=f"name another file, or move it away: file {path}",
        )


def _refuse_rivals(ref: Ref, part: _Part, look: Look) -> None:
    """Raise Conflict where another guest has the file under another name: who has it keeps it."""
    spelled = (name for known in part.names for name in (known, *look.spellings(known)))
    claims = [Claim("disk", name) for name in dict.fromkeys(spelled)]
    claims += [Claim("disk", str(volume)) for name in part.names for volume in _volumes(name, look)]
    found = {rival for claim in claims for rival in look.claimants(claim)} - {ref}
    if not found:
        return
    first = min((ref, *found), key=lambda each: (*_turn_of(each, part.names, look), each))
    if first != ref:
        raise Conflict(
            f"{part.words} belongs to {first} under another name (the present holder keeps it), {ref} wants it too",
            hint=f"change one of them: kvmd describe {first}",
        )


def _turn_of(ref: Ref, names: tuple[str, ...], look: Look) -> tuple[bool, bool]:
    """Its place among those who want it: first who names it on the host, then who is there with an overlay on it."""
    domain = look.fact(look.key(ref))
    if not isinstance(domain, Domain):
        return True, True
    return not _is_in(domain, tuple(name for known in names for name in (known, *look.spellings(known)))), False


def _is_in(domain: Domain, names: tuple[str, ...]) -> bool:
    """True where its definition or its running self names one of them."""
    text = f"{domain.config}{domain.live}"
    return any(f"{quote}{escape(name)}{quote}" in text for name in names for quote in "'\"")
