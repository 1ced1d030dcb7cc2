"""Every field of a network on the real libvirt: what it makes of it, and that there is nothing to do afterwards."""

from __future__ import annotations

import json

import pytest
from hermetic import Agent, wait_until
from lxml import etree
from small import wipe

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]

TFTP = "/var/lib/libvirt/tftp"
SPEC = f"""
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {{name: campus}}
spec:
  forward:
    mode: nat
    device: out0
    nat: {{addresses: {{start: 198.51.100.1, end: 198.51.100.4}}, ports: {{start: 2000, end: 3000}}, ipv6: true}}
  bridge: {{name: vb-campus, stp: true, forwardDelaySeconds: 4}}
  domain: {{name: campus.example, localOnly: true}}
  dns:
    forwardPlainNames: false
    forwarders: [{{address: 9.9.9.9}}, {{domain: corp.example, address: 10.0.0.53}}, {{domain: inner.example}}]
    hosts: [{{ip: 192.168.132.7, names: [printer, lp]}}]
    txt: [{{name: release, value: two words}}]
    srv:
    - {{service: ldap, protocol: tcp, domain: a.example, target: b.example, port: 389, priority: 10, weight: 5}}
    - {{service: sip, protocol: udp}}
  portgroups:
  - {{name: staff, default: true}}
  - name: slow
    bandwidth:
      inbound: {{average: 100k, peak: 500k, burst: 512Ki}}
      outbound: {{average: 10k, peak: 50k, burst: 51Ki}}
  routes: [{{to: 10.33.0.0/16, via: 192.168.132.2, metric: 3}}]
  ips:
  - address: 192.168.132.1/24
    tftp: {TFTP}
    dhcp:
      ranges: [{{start: 192.168.132.100, end: 192.168.132.199, lease: 12h}}]
      hosts: [{{mac: 52:54:00:13:20:09, ip: 192.168.132.9, name: scanner, lease: 2h}}]
      bootp: {{file: pxelinux.0, server: 192.168.132.9}}
  - address: fd00:132::1/64
    dhcp:
      ranges: [{{start: "fd00:132::100", end: "fd00:132::1ff"}}]
      hosts: [{{id: "0:3:0:1:0:16:3e:11:22:33", name: six, ip: "fd00:132::6"}}, {{name: seven, ip: "fd00:132::7"}}]
"""
BARE = """
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {name: campus}
spec:
  bridge: {name: vb-campus}
  ips: [{address: 192.168.132.1/24}]
"""
MUTE = """
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {name: mute}
spec:
  forward: {mode: route}
  bridge: {name: vb-mute}
  dns: {enable: false}
  ips: [{address: 192.168.133.1/24}]
---
apiVersion: kvmd.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec:
  forward: {mode: bridge}
  bridge: {name: br-lan}
---
apiVersion: kvmd.dev/v1alpha1
kind: Bridge
metadata: {name: br-lan}
spec: {addresses: {from: None}}
"""


