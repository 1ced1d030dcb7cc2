"""Paths that specs may name on this host."""

from __future__ import annotations

from collections.abc import Iterable

from kvmd.api.resource import Ref
from kvmd.errors import Refused
from kvmd.observed import File, Key
from kvmd.plan.look import Look
from kvmd.plan.model import Rules

SECRETS = "/etc/kvmd/secrets"
FOLDERS_FOR_PEOPLE = ("boot", "consoles", "iso")  # below paths.state, made by kvmd; the rest is its own
QUICKSTART = "quickstart"  # but for what deploy/quickstart.sh keeps there
IMAGES = "images"  # people may read there, too


def is_below(path: str, root: str) -> bool:
    """True for the root itself and all in it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def may_be_named(path: str, roots: Iterable[str]) -> bool:
    """True for a path that policy.allowedPaths lets specs name, as it is written."""
    return any(is_below(path, root) for root in roots)


def refuse_outside(ref: Ref, paths: Iterable[str], look: Look, changes: bool = False) -> None:
    """Raise Refused for a path that specs may not name, symbolic links followed.

    That is one outside of policy.allowedPaths, and whatever these say one of kvmd's own files; with *changes*, where
    something will be written, the images in its store, too.
    """
    roots = look.rules.allowed_paths
    for path in paths:
        for name in dict.fromkeys((path, real_path(path, look))):
            if not may_be_named(name, roots):
                raise Refused(
                    f"{ref}: {name} lies outside of what specs may name on this host ({', '.join(roots)})",
                    hint="move the file, or extend policy.allowedPaths in kvmd.yaml",
                )
            refuse_own(ref, name, look, changes)


def refuse_own(ref: Ref, path: str, look: Look, changes: bool = False) -> None:
    """Raise Refused for what kvmd keeps for itself: its journals, secrets of others, images and seeds of guests."""
    own = _owner_of(path, look.rules, changes)
    if own:
        free = ", ".join(_free(changes))
        hint = f"name something elsewhere; below {own} specs may name what is in {free}"
        raise Refused(f"{ref}: {path} belongs to kvmd itself", hint=hint)


def _free(changes: bool) -> tuple[str, ...]:
    folders = (*FOLDERS_FOR_PEOPLE, QUICKSTART)
    return folders if changes else (*folders, IMAGES)


def _owner_of(path: str, rules: Rules, changes: bool = False) -> str:
    """The folder of kvmd that has it; "" for what is not its own."""
    for own in rules.own_paths:
        if is_below(path, own) and not any(is_below(path, f"{own.rstrip('/')}/{name}") for name in _free(changes)):
            return own
    return ""


def secret_may_be_read(name: str, rules: Rules) -> bool:
    """True for a credential, and for a file that specs may name as a secret: no other is even opened."""
    if not name.startswith("/"):
        return True
    return may_be_named(name, (SECRETS, *rules.allowed_paths)) and not _owner_of(name, rules)


def refuse_around_own(ref: Ref, folder: str, look: Look) -> None:
    """Raise Refused for a folder to share that has kvmd's own files in it."""
    for name in (folder, real_path(folder, look)):
        if any(is_below(own, name) for own in look.rules.own_paths):
            raise Refused(f"{ref}: {name} has kvmd's own files in it", hint="share a narrower folder")


def real_path(path: str, look: Look) -> str:
    """Where a path leads, as far as that is known."""
    fact = look.fact(Key("file", path))
    return fact.real if isinstance(fact, File) and fact.real else path
