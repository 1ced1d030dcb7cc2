"""What the watch hands to whoever reads the directory: the paths that it was told of, across threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable

MOST_PATHS = 64  # from so many on a walk is hardly dearer


class Heard:
    """What a watch has told of since somebody last asked; None where anything may have changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing = False
        self._paths: set[str] | None = None

    def stand(self, standing: bool) -> None:
        """A watch stands from now on, or no longer; whatever was before it, nobody told of."""
        with self._lock:
            self._standing, self._paths = standing, None

    def tell(self, paths: Iterable[str]) -> None:
        """These have changed, or what is under that name."""
        with self._lock:
            if self._paths is not None:
                self._paths.update(paths)
                if len(self._paths) > MOST_PATHS:
                    self._paths = None

    def doubt(self) -> None:
        """Have the whole tree looked at next time."""
        with self._lock:
            self._paths = None

    def take(self) -> set[str] | None:
        """What was told of, once. Whoever looks afterwards sees it, or is told again."""
        with self._lock:
            paths, self._paths = self._paths, set() if self._standing else None
            return paths
