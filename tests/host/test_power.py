"""Power on the real QEMU driver: who starts when, who has the memory, and who is restarted for a change."""

from __future__ import annotations

import datetime
import io
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest
from guest import ARGS, guest_files
from hermetic import Agent, Hermetic, wait_until
from small import vm, wipe
from test_storage import image

pytestmark = pytest.mark.libvirt

QUICK = {"source": {"settle": "100ms", "rescan": "5s"}}


@pytest.fixture
def agent(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd with nothing to do yet."""
    made = Agent(hermetic, tmp_path, **QUICK)
    yield made
    made.stop()
    wipe(hermetic)


def starts(agent: Agent, count: int) -> list[str]:
    """The guests in the order in which they were started, once *count* starts have returned.

    A guest that is seen to run is Ready; its start is told when libvirt's call returns, which may be a moment later.
    """
    wait_until(lambda: len(_starts(agent)) >= count, 30, f"{count} starts are told")
    return _starts(agent)


def _starts(agent: Agent) -> list[str]:
    found = json.loads(agent.http("/api/v1/events")[1])
    items = found["items"] if isinstance(found, dict) else found
    return [item["object"].removeprefix("VirtualMachine/") for item in items if item["reason"] == "DomainStart"]


def running(hermetic: Hermetic) -> set[str]:
    """The guests that run."""
    return set(hermetic.virsh("list", "--name").split())


@pytest.mark.shows("VirtualMachine", "startup.order", "startup.delaySeconds")
def test_guests_start_in_order_after_a_boot_of_the_host(agent: Agent) -> None:
    hermetic = agent.hermetic
    orders = {"aa": 30, "bb": 20, "cc": 10}
    for name, order in orders.items():
        agent.write(f"{name}.yaml", vm(name, "Always", more=f"  startup: {{order: {order}, delaySeconds: 1}}"))
    broken = "  startup: {order: 5}\n  disks: [{name: root, path: /nowhere/disk.raw, format: raw}]"
    agent.write("dd.yaml", vm("dd", "Always", more=broken))
    time.sleep(0.3)  # at a boot every file has been there for long: none may settle before the others
    agent.start()
    agent.wait_ready(*(f"VirtualMachine/{name}" for name in orders), seconds=60)
    assert starts(agent, 3) == ["cc", "bb", "aa"]
    agent.stop()
    for name in orders:
        hermetic.virsh("destroy", name)
    agent.start()
    agent.wait_ready(*(f"VirtualMachine/{name}" for name in orders), seconds=60)
    assert starts(agent, 3) == ["cc", "bb", "aa"]
    assert agent.condition("VirtualMachine/dd", "Blocked")
    agent.kvmd("plan", "--detailed-exitcode")  # ends with 0: nothing is left to do


@pytest.mark.shows("VirtualMachine", "dependsOn[].kind", "dependsOn[].name", "dependsOn[].condition")
def test_a_guest_waits_until_what_it_depends_on_is_ready(agent: Agent, tmp_path: Path) -> None:
    disk = tmp_path / "db.raw"
    agent.write("db.yaml", vm("db", "Always", more=f"  disks: [{{name: root, path: {disk}, format: raw}}]"))
    agent.write("web.yaml", vm("web", "Always", more="  dependsOn: [{kind: VirtualMachine, name: db}]"))
    agent.write("lost.yaml", vm("lost", "Always", more="  dependsOn: [{kind: VirtualMachine, name: nobody}]"))
    agent.write("one.yaml", vm("one", "Always", more="  dependsOn: [{kind: VirtualMachine, name: two}]"))
    agent.write("two.yaml", vm("two", "Always", more="  dependsOn: [{kind: VirtualMachine, name: one}]"))
    agent.start()
    assert "VirtualMachine/db is Ready" in agent.wait_condition("VirtualMachine/web", "Blocked")["message"]
    assert "VirtualMachine/nobody" in agent.wait_condition("VirtualMachine/lost", "Blocked")["message"]
    assert agent.wait_condition("VirtualMachine/one", "Blocked")["reason"] == "DependencyCycle"
    assert agent.wait_condition("VirtualMachine/two", "Blocked")["reason"] == "DependencyCycle"
    assert running(agent.hermetic) == set()
    disk.write_bytes(bytes(1 << 20))
    agent.wait_ready("VirtualMachine/db", "VirtualMachine/web", seconds=60)
    assert starts(agent, 2) == ["db", "web"]
    agent.write("two.yaml", vm("two", "Always"))
    agent.wait_ready("VirtualMachine/one", "VirtualMachine/two", seconds=60)


@pytest.mark.shows("VirtualMachine", "memory.maxGuest")
def test_a_guest_that_does_not_fit_the_memory_waits_and_nobody_dies(hermetic: Hermetic, tmp_path: Path) -> None:
    total = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    reserve = total * 1024 - 200 * 2**20  # 200 MiB are for guests
    agent = Agent(hermetic, tmp_path, **QUICK, admission={"memoryReserve": reserve})
    try:
        agent.write("aa.yaml", vm("aa", "Always", memory="64Mi, maxGuest: 128Mi"))
        agent.start()
        agent.wait_ready("VirtualMachine/aa", seconds=60)
        identity = hermetic.virsh("domid", "aa")
        agent.write("bb.yaml", vm("bb", "Always", memory="96Mi"))
        message = agent.wait_condition("VirtualMachine/bb", "Blocked")["message"]
        assert "needs 96 MiB, 72 MiB are left" in message
        assert "128 MiB for 1 guest" in message
        assert running(hermetic) == {"aa"}
        assert hermetic.virsh("domid", "aa") == identity
        agent.write("aa.yaml", vm("aa", "Halted", memory="64Mi, maxGuest: 128Mi"))
        agent.wait_ready("VirtualMachine/bb", seconds=60)
        assert running(hermetic) == {"bb"}
    finally:
        agent.stop()
        wipe(hermetic)


@pytest.mark.shows(
    "VirtualMachine",
    "updatePolicy.restart",
    "updatePolicy.window.schedule",
    "updatePolicy.window.duration",
    "updatePolicy.window.timeZone",
)
def test_a_change_waits_for_its_window(agent: Agent) -> None:
    hermetic = agent.hermetic
    now = datetime.datetime.now(datetime.UTC)
    later = now.hour  # in Tokyo that was nine hours ago

    def spec(machine: str, schedule: str) -> str:
        window = f'{{schedule: "{schedule}", duration: 1h, timeZone: Asia/Tokyo}}'
        return vm(
            "web", "Always", more=f"  machine: {machine}\n  updatePolicy: {{restart: Window, window: {window}}}"
        )

    agent.write("web.yaml", spec("q35", f"0 {later} * * *"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", seconds=60)
    identity = hermetic.virsh("domid", "web")
    agent.write("web.yaml", spec("pc", f"0 {later} * * *"))
    agent.wait_condition("VirtualMachine/web", "RestartRequired")
    agent.wait_ready("VirtualMachine/web")
    assert hermetic.virsh("domid", "web") == identity
    agent.write("web.yaml", spec("pc", "* * * * *"))  # open since the last full minute
    wait_until(lambda: running(hermetic) and hermetic.virsh("domid", "web", check=False) != identity, 60, "restarted")
    wait_until(lambda: agent.object("VirtualMachine/web")["status"]["pendingChanges"] == [], 20)  # type: ignore[index]
    agent.wait_ready("VirtualMachine/web", seconds=60)
    assert "pc-i440fx" in hermetic.virsh("dumpxml", "web")


@pytest.mark.shows("VirtualMachine", "updatePolicy.onGuestReboot")
def test_a_reboot_of_the_guest_applies_what_waits(agent: Agent) -> None:
    hermetic = agent.hermetic

    def spec(machine: str) -> str:
        return vm("web", "Always", more=f"  machine: {machine}\n  updatePolicy: {{onGuestReboot: Apply}}")

    def machine() -> str:
        return hermetic.virsh("dumpxml", "web", check=False)

    def armed() -> bool:
        return "<on_reboot>destroy</on_reboot>" in machine()

    agent.write("web.yaml", spec("q35"))
    agent.start()
    agent.wait_ready("VirtualMachine/web", seconds=60)
    identity = hermetic.virsh("domid", "web")
    agent.write("web.yaml", spec("pc"))
    wait_until(armed, 20, "a reboot is to end it")
    agent.write("web.yaml", spec("q35"))
    wait_until(lambda: not armed(), 20, "a reboot is a reboot again")
    agent.write("web.yaml", spec("pc"))
    wait_until(armed, 20, "a reboot is to end it")
    agent.wait_ready("VirtualMachine/web")
    assert hermetic.virsh("domid", "web") == identity

    def rebooted() -> bool:
        # The firmware hears the keyboard once it waits for something to boot from.
        hermetic.virsh("send-key", "web", "KEY_LEFTCTRL", "KEY_LEFTALT", "KEY_DELETE", check=False)
        return "pc-i440fx" in machine()

    wait_until(rebooted, 60, "the guest's reboot applied the change")
    wait_until(lambda: agent.object("VirtualMachine/web")["status"]["pendingChanges"] == [], 20)  # type: ignore[index]
    agent.wait_ready("VirtualMachine/web", seconds=60)
    assert not armed()
    assert agent.metric("kvmd_drift_corrected_total", kind="VirtualMachine") == 0
    assert agent.metric("kvmd_forced_stops_total") == 0


def program(text: str, then: bytes) -> bytes:
    """Code of the 16-bit boot stage: say *text* on the first serial port, then go on with *then*."""
    said = b"".join(bytes((0xB0, each, 0xEE)) for each in text.encode())  # mov al, each; out dx, al
    return b"\xba\xf8\x03" + said + then  # mov dx, 0x3f8


HALT = b"\xf4\xeb\xfd"  # hlt, for ever
PAUSE = b"\xb4\x86\xb9\x1e\x00\x31\xd2\xcd\x15"  # int 15h, ah 86h: wait 2 s
POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef" + HALT  # out 0x604, 0x2000: ACPI's S5 of QEMU's machines


def installer(path: Path, code: bytes) -> None:
    """A bootable ISO that runs some code."""
    iso = pycdlib.PyCdlib()
    iso.new()
    boot = code.ljust(2048, b"\0")
    iso.add_fp(io.BytesIO(boot), len(boot), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4)
    iso.write(str(path))
    iso.close()


@pytest.mark.shows("VirtualMachine", "install.from.path", "install.doneWhen", "disks[].bootOrder")
def test_an_installer_runs_once_and_then_the_disk_boots(agent: Agent, tmp_path: Path) -> None:
    hermetic, console = agent.hermetic, tmp_path / "web.console"
    iso, disk = tmp_path / "installer.iso", tmp_path / "web.raw"
    installer(iso, program("INSTALLER\n", PAUSE + POWER_OFF))
    disk.write_bytes(program("DISK\n", HALT).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    more = f"""  install: {{from: {{path: {iso}}}}}
  disks: [{{name: root, path: {disk}, format: raw, bootOrder: 1}}]
  devices: {{serial: [{{name: console, file: {console}}}]}}"""
    ledger = tmp_path / "state" / "ledger"
    agent.write("web.yaml", vm("web", "Always", more=more))
    agent.start()
    wait_until(lambda: running(hermetic) == {"web"}, 30, "the installer runs")
    agent.kill(signal.SIGKILL)
    assert '"started"' in ledger.read_text() and '"done"' not in ledger.read_text()
    wait_until(lambda: "shut off" in hermetic.virsh("domstate", "web"), 60, "the installer has powered off")
    assert "INSTALLER" in console.read_text()
    agent.start()
    wait_until(lambda: "DISK" in console.read_text(), 60, "the disk boots")
    agent.wait_ready("VirtualMachine/web", seconds=60)
    assert str(iso) not in hermetic.virsh("domblklist", "web")
    hermetic.virsh("destroy", "web")
    wait_until(lambda: running(hermetic) == {"web"}, 60, "started again")
    wait_until(lambda: "DISK" in console.read_text(), 60, "the disk boots again")  # a start empties the file
    assert "INSTALLER" not in console.read_text()
    agent.wait_ready("VirtualMachine/web", seconds=60)
    agent.kvmd("plan", "--detailed-exitcode")


@pytest.mark.shows("VirtualMachine", "install.from.kernelBoot.kernel.path", "install.from.kernelBoot.args")
def test_an_installer_that_is_a_kernel_runs_once_and_a_reboot_ends_it(agent: Agent, tmp_path: Path) -> None:
    """A kernel without a root: it panics, which reboots the guest, and then the disk boots."""
    console, disk, files = tmp_path / "web.console", tmp_path / "web.raw", guest_files()
    disk.write_bytes(program("DISK\n", HALT).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    kernel = f'{{kernel: {{path: {files.kernel}}}, args: "{ARGS} panic=3"}}'
    more = f"""  install: {{from: {{kernelBoot: {kernel}}}}}
  disks: [{{name: root, path: {disk}, format: raw, bootOrder: 1}}]
  devices: {{serial: [{{name: console, file: {console}}}]}}"""
    agent.write("web.yaml", vm("web", "Always", memory="128Mi", more=more))
    agent.start()
    agent.wait_ready("VirtualMachine/web", seconds=90)
    wait_until(lambda: "DISK" in console.read_text(), 60, "the disk boots")
    assert starts(agent, 2) == ["web", "web"]
    assert "<kernel>" not in agent.hermetic.virsh("dumpxml", "web")
    agent.kvmd("plan", "--detailed-exitcode")


@pytest.mark.shows("VirtualMachine", "install.from.image")
def test_an_installer_whose_end_was_not_seen_asks(agent: Agent, tmp_path: Path) -> None:
    iso = tmp_path / "installer.iso"
    installer(iso, program("INSTALLER\n", HALT))
    agent.write("image.yaml", image("installer", str(iso)))
    agent.write("web.yaml", vm("web", "Always", more="  install: {from: {image: installer}}"))
    agent.start()
    assert starts(agent, 1) == ["web"]
    agent.hermetic.virsh("destroy", "web")
    asked = agent.wait_condition("VirtualMachine/web", "Stalled")
    assert asked["reason"] == "InstallNotDone" and "kvmd start web" in asked["message"]
    assert running(agent.hermetic) == set()
    agent.kvmd("start", "web")
    wait_until(lambda: running(agent.hermetic) == {"web"}, 30, "it runs again")
