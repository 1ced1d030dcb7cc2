"""tc for libvirt on kernels that lack parts of what it asks for: those calls are answered, all others are made.

libvirt limits a NIC by htb with sfq below it, a filter by firewall mark, and a policer. Where the kernel has them
nothing is put in the way.
"""

from __future__ import annotations

from pathlib import Path

from hermetic import Hermetic

PROBES = {
    "sfq": "tc qdisc add dev tcprobe root handle 2: sfq perturb 10",
    "fw": "tc filter add dev tcprobe parent 1: protocol all prio 1 handle 1 fw flowid 1",
    "police": "tc filter add dev tcprobe parent ffff: protocol all u32 match u32 0 0 police rate 1mbit burst 9k drop",
}
STAND_IN = """#!/bin/sh
case " $* " in
{cases}
esac
exec {tc} "$@"
"""


def complete(hermetic: Hermetic, folder: Path) -> tuple[str, ...]:
    """Let every call of tc succeed that libvirt makes; what of it this kernel cannot."""
    lacking = tuple(word for word, probe in PROBES.items() if not _can(hermetic, word, probe))
    if lacking:
        real, stand_in = folder / "tc.real", folder / "tc"
        path = hermetic.run("sh", "-c", "command -v tc").strip()
        real.write_bytes(Path(path).read_bytes())
        real.chmod(0o755)
        stand_in.write_text(STAND_IN.format(cases="\n".join(f'*" {word} "*) exit 0 ;;' for word in lacking), tc=real))
        stand_in.chmod(0o755)
        hermetic.run("mount", "--bind", str(stand_in), path)
    return lacking


def _can(hermetic: Hermetic, word: str, probe: str) -> bool:
    roots = {"fw": "tc qdisc add dev tcprobe root handle 1: htb", "police": "tc qdisc add dev tcprobe ingress"}
    script = f"ip link add tcprobe type veth peer name tcprobe2; {roots.get(word, 'true')} && {probe}; echo $?"
    answer = hermetic.run("sh", "-c", f"{script}; ip link del tcprobe").split()
    return answer[-1] == "0"
