"""The host preflight, upper half: QEMU, libvirt and the programs around them."""

from __future__ import annotations

import platform
import re
import shutil
import threading
from typing import Any

from kvmd.host.helpers import lacking
from kvmd.host.preflight.tools import SEARCH_PATH, Check, output_of, read_text
from kvmd.observed.helpers import HELPERS

OPEN_SECONDS = 5.0
OLDEST_LIBVIRT, OLDEST_QEMU = (9, 0), (7, 2)
# QEMU's driver for each scheme of a disk's url, and Debian's package that has it.
BLOCK_DRIVERS = {
    "https": "qemu-block-extra",
    "iscsi": "qemu-block-extra",
    "ssh": "qemu-block-extra",
    "rbd": "qemu-block-extra",
    "nfs": "qemu-block-extra",
}


def _emulator() -> str:
    machine = platform.machine()
    return f"qemu-system-{ {'arm64': 'aarch64', 'amd64': 'x86_64'}.get(machine, machine) }"


def _package() -> str:
    return "qemu-system-x86" if _emulator().endswith("x86_64") else "qemu-system-arm"


def qemu() -> tuple[Check, ...]:
    """The emulator, its version and the accelerators that it was built with."""
    name, why = _emulator(), "it runs the guests"
    text = output_of(name, "--version") if shutil.which(name, path=SEARCH_PATH) else None
    version = re.search(r"version (\d+)\.(\d+)(\S*)", text or "")
    if version is None:
        found = f"{name} is not installed" if text is None else f"{name} does not say its version"
        return (Check("qemu", "fail", found, why, f"apt-get install --no-install-recommends {_package()}"),)
    found = f"{name} {version[1]}.{version[2]}{version[3]}"
    if (int(version[1]), int(version[2])) < OLDEST_QEMU:
        old = Check(
            "qemu", "warn", f"{found}, older than 7.2, the oldest that kvmd is tested with", why, "upgrade QEMU"
        )
        return old, _accelerators(name)
    return Check("qemu", "ok", found, why), _accelerators(name)


def _accelerators(name: str) -> Check:
    listed = (output_of(name, "-accel", "help") or "").splitlines()
    have = [word for word in ("kvm", "tcg") if word in (line.strip() for line in listed)]
    why = "kvm runs guests on the CPU, tcg translates where KVM cannot"
    if "tcg" in have and "kvm" in have:
        return Check("qemu-accelerators", "ok", "kvm and tcg are built in", why)
    found = f"only {' '.join(have) or 'neither kvm nor tcg'}"
    return Check("qemu-accelerators", "warn", found, why, f"apt-get install --reinstall {_package()}")


def block_drivers() -> tuple[Check, ...]:
    """The block drivers for disks on the network; asked of qemu-img, which loads the same modules."""
    if not shutil.which("qemu-img", path=SEARCH_PATH):
        why = "kvmd and libvirt make and inspect disk images with it"
        return (Check("qemu-img", "warn", "qemu-img is not installed", why, "apt-get install qemu-utils"),)
    return tuple(_block_driver(name, package) for name, package in BLOCK_DRIVERS.items())


def _block_driver(name: str, package: str) -> Check:
    # Incomplete on purpose: a driver that is there asks for what is missing, and nothing goes over the network.
    answer = output_of("qemu-img", "info", "--image-opts", f"driver={name}")
    why = f"disks with a url of {name if name != 'https' else 'http, https, ftp or ftps'} are read by it"
    absent = answer is None or re.search(
        r"(?i)unknown (driver|protocol)|not (installed|available|built|supported)", answer
    )
    if absent:
        return Check(f"qemu-block-{name}", "info", "not installed", why, f"apt-get install {package}")
    return Check(f"qemu-block-{name}", "ok", "installed", why)


