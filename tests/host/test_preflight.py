"""The preflight against this very host: real devices, a real KVM, real links, a real libvirt or its absence."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmd.host.preflight import software as preflight_software
from kvmd.host.preflight.kernel import has_module, links
from kvmd.host.preflight.rows import Check, run_checks, usable_kvm
from kvmd.host.preflight.tools import PROBE, output_of, probe

NOWHERE = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    found = run_checks(NOWHERE)
    assert len({check.name for check in found}) == len(found), "every check has a name of its own"
    return {check.name: check for check in found}


def test_every_fault_says_what_to_type(checks: dict[str, Check]) -> None:
    for check in checks.values():
        assert check.status in ("ok", "warn", "fail", "info")
        assert check.found and check.why
        assert check.fix or check.status in ("ok", "info"), f"{check.name} is {check.status} and names no fix"
        assert "could not be checked" not in check.found, check.found


def test_the_issue_s_list_is_covered(checks: dict[str, Check]) -> None:
    wanted = "cpu-virtualisation kvm-modules kvm-device kvm-usable kvm-nested qemu libvirt dnsmasq ip-forward"
    assert set(wanted.split()) <= set(checks)
    assert {"bridge-firewall", "apparmor", "cgroup", "disk-space", "machine-id", "libvirt-guests"} <= set(checks)
    assert {"iommu", "virtiofsd"} <= set(checks)


def test_an_absent_libvirt_is_a_failure_with_a_fix(checks: dict[str, Check]) -> None:
    assert checks["libvirt"].status == "fail"
    assert "/nonexistent/libvirt-sock" in checks["libvirt"].found
    assert "libvirtd" in checks["libvirt"].fix


def test_a_libvirt_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_software, "OPEN_SECONDS", 0.5)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "sock"))
        deaf.listen()
        begun = time.monotonic()
        (check,) = preflight_software.libvirt(f"qemu+unix:///system?socket={tmp_path}/sock")
    assert time.monotonic() - begun < 3
    assert check.status == "fail"
    assert "hangs" in check.found


def test_the_test_driver_is_not_taken_for_qemu() -> None:
    (check,) = preflight_software.libvirt("test:///default")
    assert check.status == "warn"
    assert "not the QEMU driver" in check.found


def test_modules_agree_with_the_kernel() -> None:
    assert not has_module("no_such_module_at_all")
    assert has_module("kvm") == os.path.isdir("/sys/module/kvm")


def test_cpu_flags_agree_with_proc(checks: dict[str, Check]) -> None:
    flags = re.search(r"(?m)^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text())
    assert (checks["cpu-virtualisation"].status == "ok") == (flags is not None)


@pytest.mark.root
def test_links_are_tried_and_nothing_of_them_stays() -> None:
    before = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    found = {check.name: check.status for check in links()}
    after = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert "p-bridge" not in after and "probe1" not in after
    assert before.count("\n") >= 1
    assert found["link-bridge"] == "ok"
    assert found["tun"] == "ok"


@pytest.mark.root
def test_without_privilege_links_are_not_called_missing() -> None:
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-I"]
    text = PROBE.read_text()
    done = subprocess.run([*command, "-c", text, "links"], capture_output=True, text=True, check=True)
    assert '"errno": 1' in done.stdout


def test_a_probe_that_hangs_or_is_unknown_answers_nothing() -> None:
    assert probe("no-such-probe") == {}
    assert output_of("sleep", "5", timeout=0.1) is None
    assert output_of("no-such-program") is None


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="this host has no /dev/kvm")
def test_kvm_is_judged_in_bounded_time() -> None:
    begun = time.monotonic()
    usable, found = usable_kvm()
    assert time.monotonic() - begun < 6
    assert found
    assert isinstance(usable, bool)


@pytest.mark.guest
@pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="this host has no /dev/kvm for this user")
def test_the_judgement_of_kvm_is_what_a_guest_meets() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from guest import ARGS, guest_files

    usable, found = usable_kvm()
    guest = guest_files()
    command = f"qemu-system-x86_64 -accel kvm -m 128 -display none -no-reboot -kernel {guest.kernel}"
    command += f" -initrd {guest.initrd} -nic none -monitor none -serial stdio -append"
    with subprocess.Popen([*command.split(), ARGS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        try:
            text, _ = qemu.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            qemu.kill()
            text, _ = qemu.communicate()
    assert (b"KVMD-GUEST-UP" in text) == usable, found