@pytest.mark.shows("Network", "forward.device", "forward.nat.addresses.start", "forward.nat.addresses.end")
@pytest.mark.shows("Network", "forward.nat.ports.start", "forward.nat.ports.end", "forward.nat.ipv6")
@pytest.mark.shows("Network", "bridge.forwardDelaySeconds", "domain.localOnly", "dns.enable", "dns.forwardPlainNames")
@pytest.mark.shows("Network", "dns.forwarders[].address", "dns.forwarders[].domain")
@pytest.mark.shows("Network", "dns.hosts[].ip", "dns.hosts[].names")
@pytest.mark.shows("Network", "dns.txt[].name", "dns.txt[].value", "dns.srv[].service", "dns.srv[].protocol")
@pytest.mark.shows("Network", "dns.srv[].domain", "dns.srv[].target", "dns.srv[].port", "dns.srv[].priority")
@pytest.mark.shows("Network", "dns.srv[].weight", "portgroups[].name", "portgroups[].default")
@pytest.mark.shows("Network", "portgroups[].bandwidth.inbound.average", "portgroups[].bandwidth.outbound.average")
@pytest.mark.shows("Network", "portgroups[].bandwidth.inbound.peak", "portgroups[].bandwidth.outbound.peak")
@pytest.mark.shows("Network", "portgroups[].bandwidth.inbound.burst", "portgroups[].bandwidth.outbound.burst")
@pytest.mark.shows("Network", "routes[].to", "routes[].via", "routes[].metric", "ips[].tftp")
@pytest.mark.shows("Network", "ips[].dhcp.ranges[].lease", "ips[].dhcp.hosts[].lease", "ips[].dhcp.hosts[].id")
@pytest.mark.shows("Network", "ips[].dhcp.bootp.file", "ips[].dhcp.bootp.server")
def test_libvirt_takes_every_field_and_nothing_is_left_to_do(agent: Agent) -> None:
    hermetic = agent.hermetic
    hermetic.run("mkdir", "-p", TFTP)
    try:
        agent.write("campus.yaml", SPEC)
        agent.write("mute.yaml", MUTE)
        agent.start()
        agent.wait_ready("Network/campus", "Network/mute", "Network/lan", seconds=90)
        assert "No changes" in agent.kvmd("plan")
        served = hermetic.run("cat", "/var/lib/libvirt/dnsmasq/campus.conf")
        for word in (
            "server=/corp.example/10.0.0.53",
            "local=/campus.example/",
            "domain-needed",
            "txt-record=release,two words",
            "srv-host=_ldap._tcp.a.example,b.example,389,10,5",
            f"tftp-root={TFTP}",
            "192.168.132.199,255.255.255.0,43200",
            "dhcp-boot=pxelinux.0,,192.168.132.9",
        ):
            assert word in served, word
        assert "id:0:3:0:1:0:16:3e:11:22:33,six" in hermetic.run("cat", "/var/lib/libvirt/dnsmasq/campus.hostsfile")
        assert "--to-source 198.51.100.1-198.51.100.4:2000-3000" in hermetic.run("iptables-save", "-t", "nat")
        assert "10.33.0.0/16 via 192.168.132.2 dev vb-campus" in hermetic.run("ip", "route")
        bridge = hermetic.links()["vb-campus"]["linkinfo"]["info_data"]
        assert (bridge["stp_state"], bridge["forward_delay"]) == (1, 400)
        assert "mute" not in hermetic.run("ls", "/var/lib/libvirt/dnsmasq"), "nothing serves it"
        assert "<forward mode='bridge'/>" in hermetic.virsh("net-dumpxml", "lan")
        _change_in_place(agent)
        _all_of_it_is_taken_out(agent)
        agent.remove("mute.yaml")
        wait_until(lambda: "lan" not in hermetic.virsh("net-list", "--all", "--name"), 30, "gone with its spec")
    finally:
        agent.stop()
        wipe(hermetic)


def _change_in_place(agent: Agent) -> None:
    """None of it starts the network anew: its bridge stays the same link."""
    hermetic = agent.hermetic
    before = hermetic.links()["vb-campus"]["ifindex"]
    changed = SPEC.replace("device: out0", "device: out1").replace("lease: 12h", "lease: 6h")
    changed = changed.replace("name: seven", "name: eight").replace("average: 10k,", "average: 11k,")
    changed = changed.replace("forwardDelaySeconds: 4", "forwardDelaySeconds: 3")
    agent.write("campus.yaml", changed)
    for word in ("dev='out1'", "expiry='21600'", "name='eight'", "average='11'"):
        wait_until(lambda word=word: word in hermetic.virsh("net-dumpxml", "campus"), 90, word)  # type: ignore[misc]
    wait_until(lambda: hermetic.links()["vb-campus"]["linkinfo"]["info_data"]["forward_delay"] == 300, 60, "delay")
    agent.wait_ready("Network/campus", seconds=90)
    assert json.dumps(agent.object("Network/campus")["status"]["pendingChanges"]) == "[]"  # type: ignore[index]
    agent.write("campus.yaml", SPEC)
    wait_until(lambda: "dev='out0'" in hermetic.virsh("net-dumpxml", "campus"), 90, "back")
    wait_until(lambda: hermetic.links()["vb-campus"]["linkinfo"]["info_data"]["forward_delay"] == 400, 60, "delay")
    agent.wait_ready("Network/campus", seconds=90)
    assert hermetic.links()["vb-campus"]["ifindex"] == before
    assert "No changes" in agent.kvmd("plan")


def _all_of_it_is_taken_out(agent: Agent) -> None:
    """What nobody writes any more is as if nobody ever had."""
    hermetic = agent.hermetic
    agent.write("campus.yaml", BARE)
    wait_until(lambda: "<dns" not in hermetic.virsh("net-dumpxml", "campus"), 90, "it is taken out")
    agent.wait_ready("Network/campus", seconds=90)
    assert "No changes" in agent.kvmd("plan")
    left = etree.fromstring(hermetic.virsh("net-dumpxml", "campus")).xpath("forward//* | ip/* | *")
    tags = {element.tag for element in left}
    assert tags <= {"name", "uuid", "metadata", "forward", "nat", "port", "bridge", "mac", "ip"}, tags
    saved = hermetic.run("iptables-save", "-t", "nat")
    assert "-s 192.168.132.0/24 ! -d 192.168.132.0/24 -j MASQUERADE" in saved and "198.51.100" not in saved
