"""The directory of specs as a whole: one snapshot a scan, with the last good version of whatever is broken.

A file counts once it has been quiet for the settle time; until then, and while it is invalid, its previous
version stays. What is gone counts as gone by the same rule, so a file that is replaced or renamed never is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from kvmd.api.problem import Position, Problem
from kvmd.api.resource import SpecModel
from kvmd.settings import Source
from kvmd.sources.file import UNENDED_FACTOR, Rank, Reading, SpecFile
from kvmd.sources.glance import Glance
from kvmd.sources.heard import Heard
from kvmd.sources.merge import Merger
from kvmd.sources.snapshot import Snapshot
from kvmd.sources.store import Store
from kvmd.sources.watch import Trail, Tree, follow, revision, unchanged, walk


class Directory:
    """Reads a directory of specs; call ``scan`` from one thread, after an event or when ``wake_at`` is reached."""

    def __init__(
        self,
        root: str,
        source: Source,
        specs: Mapping[str, type[SpecModel]],
        store: Store | None,
        heard: Heard | None = None,
    ) -> None:
        self.root = os.path.abspath(root)
        self._source = source
        self._reading = Reading(source, specs, store)
        self._merger = Merger(specs, store)
        self._files: dict[str, SpecFile] = {}
        self._touched: set[str] = set()  # files that may be other than when they were merged last
        self._restless: set[str] = set()  # files that are not simply valid and at rest
        self._documents = 0
        self._device: int | None = None
        self._last: Snapshot | None = None
        self._glance = Glance(heard, source.rescan)

    def scan(self, now: float, wall: float) -> Snapshot:
        """Look at the whole tree; *now* is monotonic, *wall* the time of day that file times are compared with."""
        trail = follow(self.root)
        glance = self._glance.look(trail, self._restless, now)
        tree, reason = (glance.tree, "") if glance is not None else self._survey(trail)
        if tree is None:
            return self._keep(self._without_source(reason, trail))
        calm = self._take_in(tree, glance.paths if glance is not None else tree.files, now, wall) and not reason
        if not unchanged(tree) or follow(self.root) != trail:
            calm, reason = False, reason or "the directory changed during the scan"
            self._glance.forget()
        elif glance is None and not reason:
            self._glance.remember(tree, trail, now)
        last = self._last
        found = revision(trail)
        if calm and last is not None and last.complete and last.wake_at is None and last.revision == found:
            return last
        return self._keep(self._combine(tree, reason, found, now))

    def _survey(self, trail: Trail) -> tuple[Tree | None, str]:
        """Walk the tree; without a tree the reason says why absence means nothing at all."""
        try:
            if not trail.exists:
                return None, f"{self.root} does not exist"
            if not os.path.isdir(trail.path):
                return None, f"{self.root} is not a directory"
            device = os.stat(trail.path).st_dev
            mounted = device != os.stat(os.path.dirname(trail.path)).st_dev
        except OSError as error:
            return None, f"{self.root} cannot be looked at: {error.strerror}"
        tree = walk(self.root, trail.path, self._source.max_files)
        if tree.too_many:
            return None, f"{self.root} holds more than {self._source.max_files} files (source.maxFiles)"
        if self.root in tree.faults:
            return None, f"{self.root}: {tree.faults[self.root]}"
        moved = self._device is not None and device != self._device
        if not tree.files and not tree.faults and (mounted or moved):
            what = "a fresh mount point" if mounted else "on another file system than before"
            return None, f"{self.root} is empty and {what}"
        self._device = device
        return tree, f"{self.root} is on another file system than before" if moved else ""

    def _without_source(self, reason: str, trail: Trail) -> Snapshot:
        """Hold everything: what was there before, else everything that is stored."""
        before = self._last
        if before is None:
            merger = self._merger
            resources = {ref: found for ref in merger.stored() if (found := merger.revive(ref)) is not None}
            positions = {ref: resource.position for ref, resource in resources.items()}
        else:
            resources, positions = dict(before.resources), dict(before.positions)
        hint = "put the directory back; until then every object stays as it is and nothing is removed"
        return Snapshot(
            resources=MappingProxyType(resources),
            positions=MappingProxyType(positions),
            problems=(Problem(Position(self.root), "source-unavailable", reason, hint), *self._merger.store_problems),
            invalid_files=before.invalid_files if before else (),
            pending=(),
            duplicates=before.duplicates if before else MappingProxyType({}),
            complete=False,
            reason=reason,
            empty=True,
            files=0,
            wake_at=None,
            revision=revision(trail),
        )

    def _take_in(self, tree: Tree, paths: Iterable[str], now: float, wall: float) -> bool:
        """Bring those files up to date; return True where nothing changed and nothing is under way."""
        calm, files = True, self._files
        for path in paths:
            real, stamp = tree.files[path]
            file = files.get(path)
            if file is None:
                file = files[path] = SpecFile(path)
            if stamp != file.used or file.candidate is not None or file.gone or file.fault is not None:
                calm = False
                self._touched.add(path)
                self._documents -= file.documents
                file.look(real, stamp, now, wall, self._reading)
                self._documents += file.documents
        if len(files) == len(tree.files) and not tree.faults:
            return calm
        self._take_in_faults(tree)
        pending = any(file.candidate is not None and not file.gone for file in files.values())
        for path in [path for path in files if path not in tree.files and path not in tree.faults]:
            self._miss(files[path], tree, pending, now, wall)
        return False

    def _take_in_faults(self, tree: Tree) -> None:
        """Files that cannot be looked at, and all files of folders that cannot."""
        for path, text in tree.faults.items():
            hint = "mend it or remove it; until then its objects stay as they are"
            fault = Problem(Position(path), "unreadable", text, hint)
            self._files.setdefault(path, SpecFile(path))
            for file in self._files.values():
                if file.path == path or file.path.startswith(f"{path}/"):
                    file.fault = fault
                    self._touched.add(file.path)

    def _miss(self, file: SpecFile, tree: Tree, pending: bool, now: float, wall: float) -> None:
        """Let a missing file go once its directory is quiet, and later while another file is being written."""
        if file.fault is not None and file.fault.position.file in tree.faults:
            return  # it is in a directory that cannot be read
        self._touched.add(file.path)
        if file.good is None and not self._merger.stands_in_for(file.path):
            self._forget(file)
            return
        if not file.gone:
            folder = os.path.dirname(file.path)
            while folder not in tree.folders and folder != self.root:
                folder = os.path.dirname(folder)
            changed = tree.folders[folder][1] if folder in tree.folders else 0
            file.gone, file.fault = True, None
            file.quiet_since, file.factor = now - max(0.0, wall - changed / 1e9), 1
        factor = UNENDED_FACTOR if pending else 1
        if now >= file.quiet_since + factor * self._source.settle:
            self._forget(file)

    def _forget(self, file: SpecFile) -> None:
        self._documents -= file.documents
        self._merger.let_go(file.path)
        del self._files[file.path]

    def _combine(self, tree: Tree, reason: str, found: str, now: float) -> Snapshot:
        """Make a snapshot of what each file asks for."""
        before = self._last.resources if self._last is not None else {}
        merged = self._merger.merge(self._files, self._touched, before)
        restless = self._files_not_at_rest()
        invalid = [file for file in restless if file.rank is Rank.HELD]
        pending = [file for file in restless if file.candidate is not None and not file.gone]
        faults = {file.fault: file.path for file in restless if file.fault is not None}
        if not reason and faults:
            reason = next(f"{fault.position.file}: {fault.message}" for fault in faults)
        problems = [
            *faults,
            *(problem for file in restless for problem in file.problems),
            *(problem for found in merged.problems.values() for problem in found),
            *merged.lost,
        ]
        return Snapshot(
            resources=MappingProxyType(merged.resources),
            positions=MappingProxyType(merged.positions),
            problems=(*sorted(problems), *self._merger.store_problems),
            invalid_files=tuple(file.path for file in invalid),
            pending=tuple(file.path for file in pending),
            duplicates=MappingProxyType(merged.duplicates),
            complete=not reason,
            reason=reason,
            empty=not self._documents and not invalid and not pending,
            files=len(tree.files),
            wake_at=self._wake_at(restless, tree.changed or reason.endswith("during the scan"), now),
            revision=found,
        )

    def _files_not_at_rest(self) -> list[SpecFile]:
        """Every file that is invalid, gone or being written, by name; what was touched is settled with that."""
        known = self._restless | self._touched
        files = (self._files[path] for path in sorted(known) if path in self._files)
        restless = [file for file in files if file.rank is not Rank.CURRENT]
        self._restless = {file.path for file in restless}
        self._touched.clear()
        return restless

    def _wake_at(self, restless: list[SpecFile], again: bool, now: float) -> float | None:
        """When to look again although nothing happens."""
        settle = self._source.settle
        times = [time for file in restless if (time := file.settles_at(settle)) is not None]
        wakes = [max(now + settle / 10, time) for time in times] + ([now + settle] if again else [])
        return min(wakes, default=None)

    def _keep(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot before this one if both say the same."""
        last = self._last
        if last is None or not last.says_the_same(snapshot):
            self._last = last = snapshot
        return last
