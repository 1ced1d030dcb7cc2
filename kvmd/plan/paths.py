"""Paths that specs may name on this host."""

from __future__ import annotations

from collections.abc import Iterable

from kvmd.api.resource import Ref
from kvmd.errors import Refused
from kvmd.observed import File, Key
from kvmd.plan.look import Look


def refuse_outside(ref: Ref, paths: Iterable[str], look: Look) -> None:
    """Raise Refused for a path outside of policy.allowedPaths, symbolic links followed."""
    roots = look.rules.allowed_paths
    for path in paths:
        fact = look.fact(Key("file", path))
        real = fact.real if isinstance(fact, File) and fact.real else path
        for name in dict.fromkeys((path, real)):
            if not any(name == root or name.startswith(root.rstrip("/") + "/") for root in roots):
                raise Refused(
                    f"{ref}: {name} lies outside of what specs may name on this host ({', '.join(roots)})",
                    hint="move the file, or extend policy.allowedPaths in kvmd.yaml",
                )
