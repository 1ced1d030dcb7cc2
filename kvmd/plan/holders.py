"""Who stands on a file that is to go."""

from __future__ import annotations

from kvmd.api.resource import Ref
from kvmd.errors import Blocked
from kvmd.observed import Holders, Key, Volume
from kvmd.plan.look import Look


def refuse_held(ref: Ref, path: str, look: Look) -> None:
    """Raise Blocked while a domain that stays, or another file, stands on an object's file, whoever made it."""
    fact = look.fact(Key("holders", path))
    if not isinstance(fact, Holders):
        return
    domains = sorted(set(fact.domains) - look.departing_names(ref))
    if domains:
        hint = f"see: virsh domblklist {domains[0]}"
        raise Blocked(f"{ref}: {path} is used by {', '.join(domains[:4])}", hint=hint)
    leaving = [look.fact(look.key(user.source)) for user in look.users(ref) if look.spec(user.source) is None]
    paths = {volume.path for volume in leaving if isinstance(volume, Volume)}
    overlays = [overlay for overlay in fact.overlays if overlay not in paths]
    if overlays:
        hint = f"see: qemu-img info {overlays[0]}"
        raise Blocked(f"{ref}: {', '.join(overlays[:4])} stands on {path}", hint=hint)
