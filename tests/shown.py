"""Which test shows which field on the real thing: the tests say so themselves, and ``docs/fields.md`` repeats it.

``@pytest.mark.shows("Tap", "mtu", "owner")`` on a test below ``tests/host`` or ``tests/faults`` says that it writes
those leaves and sees what the kernel, libvirt or a guest made of them. What none can show stands in ``NOT_SHOWN``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType

TESTS = Path(__file__).resolve().parent
PLACES = (TESTS / "host", TESTS / "faults")
Field = tuple[str, str]  # kind and path below spec

# What only a planning case shows: that case (its directory below tests/cases/KIND), and why no test does.
NOT_SHOWN: dict[Field, tuple[str, str]] = {
    ("Bridge", "addresses.dynamic"): ("uplink-moves-its-lease", "needs a DHCP server beyond the uplink"),
    **{
        ("Bridge", leaf): ("vlans-filtered", "needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING")
        for leaf in ("vlanFiltering", "defaultPvid")
    },
    **{
        ("Vlan", leaf): (case, "needs a kernel with 802.1Q")
        for case, leaves in (
            ("created", ("nameOnHost", "addresses")),
            ("created-as-a-port", ("bridge", "mtu", "deletionPolicy")),
        )
        for leaf in leaves
    },
    **{
        ("VirtualMachine", f"install.from.kernelBoot.{leaf}"): (case, "the same as kernelBoot, for one boot")
        for case, leaves in (
            ("install-by-kernel-of-a-new-guest", ("initrd.path",)),
            ("install-by-kernel-from-images", ("kernel.image", "initrd.image")),
        )
        for leaf in leaves
    },
    ("VirtualMachine", "install.from.url"): ("install-from-a-server", "the same as the medium of a CD-ROM"),
    **{
        ("VirtualMachine", f"disks[].{leaf}"): ("drives-with-logins-created", why)
        for why, leaves in (
            (
                "a credential of systemd is a file to kvmd",
                (
                    "authFrom.systemdCredential",
                    "cookiesFrom.systemdCredential",
                    "media.authFrom.systemdCredential",
                    "media.cookiesFrom.systemdCredential",
                ),
            ),
            ("a disk is fetched as a medium is", ("cookiesFrom.file", "tls.caFile", "tls.insecure")),
        )
        for leaf in leaves
    },
    ("VirtualMachine", "hostDevices[].pci"): ("host-devices-allowed", "needs a PCI device and an IOMMU"),
    **{
        ("VirtualMachine", f"interfaces[].user.portForward[].{leaf}"): ("port-forward-with-passt", "needs passt")
        for leaf in ("protocol", "host", "guest")
    },
}


def shown() -> dict[Field, list[str]]:
    """The tests that show each field, as ``host/test_links.py::test_x``, in the order of files and lines."""
    sys.path[:0] = [str(place) for place in (TESTS, *PLACES) if str(place) not in sys.path]
    found: dict[Field, list[str]] = {}
    for file in sorted(file for place in PLACES for file in place.glob("test_*.py")):
        if "mark.shows(" not in file.read_text(encoding="utf-8"):
            continue
        for name, test in vars(import_module(file.stem)).items():
            if isinstance(test, FunctionType) and test.__module__ == file.stem and name.startswith("test_"):
                for kind, leaf in fields_of(test):
                    found.setdefault((kind, leaf), []).append(f"{file.relative_to(TESTS)}::{name}")
    return found


def fields_of(test: FunctionType) -> list[Field]:
    """What the markers of one test name."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "shows"]
    return [(mark.args[0], leaf) for mark in marks for leaf in mark.args[1:]]
