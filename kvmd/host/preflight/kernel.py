"""The host preflight, lower half: CPU, KVM, links, forwarding and other things of the kernel and the system."""

from __future__ import annotations

import errno
import grp
import os
import platform
import pwd
import re
import shutil
import stat
from typing import Any

from kvmd.host.preflight.tools import SEARCH_PATH, Check, output_of, probe, read_text

IMAGES = "/var/lib/libvirt/images"
LOW_SPACE = 5 * 2**30
KVM_WHY = "without KVM guests run under TCG, 10 to 30 times slower"
VENDORS = {"vmx": "kvm_intel", "svm": "kvm_amd"}
# What each kind of link is for, and whether kvmd can do without it.
LINKS = {
    "bridge": ("Bridge objects and every libvirt network", True),
    "bridge-vlan": ("vlanFiltering of Bridge objects", False),
    "tap": ("Tap objects and every NIC on a bridge or network", True),
    "vlan": ("Vlan objects", False),
    "vxlan": ("overlays between hosts", False),
    "macvtap": ("interfaces of type direct", False),
}
MODULES = {"tap": "tun", "vlan": "8021q"}


def has_module(name: str) -> bool:
    """Is the kernel module loaded or built in? The directory in /sys exists for both, where it has parameters."""
    if os.path.isdir(f"/sys/module/{name}") or re.search(rf"(?m)^{name} ", read_text("/proc/modules") or ""):
        return True
    builtin = read_text(f"/lib/modules/{platform.release()}/modules.builtin") or ""
    return re.search(rf"(?m)/{name.replace('_', '[-_]')}\.ko$", builtin) is not None


def _cpu_flags() -> set[str]:
    found = re.search(r"(?m)^flags\s*:(.*)$", read_text("/proc/cpuinfo") or "")
    return set(found[1].split()) if found else set()


def cpu_virtualisation() -> Check:
    """VT-x or AMD-V among the flags of the CPU."""
    flags = _cpu_flags()
    why = f"KVM needs VT-x (vmx) or AMD-V (svm): {KVM_WHY}"
    found = [flag for flag in VENDORS if flag in flags]
    if found:
        return Check("cpu-virtualisation", "ok", f"the CPU has {found[0]}", why)
    if platform.machine() != "x86_64":
        return Check("cpu-virtualisation", "info", f"{platform.machine()} shows no such flag", why)
    if "hypervisor" in flags:
        fix = "this host is itself a guest: nest on its own host (libvirt: <cpu mode='host-passthrough'/>)"
    else:
        fix = "switch on VT-x (Intel) or SVM (AMD) in the firmware setup and boot again"
    return Check("cpu-virtualisation", "warn", "neither vmx nor svm in /proc/cpuinfo", why, fix)


def kvm_modules() -> Check:
    """kvm and the vendor's half of it, loaded or built in."""
    have = [name for name in ("kvm", "kvm_intel", "kvm_amd", "kvm_pvm") if has_module(name)]
    why = f"kvm.ko and kvm-intel.ko or kvm-amd.ko make /dev/kvm: {KVM_WHY}"
    if len(have) > 1:
        return Check("kvm-modules", "ok", f"{' and '.join(have)} loaded or built in", why)
    flag = next((flag for flag in VENDORS if flag in _cpu_flags()), None)
    if flag is None:
        found = "kvm without a module for this CPU" if have else "no KVM modules"
        return Check(
            "kvm-modules", "warn", found, why, "see cpu-virtualisation first: no module serves this CPU as it is"
        )
    module = VENDORS[flag]
    fix = f"modprobe {module} && echo {module} > /etc/modules-load.d/kvm.conf"
    return Check("kvm-modules", "warn", f"{module} is not loaded", why, fix)


def kvm_device() -> Check:
    """/dev/kvm, and that QEMU's user may open it."""
    try:
        status = os.stat("/dev/kvm")
    except OSError as error:
        why = f"QEMU opens it: {KVM_WHY}"
        return Check(
            "kvm-device", "warn", f"/dev/kvm: {error.strerror}", why, "modprobe kvm_intel || modprobe kvm_amd"
        )
    why = "QEMU opens it as its own user; where it may not, libvirt examines QEMU anew at each definition (10 s each)"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = f"{status.st_gid}, which has no name here"
    found = f"/dev/kvm is {stat.filemode(status.st_mode)}, group {group}"
    user = _qemu_user()
    if user is None or status.st_mode & 0o006 == 0o006:
        return Check("kvm-device", "ok", found, why)
    if status.st_mode & 0o060 == 0o060 and status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return Check("kvm-device", "ok", f"{found}, to which {user.pw_name} belongs", why)
    fix = (
        f"chgrp kvm /dev/kvm && chmod 660 /dev/kvm; in a container, where the device is the host's: "
        f"groupadd -g {status.st_gid} kvm-host && usermod -aG kvm-host {user.pw_name}; then restart libvirtd"
    )
    return Check("kvm-device", "warn", f"{found}; {user.pw_name} may not open it", why, fix)


