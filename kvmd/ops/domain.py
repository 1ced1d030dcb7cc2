"""What can be done to a domain: its definition, its running self, its power."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from kvmd.api.mark import Mark
from kvmd.ops.base import Impact, Op


@dataclass(frozen=True, slots=True)
class DomainDefine(Op):
    """Write the persistent definition (mark included); it never touches the running guest.

    *base* is the definition that *xml* was made from: where libvirt has another one by now, nothing is written.
    """

    uuid: str
    xml: str = field(repr=False)
    base: str = field(default="", repr=False)
    creates: bool = False
    secrets: tuple[str, ...] = ()  # where the passwords are read that stand in *xml* as digests
    verb: ClassVar[str] = "define domain"


@dataclass(frozen=True, slots=True)
class DomainStart(Op):
    """Boot a defined domain; *settle_seconds* later those of a higher startup order may follow."""

    uuid: str
    settle_seconds: int = 0
    verb: ClassVar[str] = "start domain"


@dataclass(frozen=True, slots=True)
class DomainResume(Op):
    """Let a paused guest run on."""

    uuid: str
    verb: ClassVar[str] = "resume domain"


@dataclass(frozen=True, slots=True)
class DomainShutdown(Op):
    """Ask the guest to power off, by *methods* in order; success of the call is not success."""

    uuid: str
    methods: tuple[str, ...] = ("agent", "acpi")
    restart: bool = False  # it is to be started again afterwards
    impact: ClassVar[Impact] = Impact.RESTART
    verb: ClassVar[str] = "shut down domain"


@dataclass(frozen=True, slots=True)
class DomainDestroy(Op):
    """Pull the plug."""

    uuid: str
    reason: str = ""
    impact: ClassVar[Impact] = Impact.RESTART
    verb: ClassVar[str] = "force off domain"


@dataclass(frozen=True, slots=True)
class DomainUndefine(Op):
    """Remove the definition; disks and TPM state stay, and NVRAM unless its file is to be removed."""

    uuid: str
    nvram: bool = False
    verb: ClassVar[str] = "undefine domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name}{' and remove its NVRAM' if self.nvram else ''}"


@dataclass(frozen=True, slots=True)
class DomainSetVcpus(Op):
    """Give a running guest more virtual CPUs."""

    uuid: str
    count: int
    verb: ClassVar[str] = "set live vcpus of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.count}"


@dataclass(frozen=True, slots=True)
class DomainSetMemory(Op):
    """Move the balloon of a running guest; bytes."""

    uuid: str
    size: int
    verb: ClassVar[str] = "set live memory of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.size // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class DomainRequestMemory(Op):
    """Ask a running guest to take or give memory of its virtio-mem device, *xml*; *size* is all it has then."""

    uuid: str
    size: int
    xml: str = field(repr=False)
    verb: ClassVar[str] = "request live memory of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.size // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class DomainSetIoTune(Op):
    """Set every limit of a disk of a running guest, under libvirt's names; 0 is none."""

    uuid: str
    target: str  # what libvirt calls the disk: vda
    limits: tuple[tuple[str, int], ...]
    verb: ClassVar[str] = "set limits of disk of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        said = ", ".join(f"{name} {value}" for name, value in self.limits if value) or "none"
        return f"set limits of {self.target} of running domain {self.name}: {said}"


@dataclass(frozen=True, slots=True)
class DomainSetIoThreads(Op):
    """Add and take away threads of a running QEMU that serve disks, by their numbers."""

    uuid: str
    add: tuple[int, ...] = ()
    remove: tuple[int, ...] = ()
    verb: ClassVar[str] = "set I/O threads of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        words = [f"add {number}" for number in self.add] + [f"remove {number}" for number in self.remove]
        return f"{' and '.join(words)} of the I/O threads of running domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainSetBalloonPeriod(Op):
    """How often the balloon driver of a running guest tells of its memory, in seconds; 0 is never."""

    uuid: str
    seconds: int
    verb: ClassVar[str] = "set period of memory statistics of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} to {self.seconds} s"


@dataclass(frozen=True, slots=True)
class DomainAttach(Op):
    """Plug into the running guest the device that its definition holds under *alias*."""

    uuid: str
    alias: str
    memory: bool = False  # it takes memory of the host
    verb: ClassVar[str] = "attach device to domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"attach {self.alias} to domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainDetach(Op):
    """Ask the running guest to let go of a device; *xml* names it where it has no alias of ours."""

    uuid: str
    alias: str
    xml: str = field(default="", repr=False)
    verb: ClassVar[str] = "detach device from domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"detach {self.alias} from domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainUpdateDevice(Op):
    """Make a live device (CD-ROM media, NIC link or attachment, password of the screen) what *xml* says."""

    uuid: str
    alias: str
    xml: str = field(repr=False)
    secrets: tuple[str, ...] = ()  # where the passwords are read that stand in *xml* as digests
    verb: ClassVar[str] = "update device of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"update {self.alias} of running domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainSetMark(Op):
    """Write (None: take off) the mark, in the definition and, where *live*, in the running self."""

    uuid: str
    mark: Mark | None
    live: bool = False
    verb: ClassVar[str] = "mark domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{'take over' if self.mark else 'let go of'} domain {self.name}"


@dataclass(frozen=True, slots=True)
class DomainSetAutostart(Op):
    """Switch libvirt's own autostart; kvmd owns booting, so on what it manages it is off."""

    uuid: str
    enabled: bool = False
    verb: ClassVar[str] = "switch autostart of domain"

    def describe(self) -> str:
        """What a plan says of it."""
        return f"{self.verb} {self.name} {'on' if self.enabled else 'off'}"


@dataclass(frozen=True, slots=True)
class DomainSetOnReboot(Op):
    """What becomes of the running domain when its guest reboots: restart, or destroy (it is off then)."""

    uuid: str
    action: str
    verb: ClassVar[str] = "set what a reboot of the guest does"

    def describe(self) -> str:
        """What a plan says of it."""
        effect = "end it, to be started anew" if self.action == "destroy" else "reboot it as it is"
        return f"let a reboot from inside domain {self.name} {effect}"
