"""``/etc/kvmd/kvmd.yaml``: paths, addresses, intervals and policy, checked against each other at load.

Durations are in seconds inside; files may write ``300ms``, ``20s``, ``5m``, ``1h`` or a number of seconds.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from kvmd.errors import SettingsError

DEFAULT_FILE = "/etc/kvmd/kvmd.yaml"
LIBVIRT_JOB_WAIT_SECONDS = 30.0  # VIR_DOMAIN_JOB wait in libvirt's qemu driver
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: Any) -> Any:
    """Read ``300ms``, ``20s``, ``5m`` or ``1h``; numbers pass as seconds."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(f"'{value}' is not a duration; write e.g. 300ms, 20s, 5m or 1h")
        return float(match[1]) * _FACTORS[match[2]]
    return value


_SIZE = re.compile(r"(\d+)(Ki|Mi|Gi|Ti)?")
_SIZE_FACTORS = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_size(value: Any) -> Any:
    """Read ``512Mi`` or ``4Gi``; numbers pass as bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"'{value}' is not a size; write e.g. 512Mi or 4Gi")
        return int(match[1]) * _SIZE_FACTORS[match[2]]
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True)


class Source(_Section):
    """Where specs are read, and how long a file must have been quiet."""

    path: str = "/etc/kvmd/specs"
    settle: Seconds = 0.3
    rescan: Seconds = 20.0
    max_file_bytes: int = 2**20
    max_depth: int = 64
    max_nodes: int = 100_000
    max_documents: int = 5_000
    max_files: int = 10_000


class Libvirt(_Section):
    """How libvirt is reached; the deadlines stay above libvirt's own job wait of 30 s."""

    uri: str = "qemu:///system"
    keepalive_interval: int = 5
    keepalive_count: int = 3
    relist: Seconds = 300.0
    nvram: str = "/var/lib/libvirt/qemu/nvram"  # where UEFI keeps the variables of each machine
    slow: Seconds = 2.0
    modify_deadline: Seconds = 45.0
    define_deadline: Seconds = 60.0


class Http(_Section):
    """Where metrics and health are served."""

    listen: str | None = "127.0.0.1:9178"
    web_config: str | None = None


class Paths(_Section):
    """*state* must survive; *cache* and *run* may be deleted at any time."""

    state: str = "/var/lib/kvmd"
    cache: str = "/var/cache/kvmd"
    run: str = "/run/kvmd"

    @property
    def every(self) -> tuple[str, ...]:
        """All of them."""
        return (self.state, self.cache, self.run)


class Prune(_Section):
    """When an object may go because its spec went; the brake counts everything gone within the hour."""

    grace: Seconds = 15.0
    max_percent: int = Field(default=30, ge=0, le=100)
    min_objects: int = Field(default=2, ge=0)


class Backoff(_Section):
    """Retry of one object: first, times two, up to the limit, with jitter of a fifth."""

    first: Seconds = 1.0
    limit: Seconds = 300.0
    jitter: float = Field(default=0.2, ge=0, lt=1)


class Defaults(_Section):
    """Defaults of specs on this host."""

    accelerator: Literal["auto", "kvm", "tcg"] = "auto"


class Admission(_Section):
    """How much of the host's memory is promised to no guest; null lets any guest start."""

    memory_reserve: Size | None = 512 * 2**20


class Policy(_Section):
    """What a spec may name on this host; never kvmd's own files, see kvmd/plan/paths.py."""

    allowed_paths: tuple[str, ...] = (
        "/var/lib/libvirt/images",
        *(f"/var/lib/kvmd/{folder}" for folder in ("boot", "consoles", "images", "iso", "quickstart")),
    )
    uplinks: str | tuple[str, ...] = "*"
    host_devices: tuple[str, ...] = ()
    allow_monitor_commands: bool = False


class Log(_Section):
    """Log format and level; auto is pretty on a terminal and JSON lines elsewhere."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Section):
    """All settings. Flags of the command line override the file, nothing else does."""

    owner: str = Field(default="kvmd", pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")
    source: Source = Source()
    libvirt: Libvirt = Libvirt()
    http: Http = Http()
    paths: Paths = Paths()
    prune: Prune = Prune()
    backoff: Backoff = Backoff()
    defaults: Defaults = Defaults()
    admission: Admission = Admission()
    policy: Policy = Policy()
    log: Log = Log()
    workers: int = Field(default_factory=lambda: max(4, 2 * (os.cpu_count() or 1)), ge=1, le=64)

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        rules = (
            (
                self.libvirt.modify_deadline > LIBVIRT_JOB_WAIT_SECONDS,
                f"libvirt.modifyDeadline ({self.libvirt.modify_deadline:g}s) must be above libvirt's own job "
                f"wait of {LIBVIRT_JOB_WAIT_SECONDS:g}s, or every wait for a busy guest looks like a hang",
            ),
            (
                self.libvirt.define_deadline >= self.libvirt.modify_deadline,
                "libvirt.defineDeadline must not be below libvirt.modifyDeadline",
            ),
            (
                self.source.rescan >= 3 * self.source.settle,
                f"source.rescan ({self.source.rescan:g}s) must be at least 3 times source.settle "
                f"({self.source.settle:g}s), or no file ever counts as settled",
            ),
            (
                self.prune.grace >= 2 * self.source.settle,
                f"prune.grace ({self.prune.grace:g}s) must be at least 2 times source.settle "
                f"({self.source.settle:g}s), or a half-done checkout looks like a removal",
            ),
            (self.backoff.limit >= self.backoff.first, "backoff.limit must not be below backoff.first"),
            (self.libvirt.relist > self.source.rescan, "libvirt.relist must be above source.rescan"),
        )
        for holds, text in rules:
            if not holds:
                raise ValueError(text)
        return self

    @property
    def socket(self) -> str:
        """The UNIX socket on which the daemon answers."""
        return os.path.join(self.paths.run, "kvmd.sock")


def settings_from(data: Any, file: str) -> Settings:
    """Validate the plain data of a settings file; raise SettingsError with every fault at once."""
    try:
        return Settings.model_validate({} if data is None else data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'settings'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise SettingsError(f"{file}: {faults}", hint="see docs/operations.md for every key") from None