def _qemu_user() -> pwd.struct_passwd | None:
    for name in ("libvirt-qemu", "qemu"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def usable_kvm() -> tuple[bool, str]:
    """Does a program really run on KVM here, at the speed of the CPU? With what was found; 0.1 to 0.5 s, bounded."""
    if not os.path.exists("/dev/kvm"):
        return False, "/dev/kvm does not exist"
    answer: dict[str, Any] = probe("kvm")
    if not answer:
        return False, "a small program under KVM did not end within 5 s"
    if answer.get("errno") == errno.EACCES:
        return False, "/dev/kvm may not be opened by this user"
    return bool(answer.get("usable")), str(answer.get("found", "no answer"))


def kvm_usable() -> Check:
    """The same as a check."""
    usable, found = usable_kvm()
    why = f"/dev/kvm may open and yet run nothing, e.g. inside another guest: {KVM_WHY}"
    if usable:
        return Check("kvm-usable", "ok", found, why)
    fix = "see the three checks above; until then write 'accelerator: tcg', or 'auto', which takes TCG here"
    return Check("kvm-usable", "warn", found, why, fix)


def kvm_nested() -> Check:
    """Nested virtualisation, as information."""
    values = {m: read_text(f"/sys/module/{m}/parameters/nested") for m in ("kvm_intel", "kvm_amd")}
    on = [name for name, value in values.items() if value in ("1", "Y")]
    found = f"on in {on[0]}" if on else "off, or not told by this kernel"
    return Check("kvm-nested", "info", found, "guests that run guests of their own need it")


def links() -> tuple[Check, ...]:
    """Each kind of link, tried in a network namespace of its own."""
    answer = probe("links")
    if "errno" in answer or not answer:
        why = "links are tried in a network namespace of their own, which needs root"
        return (Check("link-kinds", "info", "not tried", why, "sudo kvmd check"),)
    return tuple(_link(kind, int(answer.get(kind, errno.EPROTO))) for kind in LINKS)


def lacking_links() -> tuple[str, ...]:
    """The kinds of link that this kernel neither knows nor can load; () where nobody may try."""
    answer = probe("links")
    return tuple(sorted(kind for kind in LINKS if answer.get(kind) == errno.EOPNOTSUPP))


def _link(kind: str, number: int) -> Check:
    purpose, needed = LINKS[kind]
    name, why = ("tun" if kind == "tap" else f"link-{kind}"), f"{purpose} need it"
    # Without a parent or an id the kernel refuses a VLAN, a VXLAN or a macvtap, and so says that it knows the kind.
    if number == 0 or (kind not in ("tap", "bridge") and number not in (errno.EOPNOTSUPP, errno.EPERM, errno.EPROTO)):
        known = "bridges that filter VLANs" if kind == "bridge-vlan" else f"{kind} links"
        made = "a TAP was made through /dev/net/tun" if kind == "tap" else f"the kernel knows {known}"
        return Check(name, "ok", made, why)
    if kind == "tap" and number == errno.ENOENT and not has_module("tun"):
        fix = "modprobe tun && echo tun > /etc/modules-load.d/tun.conf"
        return Check(name, "fail", "/dev/net/tun does not exist and tun.ko is not loaded", why, fix)
    if kind == "bridge-vlan":
        found = f"a bridge that filters VLANs answers: {os.strerror(number)}"
        return Check(name, "info", found, why, "use a kernel with CONFIG_BRIDGE_VLAN_FILTERING")
    module = MODULES.get(kind, kind)
    fix = f"modprobe {module} && echo {module} > /etc/modules-load.d/{module}.conf"
    if kind == "tap" and number == errno.ENOENT:
        fix = "mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200"
    found = f"making a {kind} answers: {os.strerror(number)}"
    return Check(name, "fail" if needed else "info", found, why, fix)


def forwarding() -> tuple[Check, ...]:
    """Routing between links, and whether a firewall sees bridged frames."""
    forward = read_text("/proc/sys/net/ipv4/ip_forward")
    why = "networks of mode nat and route, and Tun routes, pass packets between links"
    if forward == "1":
        routing = Check("ip-forward", "ok", "net.ipv4.ip_forward is 1", why)
    else:
        fix = "sysctl -w net.ipv4.ip_forward=1 (libvirt does so itself when a nat or route network starts)"
        routing = Check("ip-forward", "info", f"net.ipv4.ip_forward is {forward}", why, fix)
    return routing, _bridged_frames()


def _bridged_frames() -> Check:
    value = read_text("/proc/sys/net/bridge/bridge-nf-call-iptables")
    why = "where the firewall also judges frames inside a bridge, a FORWARD policy of DROP cuts guests off on it"
    policy = forward_policy()
    if value != "1":
        return Check("bridge-firewall", "ok", "frames inside a bridge do not pass the firewall", why)
    if policy != "DROP":
        return Check("bridge-firewall", "ok", f"bridged frames pass the firewall, policy {policy or 'unknown'}", why)
    fix = (
        "sysctl -w net.bridge.bridge-nf-call-iptables=0, or let bridged frames pass: "
        "iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT"
    )
    return Check(
        "bridge-firewall", "warn", "bridged frames pass the firewall and its FORWARD policy is DROP", why, fix
    )


def forward_policy() -> str | None:
    """The policy of iptables' (or nftables' ip filter) FORWARD chain; None where there is no such chain."""
    for command in (("nft", "list", "chain", "ip", "filter", "FORWARD"), ("iptables", "-S", "FORWARD")):
        found = re.search(r"(?:policy |-P FORWARD )(\w+)", output_of(*command) or "")
        if found:
            return found[1].upper()
    return None


def firewall_tool() -> Check:
    """libvirt's NAT needs one of them: iptables before 10.4, from then on nftables."""
    have = [tool for tool in ("nft", "iptables") if shutil.which(tool, path=SEARCH_PATH)]
    why = "libvirt writes the rules of nat and route networks with it (iptables up to 10.3, nft from 10.4)"
    if have:
        return Check("firewall-tool", "ok", " and ".join(have), why)
    return Check("firewall-tool", "warn", "neither nft nor iptables", why, "apt-get install nftables iptables")


def iommu() -> Check:
    """Whether devices of the host can be given to guests."""
    why = "PCI devices of the host (hostDevices) need it"
    try:
        groups = len(os.listdir("/sys/kernel/iommu_groups"))
    except OSError:
        groups = 0
    if groups:
        return Check("iommu", "ok", f"{groups} groups of devices", why)
    fix = "switch VT-d or AMD-Vi on in the firmware setup; with Intel boot with intel_iommu=on"
    return Check("iommu", "info", "off, or this machine has none", why, fix)


def apparmor() -> Check:
    """Whether AppArmor confines QEMU, as information."""
    enabled = read_text("/sys/module/apparmor/parameters/enabled") == "Y"
    why = "where it is on, libvirt lets each QEMU see only the files of its own definition"
    return Check("apparmor", "info", "on" if enabled else "off", why)


def cgroup() -> Check:
    """Control groups, through which libvirt limits and counts."""
    why = "libvirt limits and counts the CPU and memory of guests with it"
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return Check("cgroup", "ok", f"version 2: {read_text('/sys/fs/cgroup/cgroup.controllers')}", why)
    if os.path.isdir("/sys/fs/cgroup/memory"):
        return Check("cgroup", "ok", "version 1", why)
    fix = "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    return Check("cgroup", "info", "not mounted; guests run without limits", why, fix)


def disk_space() -> Check:
    """Room where images lie."""
    path = IMAGES
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    free = shutil.disk_usage(path).free
    found, why = f"{free / 2**30:.0f} GiB free in {path}", "a guest whose disk cannot grow is paused by QEMU"
    if free >= LOW_SPACE:
        return Check("disk-space", "ok", found, why)
    return Check("disk-space", "warn", found, why, f"du -xh --max-depth=2 {path} | sort -h | tail")


def machine_id() -> Check:
    """/etc/machine-id, from which UUIDs and MACs derive."""
    text = read_text("/etc/machine-id")
    why = "UUIDs and MACs of guests derive from it, so that no two hosts make the same"
    if text and re.fullmatch(r"[0-9a-f]{32}", text) and text != "0" * 32:
        return Check("machine-id", "ok", "/etc/machine-id is set", why)
    found = "/etc/machine-id is empty or no machine id" if text is not None else "/etc/machine-id does not exist"
    fix = "systemd-machine-id-setup || dbus-uuidgen --ensure=/etc/machine-id"
    return Check("machine-id", "fail", found, why, fix)
