"""What can only be known by doing it, done in a process of its own: standard library only, JSON on stdout.

``probe.py kvm`` runs a small guest program with KVM; ``probe.py links`` makes links in a network
namespace of its own. Whatever either does ends with the process, and whoever called it sets the time limit.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import socket
import struct
import sys
import time

LOOPS = 100_000  # under 1 ms on a real CPU; 150 ms where KVM emulates every instruction
SLOW_SECONDS = 0.03
KVM_EXIT_IO = 2
CLONE_NEWNET = 0x40000000
RTM_NEWLINK, NLMSG_ERROR = 16, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 1, 4, 0x200, 0x400
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_BR_VLAN_FILTERING = 3, 18, 1, 2, 7
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
LINK_KINDS = ("bridge", "vlan", "vxlan", "macvtap")

_libc = ctypes.CDLL(None, use_errno=True)


def _kvm(number: int, size: int = 0, direction: int = 0) -> int:
    return direction << 30 | size << 16 | 0xAE00 | number


def _ioctl(fd: int, request: int, argument: int | bytearray = 0) -> int:
    """ioctl(2) with a whole machine word or a buffer; fcntl.ioctl takes no address above 2 GiB."""
    if isinstance(argument, bytearray):
        done = _libc.ioctl(fd, ctypes.c_ulong(request), (ctypes.c_char * len(argument)).from_buffer(argument))
    else:
        done = _libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(argument))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(done)


def _long_mode(sregs: bytearray) -> None:
    """64-bit ring 0 with paging, as the kernel of any guest runs; the page tables lie at 0x2000."""
    segment = "<QIHBBBBBBBBBB"
    struct.pack_into(segment, sregs, 0, 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    for offset in (24, 48, 72, 96, 120):
        struct.pack_into(segment, sregs, offset, 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    struct.pack_into("<6Q", sregs, 224, 0x80000031, 0, 0x2000, 0x20, 0, 0x500)  # cr0 cr2 cr3 cr4 cr8 efer


def _guest_memory() -> mmap.mmap:
    """Page tables that map the first 2 MiB, and a program: count LOOPS down, write to a port, halt."""
    memory = mmap.mmap(-1, 0x10000)
    for address, entry in ((0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x83)):
        struct.pack_into("<Q", memory, address, entry)
    count = b"\xb9" + struct.pack("<I", LOOPS) + b"\xff\xc9\x75\xfc"  # mov ecx, LOOPS; 1: dec ecx; jnz 1b
    program = count + b"\xba\xf8\x03\x00\x00\xb0\x35\xee\xf4"  # mov edx, 0x3f8; mov al, '5'; out dx, al; hlt
    memory[0x1000 : 0x1000 + len(program)] = program
    return memory


def _run_program(device: int, machine: int, vcpu: int) -> tuple[int, float]:
    """Run the program on *vcpu*; the exit reason and the CPU seconds, which do not grow on a busy host."""
    size = _ioctl(device, _kvm(0x04))
    memory = _guest_memory()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _ioctl(machine, _kvm(0x46, 32, 1), bytearray(struct.pack("<IIQQQ", 0, 0, 0, len(memory), address)))
    cpuid = bytearray(8 + 40 * 256)
    struct.pack_into("<I", cpuid, 0, 256)
    _ioctl(device, _kvm(0x05, 8, 3), cpuid)
    _ioctl(vcpu, _kvm(0x90, 8, 1), cpuid)
    run = mmap.mmap(vcpu, size)
    sregs = bytearray(312)
    _ioctl(vcpu, _kvm(0x83, 312, 2), sregs)
    _long_mode(sregs)
    _ioctl(vcpu, _kvm(0x84, 312, 1), sregs)
    registers = struct.pack("<18Q", *[0] * 6, 0x8000, *[0] * 9, 0x1000, 2)  # rsp, rip, rflags
    _ioctl(vcpu, _kvm(0x82, 144, 1), bytearray(registers))
    begun = time.thread_time()
    _ioctl(vcpu, _kvm(0x80))
    return struct.unpack_from("<I", run, 8)[0], time.thread_time() - begun


def probe_kvm() -> dict[str, object]:
    """Is KVM of use: does it make a machine, does a program run on it, and at the speed of the CPU?"""
    step = "opening /dev/kvm"
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        step = "KVM_GET_API_VERSION"
        version = _ioctl(device, _kvm(0x00))
        if version != 12:
            return {"usable": False, "found": f"its API version is {version}, not 12"}
        step = "KVM_CREATE_VM"
        machine = _ioctl(device, _kvm(0x01))
        if platform.machine() != "x86_64":
            return {"usable": True, "found": "a machine can be made (no program was run on this architecture)"}
        step = "KVM_SET_TSS_ADDR"
        _ioctl(machine, _kvm(0x47), 0xFFFBD000)
        step = "KVM_CREATE_VCPU"
        vcpu = _ioctl(machine, _kvm(0x41))
        step = "running a program"
        reason, seconds = _run_program(device, machine, vcpu)
    except OSError as error:
        return {"usable": False, "found": f"{step} failed: {error.strerror}", "errno": error.errno}
    if reason != KVM_EXIT_IO:
        return {"usable": False, "found": f"a program of a few instructions ended with KVM exit {reason}"}
    pace = f"{LOOPS:,} loops took {seconds * 1000:.1f} ms"
    if seconds > SLOW_SECONDS:
        return {
            "usable": False,
            "found": f"it emulates instruction by instruction ({pace}; a CPU needs less than 1 ms)",
        }
    return {"usable": True, "found": f"a program runs on it at the speed of the CPU ({pace})"}


def _attribute(kind: int, payload: bytes) -> bytes:
    size = 4 + len(payload)
    return struct.pack("<HH", size, kind) + payload + b"\0" * (-size % 4)


def _new_link(kind: str, data: bytes = b"") -> int:
    """Ask for a link of *kind*, perhaps with attributes of that kind; the errno of the answer (0 is made)."""
    info = _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, kind.encode()) + data)
    name = f"p-{kind}{len(data)}".encode() + b"\0"
    body = struct.pack("<BxHiII", 0, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, name) + info
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(2)
        netlink.send(struct.pack("<IHHII", 16 + len(body), RTM_NEWLINK, flags, 1, 0) + body)
        answer = netlink.recv(8192)
    (kind_of_answer,) = struct.unpack_from("<H", answer, 4)
    return -struct.unpack_from("<i", answer, 16)[0] if kind_of_answer == NLMSG_ERROR else errno.EPROTO


def _new_tap() -> int:
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"probe1", IFF_TAP | IFF_NO_PI))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def probe_links() -> dict[str, object]:
    """By kind of link the errno of making one: EOPNOTSUPP is an unknown kind, EINVAL only an incomplete request."""
    if _libc.unshare(CLONE_NEWNET) < 0:
        return {"errno": ctypes.get_errno()}
    filtering = _attribute(IFLA_INFO_DATA, _attribute(IFLA_BR_VLAN_FILTERING, b"\1"))
    kinds = {kind: _new_link(kind) for kind in LINK_KINDS}
    return {**kinds, "bridge-vlan": _new_link("bridge", filtering), "tap": _new_tap()}


if __name__ == "__main__":
    print(json.dumps({"kvm": probe_kvm, "links": probe_links}[sys.argv[1]]()))
