"""The spec of a VirtualMachine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import model_validator

from kvmd.api.quantity import Boolean, DeviceName, DomainName, HostPath, Integer, Memory, Text
from kvmd.api.resource import SpecModel
from kvmd.api.schema import Update, branch, leaf
from kvmd.kinds.virtual_machine.balloon import Balloon
from kvmd.kinds.virtual_machine.board import HugePages, Tpm, Watchdog
from kvmd.kinds.virtual_machine.cloud_init import SEED, CloudInit
from kvmd.kinds.virtual_machine.devices import SoundModel
from kvmd.kinds.virtual_machine.disk import Disk
from kvmd.kinds.virtual_machine.filesystems import Filesystem
from kvmd.kinds.virtual_machine.firmware import Firmware
from kvmd.kinds.virtual_machine.graphics import Graphics, Video
from kvmd.kinds.virtual_machine.host_devices import HostDevice
from kvmd.kinds.virtual_machine.install import TRAY, Install
from kvmd.kinds.virtual_machine.kernel_boot import KernelBoot
from kvmd.kinds.virtual_machine.memory import refuse_odd
from kvmd.kinds.virtual_machine.nic import Interface
from kvmd.kinds.virtual_machine.numa import Cell
from kvmd.kinds.virtual_machine.numa import agree as agree_on_cells
from kvmd.kinds.virtual_machine.processor import Feature
from kvmd.kinds.virtual_machine.restart import UpdatePolicy
from kvmd.kinds.virtual_machine.shutdown import Shutdown
from kvmd.kinds.virtual_machine.startup import Dependency, Startup


def _distinct(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two {what} are called '{name}'; names within a list must differ")
        seen.add(name)


def _once(values: Iterable[str | None], what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value is not None and value in seen:
            raise ValueError(f"{what} {value} is named twice; only one device can have it")
        seen.add(value or "")


class Topology(SpecModel):
    """Sockets, cores and threads; their product is the maximum number of vCPUs."""

    sockets: Integer = leaf(about="Sockets.", example=1, update=Update.NEXT_BOOT, ge=1)
    cores: Integer = leaf(about="Cores of a socket.", example=4, update=Update.NEXT_BOOT, ge=1)
    threads: Integer = leaf(1, about="Threads of a core.", example=1, update=Update.NEXT_BOOT, ge=1)


class Cpu(SpecModel):
    """Virtual CPUs."""

    vcpus: Integer = leaf(
        1, about="Virtual CPUs now.", example=2, unless="NextBoot when fewer, or above maxVcpus", ge=1, le=710
    )
    max_vcpus: Integer | None = leaf(
        None, about="How many vcpus may grow to; default vcpus.", example=4, update=Update.NEXT_BOOT, ge=1, le=710
    )
    model: Text | None = leaf(
        None,
        about="host-model, host-passthrough, maximum or a model that QEMU knows; null takes host-model with kvm and "
        "the hypervisor's default with tcg.",
        example="host-model",
        update=Update.NEXT_BOOT,
        min_length=1,
    )
    topology: Topology | None = branch(None, about="Topology that the guest sees.")
    features: tuple[Feature, ...] = branch(
        (), about="Features beside those of the model, which must be named; null and default are those of the model."
    )
    numa: tuple[Cell, ...] = branch(
        (), about="NUMA cells that the guest sees; default none. Not with hotplug VirtioMem or Dimm."
    )

    @property
    def maximum(self) -> int:
        """The greatest number of vCPUs until the next boot."""
        return self.max_vcpus or self.vcpus

    @model_validator(mode="after")
    def _agree(self) -> Cpu:
        if self.vcpus > self.maximum:
            raise ValueError(f"vcpus ({self.vcpus}) is above maxVcpus ({self.maximum})")
        _distinct((feature.name for feature in self.features), "features")
        if self.features and self.model is None:
            raise ValueError("features are said beside those of a model; write `model`, e.g. host-model")
        if self.topology is not None:
            product = self.topology.sockets * self.topology.cores * self.topology.threads
            if product != self.maximum:
                raise ValueError(
                    f"the topology holds {product} CPUs, but maxVcpus is {self.maximum}; they must be the same"
                )
        return self


class GuestMemory(SpecModel):
    """Memory of the guest."""

    guest: Memory = leaf(
        about="Memory that the guest has now, in whole MiB.",
        example="2Gi",
        unless="NextBoot above the maximum, without a balloon, and with hotplug VirtioMem or Dimm below what it was "
        "booted with",
    )
    max_guest: Memory | None = leaf(
        None, about="How much guest may grow to; default guest.", example="8Gi", update=Update.NEXT_BOOT
    )
    hotplug: Literal["Balloon", "VirtioMem", "Dimm"] = leaf(
        "Balloon",
        about="How memory grows in a running guest. Balloon: it is booted with maxGuest and gives back what guest is "
        "less. VirtioMem: a device plugs more or less, in steps of 2Mi. Dimm: DIMMs of multiples of 128Mi are "
        "plugged in; guests seldom let go of one again.",
        example="VirtioMem",
        update=Update.NEXT_BOOT,
    )
    hugepages: HugePages | None = branch(None, about="Huge pages of the host; default ordinary ones.")

    @property
    def maximum(self) -> int:
        """The greatest memory until the next boot, in bytes."""
        return self.max_guest or self.guest

    @model_validator(mode="after")
    def _agree(self) -> GuestMemory:
        if self.guest > self.maximum:
            raise ValueError("guest is above maxGuest")
        refuse_odd(self.hotplug, self.guest, self.maximum, self.hugepages.size if self.hugepages else None)
        return self

    @property
    def promised(self) -> int:
        """What the host must have for it: a balloon may give all of it back."""
        return self.maximum if self.hotplug == "Balloon" else self.guest


class Serial(SpecModel):
    """A serial console."""

    name: DeviceName = leaf(about="Name of the console.", example="console", update=Update.IMMUTABLE)
    file: HostPath | None = leaf(
        None,
        about="File on the host that keeps what the guest prints; `kvmd console` works with and without.",
        example="/var/lib/kvmd/consoles/web.log",
        update=Update.NEXT_BOOT,
    )


DEFAULT_SERIALS = (Serial(name="console"),)


DEFAULT_SERIAL = Serial(name="console")


class Devices(SpecModel):
    """Other devices."""

    serial: tuple[Serial, ...] = branch((), about="Serial consoles; default one without a file.")
    rng: Boolean = leaf(
        False,
        about="Random numbers of the host, so that a guest boots with enough.",
        example=True,
        update=Update.NEXT_BOOT,
    )
    guest_agent: Boolean = leaf(
        False,
        about="The channel that qemu-guest-agent in the guest listens on; shutdown method agent needs it.",
        example=True,
        update=Update.NEXT_BOOT,
    )

    tablet: Boolean = leaf(
        False,
        about="A USB tablet, with which the pointer of a screen is where the mouse is.",
        example=True,
        update=Update.NEXT_BOOT,
    )
    sound: SoundModel | None = leaf(
        None,
        about="The model of a sound card; it is heard over SPICE.",
        example="ich9",
        update=Update.NEXT_BOOT,
    )
    graphics: Graphics | None = branch(None, about="The screen; default none.")
    video: Video | None = branch(None, about="The video card; default vga where there is a screen, else none.")
    balloon: Balloon | None = branch(None, about="The balloon of the memory; default a virtio one.")
    watchdog: Watchdog | None = branch(None, about="A watchdog; default none.")
    tpm: Tpm | None = branch(None, about="A TPM; default none.")

    @model_validator(mode="after")
    def _agree(self) -> Devices:
        _distinct((item.name for item in self.serial), "serial consoles")
        return self


class Spec(SpecModel):
    """A virtual machine."""

    name_on_host: DomainName | None = leaf(
        None, about="Name in libvirt; default metadata.name.", example="Win10_test", update=Update.IMMUTABLE
    )
    run_strategy: Literal["Always", "RerunOnFailure", "Once", "Manual", "Halted"] = leaf(
        "Always",
        about="Always: kept running. RerunOnFailure: started again after a crash, not after a power-off. Once: run "
        "once, never again. Manual: people start and stop it. Halted: kept off.",
        example="Always",
    )
    accelerator: Literal["auto", "kvm", "tcg"] | None = leaf(
        None,
        about="kvm: hardware help. tcg: emulation. auto: kvm where the host can. null takes defaults.accelerator of "
        "the host.",
        example="auto",
        update=Update.NEXT_BOOT,
    )
    machine: Text = leaf(
        "q35",
        about="Machine type; an alias is pinned to its canonical name when first defined.",
        example="q35",
        update=Update.NEXT_BOOT,
        min_length=1,
    )
    cpu: Cpu = branch(factory=Cpu, about="Virtual CPUs.")
    memory: GuestMemory = branch(about="Memory of the guest.")
    firmware: Firmware | None = branch(None, about="What the machine boots with; default BIOS.")
    kernel_boot: KernelBoot | None = branch(None, about="Boot a kernel from the host.")
    install: Install | None = branch(None, about="What a new guest boots once, before its disk.")
    io_threads: Integer | None = leaf(
        None,
        about="Threads of QEMU that serve the disks which name them, so that these do not wait for the main loop.",
        example=1,
        unless="NextBoot for one less while a disk is served by it",
        ge=1,
        le=64,
    )
    disks: tuple[Disk, ...] = branch((), about="Disks and CD-ROMs.")
    interfaces: tuple[Interface, ...] = branch((), about="NICs.")
    filesystems: tuple[Filesystem, ...] = branch((), about="Folders of the host that the guest mounts.")
    host_devices: tuple[HostDevice, ...] = branch((), about="Devices of the host that the guest has to itself.")
    cloud_init: CloudInit | None = branch(None, about="What cloud-init in the guest is told.")
    devices: Devices = branch(factory=Devices, about="Other devices.")
    shutdown: Shutdown = branch(factory=Shutdown, about="How the guest is asked to power off.")
    startup: Startup = branch(factory=Startup, about="Its place in the order of starts.")
    depends_on: tuple[Dependency, ...] = branch((), about="What must be so before it starts.")
    update_policy: UpdatePolicy = branch(factory=UpdatePolicy, about="What happens with changes that need a restart.")
    drift_policy: Literal["Correct", "Report", "Ignore"] = leaf(
        "Correct", about="What happens when others change it: put it right, say so, or nothing.", example="Correct"
    )
    deletion_policy: Literal["Delete", "Orphan"] = leaf(
        "Delete",
        about="When the spec goes: shut down and undefine (disks stay), or only take the mark off.",
        example="Delete",
    )

    @model_validator(mode="after")
    def _agree(self) -> Spec:
        _distinct((disk.name for disk in self.disks), "disks")
        if self.update_policy.on_guest_reboot == "Apply" and self.run_strategy != "Always":
            raise ValueError("onGuestReboot: Apply needs runStrategy Always, or a reboot would leave the guest off")
        if self.cloud_init is not None and any(disk.name == SEED for disk in self.disks):
            raise ValueError(f"the disk '{SEED}' is that of cloudInit; give yours another name")
        if self.install is not None and any(disk.name == TRAY for disk in self.disks):
            raise ValueError(f"the disk '{TRAY}' is that of install; give yours another name")
        if self.install is not None and self.run_strategy not in ("Always", "Manual", "Halted"):
            raise ValueError(
                f"with runStrategy {self.run_strategy} it would be left off after its install; write Always or Manual"
            )
        _distinct((interface.name for interface in self.interfaces), "interfaces")
        _distinct((share.name for share in self.filesystems), "filesystems")
        _once((share.tag or share.name for share in self.filesystems), "the tag")
        _distinct((device.name for device in self.host_devices), "hostDevices")
        _once((device.id for device in self.host_devices), "the host device")
        orders = [order for item in self.disks if (order := item.boot_order) is not None]
        orders += [order for item in self.interfaces if (order := item.boot_order) is not None]
        if len(orders) != len(set(orders)):
            raise ValueError("two devices have the same bootOrder")
        _once((disk.path for disk in self.disks), "the disk file")
        _once((disk.url for disk in self.disks if not disk.read_only), "the disk")
        named = {path for disk in self.disks for path in (disk.path, disk.media and disk.media.path) if path}
        if self.kernel_boot is not None:
            files = (self.kernel_boot.kernel, self.kernel_boot.initrd)
            named |= {file.path for file in files if file and file.path}
        consoles = [serial.file for serial in self.devices.serial]
        _once(consoles, "the console file")
        for path in consoles:
            if path in named:
                raise ValueError(f"{path} is a console file and something that the guest reads; a start empties it")
        _once((disk.volume for disk in self.disks), "the Volume")
        _once((nic.tap for nic in self.interfaces), "the Tap")
        _once((nic.mac for nic in self.interfaces), "the MAC address")
        forwards = [forward for nic in self.interfaces if nic.user for forward in nic.user.port_forward]
        _once((f"{forward.protocol}/{forward.host}" for forward in forwards), "the host port")
        if self.firmware is not None:
            self.firmware.agree_with(self.machine)
        if self.devices.watchdog is not None:
            self.devices.watchdog.agree_with(self.machine)
        if "q35" in self.machine and any(disk.bus == "ide" for disk in self.disks):
            raise ValueError(f"the machine {self.machine} has no IDE; use bus sata, or machine pc")
        if sum(disk.bus == "ide" for disk in self.disks) > 4:
            raise ValueError("there is one IDE controller, which takes four devices")
        return self

    @model_validator(mode="after")
    def _agree_on_parts(self) -> Spec:
        for disk in self.disks:
            if disk.io_thread is not None and disk.io_thread > (self.io_threads or 0):
                raise ValueError(
                    f"the disk '{disk.name}' is served by ioThread {disk.io_thread}, and there are "
                    f"{self.io_threads or 0}; write `ioThreads: {disk.io_thread}`"
                )
        agree_on_cells(self.cpu.numa, self.cpu.maximum, self.memory.maximum, self.memory.hotplug)
        if self.install is not None:
            self.install.agree_with(self.disks, self.devices.guest_agent)
        return self

    @property
    def serials(self) -> tuple[Serial, ...]:
        """The serial consoles with their default."""
        return self.devices.serial or DEFAULT_SERIALS
