"""Cloud-init: a NoCloud seed, named by its content, that the guest finds as a CD-ROM labelled cidata.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from kvmd import ops
from kvmd.api.quantity import HostPath, Lines, Text
from kvmd.api.resource import Ref, SpecModel, hash_of
from kvmd.api.schema import Update, branch, leaf
from kvmd.api.secrecy import digest as secret_digest
from kvmd.kinds.virtual_machine.secret import SecretFrom, secret_credential, secret_fact, secret_file
from kvmd.observed import File, Key
from kvmd.plan.look import Look

SEED = "cloud-init"  # the name of the CD-ROM


class UserDataFrom(SecretFrom):
    """Where user data is read that no spec and no log shall show: exactly one."""

    file: HostPath | None = secret_file("web-user-data", Update.NEXT_BOOT)
    systemd_credential: Text | None = secret_credential("web-user-data", Update.NEXT_BOOT)


class CloudInit(SpecModel):
    """What cloud-init in the guest is told."""

    user_data: Lines | None = leaf(
        None,
        about="User data, as cloud-init reads it.",
        example="#cloud-config\npackages: [nginx]\n",
        update=Update.NEXT_BOOT,
        sensitive=True,
    )
    user_data_from: UserDataFrom | None = branch(None, about="Where user data is read instead.")
    meta_data: dict[str, Any] = leaf(
        {},
        about="More of meta-data; instance-id and local-hostname are kvmd's where they are not written.",
        example={"local-hostname": "web"},
        update=Update.NEXT_BOOT,
        sensitive=True,
    )
    network_config: dict[str, Any] | None = leaf(
        None,
        about="network-config, version 1 or 2; null leaves the network to the guest.",
        example={"version": 2, "ethernets": {"eth0": {"dhcp4": True}}},
        update=Update.NEXT_BOOT,
        sensitive=True,
    )
    on_change: Literal["Ignore", "NextBoot", "Rerun"] = leaf(
        "NextBoot",
        about="When this changes later. Ignore: the guest keeps its first seed. NextBoot: it finds the new one, as "
        "the same instance. Rerun: as a new instance, so that cloud-init runs again.",
        example="NextBoot",
    )

    @model_validator(mode="after")
    def _agree(self) -> CloudInit:
        if self.user_data is not None and self.user_data_from is not None:
            raise ValueError("write either `userData` or `userDataFrom`")
        return self


@dataclass(frozen=True, slots=True)
class Seed:
    """The seed that a machine shall have, and what makes it where it is not there yet."""

    path: str
    operations: tuple[ops.Op, ...] = ()


def seed_of(ref: Ref, spec: CloudInit, uuid: str, present: str | None, look: Look) -> Seed:
    """Name the seed by its content; *present* is the path of the one that the definition names."""
    if spec.on_change == "Ignore" and present is not None and _is_there(present, look):
        return Seed(present)
    digest = _digest(ref, spec, look)
    basis = [digest, spec.meta_data, spec.network_config]
    rerun = f"-{hash_of(basis)[:12]}" if spec.on_change == "Rerun" else ""
    meta = {"instance-id": f"{uuid}{rerun}", "local-hostname": ref.name, **spec.meta_data}
    former = f"{look.rules.seeds}/{ref.name}-{hash_of([*basis, meta])[:16]}.iso"
    if present == former and _is_there(former, look):
        return Seed(former)  # made before digests had a key
    name = f"{ref.name}-{secret_digest([*basis, meta])[:16]}.iso"
    path = f"{look.rules.seeds}/{name}"
    if _is_there(path, look):
        return Seed(path)
    source = spec.user_data_from.secret if spec.user_data_from else ""
    write = ops.SeedWrite(name, ref.name, path, spec.user_data or "", source, meta, spec.network_config)
    return Seed(path, (write,))


def _is_there(path: str, look: Look) -> bool:
    return isinstance(look.fact(Key("seed", path.rpartition("/")[2])), File)


def _digest(ref: Ref, spec: CloudInit, look: Look) -> str:
    """What names the user data without showing it."""
    if spec.user_data_from is None:
        return hash_of(spec.user_data or "")
    return secret_fact(ref, spec.user_data_from, look).digest
