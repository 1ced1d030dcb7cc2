"""One guest as planning sees it: what its spec asks for once every word is resolved, and what its definition says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmd import xmlmap
from kvmd.api.mark import derived_uuid
from kvmd.api.resource import Ref, Resource
from kvmd.errors import Refused
from kvmd.kinds.virtual_machine import host_devices, install, power, snapshots
from kvmd.kinds.virtual_machine.domain import Known, State, read
from kvmd.kinds.virtual_machine.origins import Origins, prepare, resolves
from kvmd.kinds.virtual_machine.same_file import refuse_same_files
from kvmd.kinds.virtual_machine.spec import Spec
from kvmd.kinds.virtual_machine.waits import consoles_of, files_of, folders_of, refuse_odd_consoles, written_by
from kvmd.kinds.virtual_machine.want import Wanted, known_devices, wanted
from kvmd.observed import Domain, Ledger
from kvmd.plan.look import Look
from kvmd.plan.model import Applied, ObjectMemory
from kvmd.plan.paths import refuse_around_own, refuse_outside


@dataclass(frozen=True, slots=True)
class Guest:
    """Its spec, its domain (None: there is none yet), and both in the same names.

    *resource* has the installer in it while that is wanted; *origins* has files in the place of objects and URLs.
    """

    resource: Resource
    spec: Spec
    domain: Domain | None
    ledger: Ledger
    applied: Applied | None
    memory: ObjectMemory
    installing: str
    origins: Origins
    uuid: str
    known: Known
    config: State | None
    want: Wanted

    @property
    def ref(self) -> Ref:
        """Its reference."""
        return self.resource.ref

    @property
    def moved(self) -> bool:
        """True where an object that it stands on is another file than when the definition was written."""
        then = self.domain.mark.resolved if self.domain is not None and self.domain.mark is not None else {}
        return any(then.get(name, path) != path for name, path in self.origins.files)


def files(spec: Spec) -> tuple[str, ...]:
    """Every file that planning looks at; those in which the kernel shows a PCI device, too."""
    return (*_named(spec), *host_devices.paths_of(spec.host_devices))


def _named(spec: Spec) -> tuple[str, ...]:
    """Every file and folder that must be there before it starts, and where consoles are written."""
    installer = files_of(install.with_installer(spec, install.WAITING))
    parts = (files_of(spec), folders_of(spec), consoles_of(spec), installer)
    return tuple(dict.fromkeys(path for part in parts for path in part))


def guest_of(ref: Ref, look: Look) -> Guest:
    """Look at it; Refused for what it may not name, and for a device that got another name."""
    resource = look.spec(ref)
    assert resource is not None and isinstance(resource.spec, Spec)
    fact = look.fact(look.key(ref))
    domain = fact if isinstance(fact, Domain) else None
    ledger = power.ledger_of(ref, look)
    installing = install.stage(resource.spec, domain, ledger)
    spec = install.with_installer(resource.spec, installing)
    resource = resource.in_words_of(spec)
    refuse_outside(ref, _named(spec), look)
    refuse_outside(ref, written_by(spec), look, changes=True)
    for folder in folders_of(spec):
        refuse_around_own(ref, folder, look)
    host_devices.refuse_forbidden(ref, spec.host_devices, look)
    refuse_odd_consoles(ref, spec, look)
    refuse_same_files(ref, spec, domain, look)
    root = xmlmap.parse(domain.config) if domain is not None and domain.config else None
    # Names of devices need the files of the spec; a file that nobody knows stays what the definition has.
    unresolved = read(root, Known()) if root is not None and resolves(spec) else None
    uuid = domain.uuid if domain else derived_uuid(look.host().machine_id, look.rules.owner, ref)
    origins = prepare(ref, spec, uuid, unresolved, look)
    origins = replace(origins, spec=snapshots.on_overlays(resource, origins.spec, domain, root, look))
    known = known_devices(resource, origins.spec, look)
    config = read(root, known) if root is not None else None
    want = wanted(resource, origins.spec, domain, config, look)
    want = replace(want, resolved=dict(want.resolved) | dict(origins.files) | dict(origins.drives.resolved))
    _refuse_renames(ref, config, want.state)
    applied, memory = look.applied(ref), look.memory(ref)
    return Guest(resource, spec, domain, ledger, applied, memory, installing, origins, uuid, known, config, want)


def _refuse_renames(ref: Ref, config: State | None, want: State) -> None:
    """Raise Refused where a device that stays has another name: taken at its word the guest would lose it."""
    if config is None:
        return
    disks = [(item.name, item.source) for item in config.disks], [(item.name, item.source) for item in want.disks]
    nics = [(item.name, item.mac) for item in config.interfaces], [(item.name, item.mac) for item in want.interfaces]
    for what, (before, after) in (("disks", disks), ("interfaces", nics)):
        then, now = ({name for name, _ in items} for items in (before, after))
        gone = {thing: name for name, thing in before if thing and name not in now}
        for name, thing in after:
            if name not in then and thing in gone:
                raise Refused(
                    f"{ref}: {what}[{gone[thing]}] is called {name} now and is still {thing}; a device's name is its "
                    "identity, and taken at its word the running guest would lose it",
                    hint=f"write `name: {gone[thing]}` back, or take it out, apply, and then add {name}",
                )