def libvirt(uri: str) -> tuple[Check, ...]:
    """The binding, the daemon behind *uri*, its version and its driver."""
    why = "kvmd defines and runs guests through it"
    try:
        import libvirt as binding
    except ImportError:
        fix = "apt-get install python3-libvirt (and make kvmd's virtual environment with --system-site-packages)"
        return (Check("libvirt", "fail", "Python's libvirt binding is not installed", why, fix),)
    answer = _ask(binding, uri)
    if isinstance(answer, str):
        fix = "systemctl start libvirtd || { virtlogd -d; libvirtd -d; } (from libvirt-daemon-system)"
        return (Check("libvirt", "fail", f"{uri}: {answer}", why, fix),)
    driver, library, hypervisor = answer
    found = f"{uri}: libvirt {_dotted(library)}, driver {driver} {_dotted(hypervisor)}"
    if driver.upper() != "QEMU":
        fix = "write 'libvirt: {uri: \"qemu:///system\"}' into /etc/kvmd/kvmd.yaml"
        return (Check("libvirt", "warn", f"{found}: not the QEMU driver", why, fix),)
    if (library // 1_000_000, library // 1000 % 1000) < OLDEST_LIBVIRT:
        return (Check("libvirt", "warn", f"{found}, older than 9.0, the oldest tested", why, "upgrade libvirt"),)
    return (Check("libvirt", "ok", found, why),)


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _ask(binding: Any, uri: str) -> tuple[str, int, int] | str:
    """Driver and versions, or why not; open() knows no time limit, so a thread that may be left behind does it."""
    answers: list[tuple[str, int, int] | str] = []

    def ask() -> None:
        try:
            connection = binding.open(uri)
            try:
                answers.append((connection.getType(), connection.getLibVersion(), connection.getVersion()))
            finally:
                connection.close()
        except binding.libvirtError as error:
            answers.append(str(error))

    binding.registerErrorHandler(lambda *_: None, None)
    thread = threading.Thread(target=ask, name="preflight-libvirt", daemon=True)
    thread.start()
    thread.join(OPEN_SECONDS)
    return answers[0] if answers else f"no answer within {OPEN_SECONDS:g} s; the daemon hangs"


def dnsmasq() -> Check:
    """DHCP and DNS of libvirt's networks."""
    why = "libvirt's networks with an address need it for DHCP and DNS"
    path = shutil.which("dnsmasq", path=SEARCH_PATH)
    if path:
        return Check("dnsmasq", "ok", path, why)
    return Check("dnsmasq", "warn", "not installed", why, "apt-get install dnsmasq-base")


def virtiofsd() -> Check:
    """What serves shares of type virtiofs."""
    return _helper("virtiofsd", "filesystems of type virtiofs are served by it", "installed", "not installed")


def spice() -> Check:
    """QEMU's module for screens of type spice."""
    return _helper("spice", "graphics of type spice need it", "QEMU has it", "QEMU's module is not installed")


def _helper(name: str, why: str, there: str, absent: str) -> Check:
    """What only some machines need: without it the host is fit for the others."""
    if name in lacking():
        return Check(name, "info", absent, why, f"apt-get install {HELPERS[name].package}")
    return Check(name, "ok", there, why)


def libvirt_guests() -> Check:
    """The service that stops guests when the host goes down."""
    why = "it stops guests when the host goes down, after kvmd; its timeout must not be below the longest shutdown"
    enabled = (output_of("systemctl", "is-enabled", "libvirt-guests") or "").strip().splitlines()
    if not enabled or not re.fullmatch(r"enabled|static|disabled|masked|enabled-runtime", enabled[-1]):
        return Check("libvirt-guests", "info", "systemd does not know it", why)
    settings = dict(re.findall(r"(?m)^(\w+)=(\S+)", read_text("/etc/default/libvirt-guests") or ""))
    found = f"{enabled[-1]}, ON_SHUTDOWN={settings.get('ON_SHUTDOWN', 'shutdown')}"
    found += f", SHUTDOWN_TIMEOUT={settings.get('SHUTDOWN_TIMEOUT', '300')}"
    if enabled[-1].startswith("enabled"):
        return Check("libvirt-guests", "ok", found, why)
    return Check("libvirt-guests", "warn", found, why, "systemctl enable libvirt-guests")
