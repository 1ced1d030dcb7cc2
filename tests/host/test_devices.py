"""Firmware and devices on the real QEMU driver: UEFI with an NVRAM of its own, the screen and its password, TPM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hermetic import Agent, Hermetic, wait_until
from small import vm, wipe

from kvmd import xmlmap
from kvmd.xmlmap import Element

pytestmark = [pytest.mark.guest, pytest.mark.libvirt]

NVRAM = "/var/lib/libvirt/qemu/nvram"


@pytest.fixture
def running(hermetic: Hermetic, tmp_path: Path) -> Iterator[Agent]:
    """A kvmd with one machine that stays, so that the removal of all others is no empty directory."""
    agent = Agent(hermetic, tmp_path / "agent", prune={"maxPercent": 100})
    agent.write("stays.yaml", vm("stays"))
    agent.start()
    yield agent
    agent.stop()
    wipe(hermetic)
    hermetic.run("sh", "-c", f"rm -rf {NVRAM}/* /var/lib/libvirt/swtpm/*")


def only_stays(hermetic: Hermetic) -> bool:
    """True once every other machine is gone."""
    return hermetic.virsh("list", "--all", "--name").split() == ["stays"]


def definition(hermetic: Hermetic, name: str, *words: str) -> Element:
    """The domain as virsh shows it."""
    return xmlmap.parse(hermetic.virsh("dumpxml", name, *words))


def nvram_files(hermetic: Hermetic) -> list[str]:
    """The NVRAM files on the host."""
    return hermetic.run("ls", NVRAM, check=False).split()


def at_rest(agent: Agent) -> None:
    """Fail where anything is left to do."""
    agent.kvmd("plan", "--detailed-exitcode")


def efi(name: str, *, policy: str, secure: bool = False, strategy: str = "Always") -> str:
    """A machine with UEFI."""
    firmware = f"{{type: efi, secureBoot: {str(secure).lower()}, nvram: {{reclaimPolicy: {policy}}}}}"
    return vm(name, strategy, more=f"  firmware: {firmware}")


@pytest.mark.shows("VirtualMachine", "firmware.secureBoot", "firmware.nvram.reclaimPolicy")
def test_nvram_is_made_for_each_machine_and_kept_or_removed_as_its_spec_says(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    agent.write("kept.yaml", efi("kept", policy="Retain"))
    agent.write("gone.yaml", efi("gone", policy="Delete", secure=True))
    agent.wait_ready("VirtualMachine/kept", "VirtualMachine/gone", seconds=60)
    loaders = {name: definition(hermetic, name).find("os/loader") for name in ("kept", "gone")}
    secure = {name: loader is not None and loader.get("secure", "no") for name, loader in loaders.items()}
    assert secure == {"kept": "no", "gone": "yes"}
    files = {name: definition(hermetic, name).findtext("os/nvram") or "" for name in ("kept", "gone")}
    assert sorted(nvram_files(hermetic)) == sorted(os.path.basename(path) for path in files.values())
    at_rest(agent)
    agent.remove("kept.yaml")
    agent.remove("gone.yaml")
    wait_until(lambda: only_stays(hermetic), 60, "both are removed")
    assert nvram_files(hermetic) == [os.path.basename(files["kept"])]
    hermetic.run("sh", "-c", f"printf REMEMBERED | dd of={files['kept']} bs=1 seek=400000 conv=notrunc")
    agent.write("kept.yaml", efi("kept", policy="Retain"))
    agent.wait_ready("VirtualMachine/kept", seconds=60)
    assert definition(hermetic, "kept").findtext("os/nvram") == files["kept"]
    assert "REMEMBERED" in hermetic.run("grep", "-ao", "REMEMBERED", files["kept"])
    at_rest(agent)


def test_an_nvram_that_another_machine_of_that_name_left_is_not_taken_up(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    hermetic.run("mkdir", "-p", NVRAM)
    hermetic.run("sh", "-c", f"echo theirs > {NVRAM}/web_VARS.fd")
    agent.write("web.yaml", efi("web", policy="Delete"))
    agent.wait_ready("VirtualMachine/web", seconds=60)
    agent.remove("web.yaml")
    wait_until(lambda: only_stays(hermetic), 60, "it is removed")
    assert hermetic.run("cat", f"{NVRAM}/web_VARS.fd") == "theirs\n"
    assert nvram_files(hermetic) == ["web_VARS.fd"]


@pytest.mark.shows("VirtualMachine", "firmware.type")
def test_firmware_of_a_running_machine_waits_for_its_next_boot(running: Agent) -> None:
    agent = running
    agent.write("web.yaml", vm("web", "Always"))
    agent.wait_ready("VirtualMachine/web")
    identity = agent.hermetic.virsh("domid", "web")
    agent.write("web.yaml", efi("web", policy="Retain"))
    agent.wait_condition("VirtualMachine/web", "RestartRequired")
    found = agent.object("VirtualMachine/web")
    assert found is not None
    pending = {item["path"]: item["effect"] for item in found["status"]["pendingChanges"]}
    assert pending["spec.firmware.type"] == "NextBoot"
    assert agent.hermetic.virsh("domid", "web") == identity
    agent.kvmd("approve", "VirtualMachine/web")
    wait_until(lambda: definition(agent.hermetic, "web").findtext("os/nvram"), 60, "UEFI")
    agent.wait_ready("VirtualMachine/web", seconds=60)
    at_rest(agent)
    agent.write("web.yaml", vm("web", "Always"))
    wait_until(lambda: definition(agent.hermetic, "web", "--inactive").find("os/nvram") is None, 30, "BIOS again")
    agent.wait_condition("VirtualMachine/web", "RestartRequired")
    at_rest(agent)


# ------------------------------------------------------------------------------------------------- the screen


def connects(hermetic: Hermetic, password: str) -> bool:
    """True where VNC on localhost lets that password in, and not before: RFC 6143, 7.2.2."""
    script = Path(__file__).with_name("vnc_login.py")
    return hermetic.run("python3", str(script), "127.0.0.1", "5900", password).strip() == "in"


def screen(name: str, secret: Path, more: str = "") -> str:
    """A machine with VNC behind a password."""
    graphics = f"{{type: vnc, passwordFrom: {{file: {secret}}}}}"
    return vm(name, "Always", more=f"  devices: {{graphics: {graphics}{more}}}")


@pytest.mark.shows("VirtualMachine", "devices.graphics.type", "devices.graphics.passwordFrom.file")
def test_the_password_of_the_screen_changes_live_and_is_shown_to_nobody(running: Agent, tmp_path: Path) -> None:
    agent, hermetic = running, running.hermetic
    secret = tmp_path / "vnc"
    secret.write_text("first123\n")
    secret.chmod(0o600)
    agent.write("web.yaml", screen("web", secret))
    agent.wait_ready("VirtualMachine/web")
    found = agent.object("VirtualMachine/web")
    assert found is not None
    assert found["status"]["graphics"] == {"type": "vnc", "address": "127.0.0.1:5900", "password": True}
    assert agent.kvmd("vnc", "web").strip() == "vnc://127.0.0.1:5900"
    assert connects(hermetic, "first123") and not connects(hermetic, "other123")
    at_rest(agent)
    identity = hermetic.virsh("domid", "web")
    secret.write_text("second12\n")
    shown = agent.kvmd("plan", "--detailed-exitcode", "-o", "json", code=None)
    agent.kvmd("reconcile", "VirtualMachine/web")
    wait_until(lambda: connects(hermetic, "second12"), 30, "the new password")
    assert not connects(hermetic, "first123")
    agent.wait_ready("VirtualMachine/web")
    at_rest(agent)
    assert hermetic.virsh("domid", "web") == identity
    inactive = hermetic.virsh("dumpxml", "web", "--inactive", "--security-info")
    assert "passwd='second12'" in inactive
    kept = [path for part in ("state", "cache", "run") for path in (agent.folder / part).rglob("*") if path.is_file()]
    said = [shown, agent.log.read_text(), hermetic.virsh("dumpxml", "web"), agent.http("/api/v1/objects")[1]]
    said += [agent.kvmd("render", "VirtualMachine/web"), *(path.read_text(errors="replace") for path in kept)]
    assert not [text for text in said if "first123" in text or "second12" in text]


def test_a_password_set_by_hand_is_put_right_and_one_of_an_adopted_machine_is_kept(
    running: Agent, tmp_path: Path
) -> None:
    agent, hermetic = running, running.hermetic
    theirs = tmp_path / "theirs.xml"
    theirs.write_text(
        """<domain type='qemu'><name>old</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type></os>
        <devices><graphics type='vnc' passwd='it&apos;s&lt;me' autoport='yes' listen='127.0.0.1'/></devices>
        </domain>"""
    )
    hermetic.virsh("define", str(theirs))
    hermetic.virsh("start", "old")
    adopted = vm("old", "Always", annotations='kvmd.dev/adopt: "true"')
    agent.write("old.yaml", adopted)
    agent.wait_ready("VirtualMachine/old")
    secure = hermetic.virsh("dumpxml", "old", "--inactive", "--security-info")
    assert "kvmd:mark" in secure
    assert xmlmap.parse(secure).find("devices/graphics").get("passwd") == "it's<me"  # type: ignore[union-attr]
    at_rest(agent)
    secret = tmp_path / "vnc"
    secret.write_text("ours1234")
    secret.chmod(0o600)
    more = f"  devices: {{graphics: {{passwordFrom: {{file: {secret}}}}}}}"
    agent.write("old.yaml", vm("old", "Always", annotations='kvmd.dev/adopt: "true"', more=more))
    wait_until(lambda: connects(hermetic, "ours1234"), 30, "the password of the spec")
    agent.wait_ready("VirtualMachine/old")
    at_rest(agent)


def test_a_missing_secret_blocks_and_a_restart_is_not_needed_once_it_is_there(running: Agent, tmp_path: Path) -> None:
    secret = tmp_path / "vnc"
    running.write("web.yaml", screen("web", secret))
    said = running.wait_condition("VirtualMachine/web", "Blocked")
    assert str(secret) in said["message"]
    secret.write_text("")
    secret.chmod(0o600)
    wait_until(lambda: "no password" in (running.condition("VirtualMachine/web", "Blocked") or said)["message"], 60)
    secret.write_text("word")
    running.wait_ready("VirtualMachine/web", seconds=60)


# --------------------------------------------------------------------------------------------- other devices


@pytest.mark.shows(
    "VirtualMachine",
    "devices.watchdog.model",
    "devices.watchdog.action",
    "devices.tpm.model",
    "devices.tpm.version",
    "devices.video.model",
    "devices.graphics.listen",
)
def test_watchdog_video_and_tpm_of_a_machine(running: Agent) -> None:
    agent, hermetic = running, running.hermetic
    devices = "watchdog: {action: poweroff}, tpm: {}, graphics: {listen: socket}, video: {model: virtio}"
    agent.write("web.yaml", vm("web", "Always", more=f"  devices: {{{devices}}}"))
    agent.wait_ready("VirtualMachine/web", seconds=60)
    root = definition(hermetic, "web")
    found = {
        path: dict(element.attrib)
        for path in ("watchdog[@model='i6300esb']", "tpm", "tpm/backend", "video/model", "graphics/listen")
        if (element := root.find(f"devices/{path}")) is not None
    }
    assert found["watchdog[@model='i6300esb']"]["action"] == "poweroff"
    assert found["tpm"]["model"] == "tpm-crb" and found["tpm/backend"]["version"] == "2.0"
    assert found["video/model"]["type"] == "virtio" and found["graphics/listen"]["type"] == "socket"
    at_rest(agent)
    state = hermetic.run("find", "/var/lib/libvirt/swtpm", "-name", "*.permall").split()
    assert len(state) == 1
    agent.write("web.yaml", vm("web", "Always"))
    agent.wait_condition("VirtualMachine/web", "RestartRequired")
    agent.kvmd("approve", "VirtualMachine/web")
    wait_until(lambda: definition(hermetic, "web").find("devices/tpm") is None, 60, "it restarts without")
    agent.wait_ready("VirtualMachine/web", seconds=60)
    at_rest(agent)
    agent.remove("web.yaml")
    wait_until(lambda: only_stays(hermetic), 60, "it is removed")
    assert hermetic.run("find", "/var/lib/libvirt/swtpm", "-name", "*.permall").split() == state
