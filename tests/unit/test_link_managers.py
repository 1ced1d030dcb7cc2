"""Who else configures a NIC: read from the files that they leave, with what to write so that they let go."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmd.host.links.managers import LinkManagers
from kvmd.observed import Key, Link, LinkManager

NIC = {Key("link", "eno1"): Link("eno1", 7, "")}


@pytest.mark.parametrize(
    ("place", "text", "by", "hint"),
    [
        (
            "run/systemd/netif/links/7",
            "ADMIN_STATE=configured\nOPER_STATE=routable\n",
            "systemd-networkd",
            "Unmanaged=yes",
        ),
        ("run/NetworkManager/devices/7", "[device]\nmanaged=true\n", "NetworkManager", "unmanaged-devices"),
        ("etc/network/interfaces", "auto eno1\niface eno1 inet dhcp\n", "ifupdown", "inet manual"),
        ("etc/network/interfaces.d/eno1", "iface eno1 inet6 static\n", "ifupdown", "inet manual"),
        ("etc/netplan/01.yaml", "network:\n  ethernets:\n    eno1: {dhcp4: true}\n", "netplan", "netplan apply"),
    ],
)
def test_a_manager_is_recognised_and_told_how_to_let_go(
    tmp_path: Path, place: str, text: str, by: str, hint: str
) -> None:
    managers = LinkManagers(str(tmp_path))
    assert managers.look(NIC) == {}
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = managers.look(NIC)
    fact = found[Key("manager", "eno1")]
    assert isinstance(fact, LinkManager)
    assert fact.by == by and hint in fact.hint
    assert managers.look(NIC) is found


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("run/systemd/netif/links/7", "ADMIN_STATE=unmanaged\n"),
        ("run/systemd/netif/links/8", "ADMIN_STATE=configured\n"),
        ("run/NetworkManager/devices/7", "[device]\nmanaged=false\n"),
        ("etc/network/interfaces", "# iface eno1 inet dhcp\niface eno1 inet manual\niface eno10 inet dhcp\n"),
        ("etc/netplan/01.yaml", "network:\n  ethernets:\n    # eno1: {dhcp4: true}\n    eno10: {}\n"),
    ],
)
def test_what_nobody_configures_is_free(tmp_path: Path, place: str, text: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    assert LinkManagers(str(tmp_path)).look(NIC) == {}
