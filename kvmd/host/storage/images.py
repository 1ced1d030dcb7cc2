"""The image store: files that came once, were checked, and never change; a side file says what each is."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvmd.api.mark import Mark
from kvmd.errors import Retry
from kvmd.host.storage.trash import throw_away
from kvmd.observed import Fact, Image, Key

SIDE = ".json"
PARTS = ".parts"


class ImageStore:
    """``<state>/images``; libvirt's guests must be able to reach it, so it can be entered by everybody."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._known: dict[Key, Image] = {}

    def path(self, name: str) -> str:
        """Where the image of that name is, or will be."""
        return os.path.join(self.directory, name)

    def part(self, name: str) -> str:
        """Where it is while it comes; the directory is made."""
        folder = os.path.join(self.directory, PARTS)
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return os.path.join(folder, name)

    def facts(self) -> Mapping[Key, Fact]:
        """Every image that is whole: the side file is written last."""
        found: dict[Key, Image] = {}
        with contextlib.suppress(OSError):
            for entry in os.listdir(self.directory):
                if entry.endswith(SIDE) and (image := self.read(entry.removesuffix(SIDE))) is not None:
                    key = Key("image", image.name)
                    known = self._known.get(key)
                    found[key] = known if known == image and known is not None else image
        self._known = found
        return dict(found)

    def read(self, name: str) -> Image | None:
        """One image, or None where it is not whole."""
        path = self.path(name)
        try:
            status = os.stat(path)
            with open(path + SIDE, encoding="utf-8") as file:
                data: dict[str, Any] = json.load(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size != data["size"]:
                return None
            mark = Mark.from_text(data["mark"]) if data.get("mark") else None
            return Image(name, name, path, data["format"], data["size"], data["capacity"], data["digest"], mark)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, image: Image) -> None:
        """Write the side file, durable when this returns. Raises Retry."""
        data = {
            "digest": image.digest,
            "format": image.format,
            "size": image.size,
            "capacity": image.capacity,
            "mark": image.mark.as_text() if image.mark else "",
        }
        temporary = self.part(image.name + SIDE)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, image.path + SIDE)
        except OSError as error:
            message = f"{image.path + SIDE} cannot be written: {error.strerror}"
            raise Retry(message, hint=f"see: df {self.directory}") from error

    def supersede(self, mark: Mark) -> None:
        """Let go of every other image of that object: what its spec asks for now is another file."""
        for image in [fact for fact in self.facts().values() if isinstance(fact, Image)]:
            theirs = image.mark
            if theirs is None or theirs.ref != mark.ref or theirs.owner != mark.owner or image.name == mark.object_id:
                continue
            self.write(replace(image, mark=replace(theirs, generation=0, resolved={"superseded": "true"})))

    def superseded(self) -> list[Image]:
        """Images that may go as soon as nothing stands on them."""
        facts = self.facts().values()
        return [f for f in facts if isinstance(f, Image) and f.mark is not None and "superseded" in f.mark.resolved]

    def idle_media(self, seconds: float) -> list[Image]:
        """What was fetched for drives of guests, and has been here for long; it may go if no guest has it."""
        found = []
        for image in self.facts().values():
            if isinstance(image, Image) and image.is_medium:
                with contextlib.suppress(OSError):
                    if time.time() - os.stat(image.path + SIDE).st_mtime > seconds:
                        found.append(image)
        return found

    def with_digest(self, checksum: str) -> Image | None:
        """An image with that very content, or None; a medium of a guest may have come for it alone."""
        images = (fact for fact in self.facts().values() if isinstance(fact, Image))
        return next((image for image in images if image.digest == checksum and not image.is_medium), None)

    def remove(self, image: Image) -> None:
        """Move it to the trash, since nobody knows every file that may stand on it; the side file goes first."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(image.path + SIDE)
        with contextlib.suppress(FileNotFoundError):
            throw_away(image.path)
