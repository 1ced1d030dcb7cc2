"""What a spec names and nobody may see: a file on the host or a credential of systemd, read by the host alone."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from kvmd.api.quantity import HostPath, Text
from kvmd.api.resource import Ref, SpecModel
from kvmd.api.schema import Update, leaf
from kvmd.errors import Blocked, Refused
from kvmd.observed import Key, Secret
from kvmd.plan.look import Look
from kvmd.plan.paths import SECRETS, is_below, may_be_named, refuse_own


def secret_file(example: str, update: Update = Update.LIVE, unless: str = "") -> Any:
    """Declare the leaf ``file`` of a secret."""
    return leaf(
        None,
        about="File on the host, below /etc/kvmd/secrets or policy.allowedPaths, not readable by others.",
        example=f"{SECRETS}/{example}",
        update=update,
        unless=unless,
    )


def secret_credential(example: str, update: Update = Update.LIVE, unless: str = "") -> Any:
    """Declare the leaf ``systemdCredential`` of a secret."""
    return leaf(
        None,
        about="Credential that systemd gives to kvmd (LoadCredential=).",
        example=example,
        update=update,
        unless=unless,
        pattern=r"^[A-Za-z0-9_.-]+$",
    )


class SecretFrom(SpecModel):
    """Where something is read that no spec and no log shall show: exactly one."""

    file: HostPath | None = secret_file("web")
    systemd_credential: Text | None = secret_credential("web")

    @model_validator(mode="after")
    def _one(self) -> SecretFrom:
        if (self.file is None) == (self.systemd_credential is None):
            raise ValueError("write exactly one of `file` and `systemdCredential`")
        return self

    @property
    def secret(self) -> str:
        """The name of the fact."""
        return self.file or f"credential:{self.systemd_credential}"


def refuse_elsewhere(ref: Ref, path: str, look: Look) -> None:
    """Raise Refused for a file that a spec may not name as a secret."""
    roots = (SECRETS, *look.rules.allowed_paths)
    refuse_own(ref, path, look)
    if not may_be_named(path, roots):
        raise Refused(
            f"{ref}: {path} lies outside of {', '.join(roots)}",
            hint=f"move it to {SECRETS}, or extend policy.allowedPaths in kvmd.yaml",
        )


def secret_fact(ref: Ref, source: SecretFrom, look: Look) -> Secret:
    """The fact of a secret that may be named and can be read; raises Refused or Blocked."""
    if source.file:
        refuse_elsewhere(ref, source.file, look)
    fact = look.fact(Key("secret", source.secret))
    if source.file and isinstance(fact, Secret) and fact.real and not is_below(source.file, SECRETS):
        refuse_elsewhere(ref, fact.real, look)  # only an administrator makes links in SECRETS
    if not isinstance(fact, Secret) or fact.problem:
        why = fact.problem if isinstance(fact, Secret) else "not read yet"
        raise Blocked(f"{ref}: {source.secret}: {why}", hint="put it there; it is looked at every few seconds")
    return fact


def password_fact(ref: Ref, source: SecretFrom, look: Look) -> Secret:
    """The same of a secret that holds one line; raises Refused or Blocked."""
    fact = secret_fact(ref, source, look)
    if not fact.password:
        raise Blocked(f"{ref}: {fact.name}: no password in it", hint="write one line into it")
    return fact
