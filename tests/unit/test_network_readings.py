"""What the host reads of networks: leases, and the firewall rules of libvirt in the words of either tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmd.host.forwarding import facts as forwarding
from kvmd.host.forwarding.rule_hold import MARK, copies, nft_copies
from kvmd.host.libvirtd.leases import LeaseFiles, parsed
from kvmd.kinds.network import Spec, describe
from kvmd.observed import Key, Lease, Network, Observed

SAVED = """*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j LIBVIRT_FWX
-A LIBVIRT_FWI -d 192.168.90.0/24 -o virbr9 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr9 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.90.0/24 -i virbr9 -j ACCEPT
-A LIBVIRT_FWO -s 192.168.91.0/24 -i virbr91 -j ACCEPT
-A LIBVIRT_FWX -i virbr9 -o virbr9 -j ACCEPT
-A ufw-before-forward -j ACCEPT
COMMIT
*nat
-A LIBVIRT_PRT -s 192.168.90.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.90.0/24 ! -d 192.168.90.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.91.0/24 ! -d 192.168.91.0/24 -j MASQUERADE
COMMIT
"""
# As libvirt 11 writes them with its own backend (tests/networkxml2firewalldata/nat-default-linux.nftables there).
TABLE = """table ip libvirt_network {
	chain forward {
		type filter hook forward priority filter; policy accept;
		counter jump guest_cross
		counter jump guest_input
		counter jump guest_output
	}
	chain guest_output {
		ip saddr 192.168.90.0/24 iifname "virbr9" counter accept
		iifname "virbr9" counter reject
	}
	chain guest_input {
		oifname "virbr9" ip daddr 192.168.90.0/24 ct state established,related counter accept
		oifname "virbr9" counter reject
	}
	chain guest_cross {
		iifname "virbr9" oifname "virbr9" counter accept
	}
	chain guest_nat {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 192.168.90.0/24 ip daddr 224.0.0.0/24 counter return
		ip saddr 192.168.90.0/24 ip daddr != 192.168.90.0/24 counter masquerade
	}
}
"""


def test_a_lease_counts_until_it_runs_out() -> None:
    text = json.dumps(
        [
            {
                "ip-address": "192.168.90.10",
                "mac-address": "52:54:00:AA:00:01",
                "hostname": "web",
                "expiry-time": 1000,
            },
            {"ip-address": "192.168.90.11", "mac-address": "52:54:00:aa:00:02", "expiry-time": 0},
            {"ip-address": "192.168.90.12", "mac-address": "52:54:00:aa:00:03", "expiry-time": 900},
        ]
    )
    fact, ends = parsed("virbr9", text, 950.0)
    assert fact.leases == (
        Lease("192.168.90.10", "52:54:00:aa:00:01", "web"),
        Lease("192.168.90.11", "52:54:00:aa:00:02"),
    )
    assert ends == 1000
    assert parsed("virbr9", "[{", 950.0)[0].leases == ()


def test_a_renewal_is_no_news(tmp_path: Path) -> None:
    files, status = LeaseFiles(str(tmp_path)), tmp_path / "virbr9.status"
    lease = {"ip-address": "192.168.90.10", "mac-address": "52:54:00:aa:00:01", "expiry-time": 4_000_000_000}
    status.write_text(json.dumps([lease]))
    first = files.look()
    assert files.look() is first
    status.write_text(json.dumps([lease | {"expiry-time": 4_000_001_000}]))
    os.utime(status, ns=(1, 1))
    assert files.look() is first, "only a time is another"
    status.unlink()
    assert files.look() == {}
    assert first[Key("leases", "virbr9")].leases[0].address == "192.168.90.10"


def test_rules_of_libvirt_and_what_lets_by_are_kept() -> None:
    found = list(forwarding._iptables(SAVED, ""))
    assert "filter -A FORWARD -j LIBVIRT_FWX" in found and "filter :DOCKER-USER" in found
    assert not any("ufw" in rule for rule in found)
    assert "nft guest_nat ip saddr 192.168.90.0/24 ip daddr != 192.168.90.0/24 counter masquerade" in list(
        forwarding._nftables(TABLE, "nft")
    )


@pytest.mark.root
def test_a_flushed_table_of_nft_is_made_as_libvirt_made_it() -> None:
    """On the real thing: the chains of both families, from nothing, and not over what is there."""
    script = """
import subprocess
from kvmd import ops
from kvmd.host.forwarding import facts as forwarding
from kvmd.host.forwarding.repair import repair
assert forwarding.read((), "").backend == "iptables" and forwarding.read((), "nftables").backend == "nftables"
repair(ops.NetworkRepair("lab", "", table=True), None)
listed = subprocess.run(["nft", "-s", "list", "table", "ip", "libvirt_network"], capture_output=True, text=True)
repair(ops.NetworkRepair("lab", "", table=True), None)
found = forwarding.read((), "")
print(found.backend, len([rule for rule in found.rules if "jump" in rule]))
print(listed.stdout)
"""
    command = ["unshare", "-n", "env", f"PYTHONPATH={os.getcwd()}", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said, _, table = done.stdout.partition("\n")
    assert said == "nftables 6", "three in each family"
    lines = [line.strip() for line in table.splitlines() if line.strip()]
    rules = ("saddr", "daddr", "iifname", "oifname")
    assert sorted(lines) == sorted(
        line.strip() for line in TABLE.splitlines() if not any(word in line for word in rules)
    )


def test_what_accepts_is_held_in_the_chain_that_is_asked_first() -> None:
    ours = f'-m comment --comment "{MARK}-virbr9"'
    established = "-m conntrack --ctstate RELATED,ESTABLISHED"
    net = "192.168.90.0/24"
    assert list(copies(SAVED, "virbr9")) == [
        ("filter", f"-I LIBVIRT_FWX -d {net} -o virbr9 {established} {ours} -j ACCEPT"),
        ("filter", f"-I LIBVIRT_FWX -s {net} -i virbr9 {ours} -j ACCEPT"),
        ("filter", f"-I LIBVIRT_FWX -i virbr9 -o virbr9 {ours} -j ACCEPT"),
        ("nat", f"-A LIBVIRT_PRT -s {net} ! -d {net} -p tcp {ours} -j MASQUERADE --to-ports 1024-65535"),
    ]
    assert list(copies(SAVED, "virbr")) == []


@pytest.mark.root
def test_the_rules_of_nft_are_held_and_released() -> None:
    """On the real thing: the table as libvirt 11 makes it, the copies in it, and the table as before."""
    script = """
import subprocess, sys
from kvmd.host.forwarding.rule_hold import held
def listed():
    return subprocess.run(["nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
subprocess.run(["nft", "-f", "-"], input=sys.stdin.read(), text=True, check=True)
before = listed()
with held("virbr9"):
    within = listed()
assert listed() == before, listed()
print(within)
"""
    command = ["unshare", "-n", "env", f"PYTHONPATH={os.getcwd()}", sys.executable, "-c", script]
    done = subprocess.run(command, input=TABLE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = list(nft_copies("ip", _with_handles(TABLE), "virbr9"))
    assert done.stdout.count(f'comment "{MARK}-virbr9"') == len(expected) == 4


def _with_handles(table: str) -> str:
    return "".join(f"{line} # handle 1\n" if "counter" in line else f"{line}\n" for line in table.splitlines())


WHOLE = """<network>
  <name>full</name><uuid>5d4c1d5c-0000-4000-8000-0000000000f1</uuid>
  <forward mode='nat'>
  <nat ipv6='yes'><address start='198.51.100.1' end='198.51.100.4'/><port start='2000' end='3000'/></nat></forward>
  <bridge name='vb-full' stp='on' delay='3'/>
  <mtu size='1400'/>
  <domain name='lab.example' localOnly='yes'/>
  <dns enable='yes' forwardPlainNames='no'>
    <forwarder domain='corp.example' addr='10.0.0.53'/><forwarder addr='9.9.9.9'/><forwarder domain='internal'/>
    <txt name='hello' value='world'/>
    <host ip='192.168.190.7'><hostname>one</hostname><hostname>two</hostname></host>
    <srv service='ldap' protocol='tcp' domain='lab.example' target='ldap.lab.example' port='389'
      priority='10' weight='5'/>
  </dns>
  <bandwidth><inbound average='1000' peak='5000' burst='5120'/><outbound average='1000'/></bandwidth>
  <ip address='192.168.190.1' prefix='24' localPtr='yes'>
    <tftp root='/srv/tftp'/>
    <dhcp><range start='192.168.190.100' end='192.168.190.200'><lease expiry='2' unit='hours'/></range>
    <host mac='52:54:00:00:00:01' name='one' ip='192.168.190.11'><lease expiry='3600' unit='seconds'/></host>
    <host mac='52:54:00:00:00:03' ip='192.168.190.12'/>
    <bootp file='pxe.0' server='192.168.190.9'/></dhcp>
  </ip>
  <ip family='ipv6' address='fd00:190::1' prefix='64'>
    <dhcp><range start='fd00:190::100' end='fd00:190::1ff'/>
    <host id='0:3:0:1:0:16:3e:11:22:33' name='six' ip='fd00:190::11'/>
    <host name='seven' ip='fd00:190::12'/></dhcp>
  </ip>
  <route address='10.33.0.0' prefix='16' gateway='192.168.190.2' metric='3'/>
  <portgroup name='fast' default='yes'><bandwidth><inbound average='2000'/></bandwidth></portgroup>
  <portgroup name='iso' trustGuestRxFilters='yes'/>
</network>
"""


def test_a_whole_network_can_be_said_in_the_words_of_the_language() -> None:
    key = Key("network", "full")
    fact = Network("full", "5d4c1d5c-0000-4000-8000-0000000000f1", False, WHOLE, None)
    described = describe(key, Observed({key: fact}))
    assert described is not None and described.unsaid == ()
    spec = Spec.model_validate(described.spec)
    assert spec.forward.nat.ports is not None and spec.forward.nat.ports.end == 3000
    assert [host.id for host in spec.ips[1].dhcp.hosts] == ["0:3:0:1:0:16:3e:11:22:33", None]
    assert (spec.ips[0].dhcp.ranges[0].lease, spec.ips[0].tftp) == ("7200s", "/srv/tftp")
    assert spec.portgroups[0].bandwidth.inbound is not None and spec.dns.hosts[0].names == ("one", "two")
