"""Two namespaces and a cable: a host whose NIC carries its address and default route, and the gateway beyond it.

As a program it is a kvmd that carries out one guarded operation and dies where it is told to.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netns import NetNamespace, namespace

from kvmd.host.checkpoint.guarded import Checkpoints
from kvmd.host.links.kernel import Links
from kvmd.host.links.rtnetlink import Failure, Request
from kvmd.ops import AddressesMove, BridgeCreate, Guarded, LinkSet

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "kvmd:v1:kvmd:Bridge/br0:1:0123456789abcdef"
ADDRESSES = ["192.0.2.5/24", "192.0.2.6/24", "2001:db8::5/64", "2001:db8::6/64"]

HOST = """
ip link set lo up
ip link add eno1 address 02:00:00:00:00:05 type veth peer name wire
ip link set wire netns {gateway}
ip link set eno1 up
ip addr add 192.0.2.5/24 dev eno1
ip addr add 192.0.2.6/24 dev eno1 label eno1:1
ip addr add 2001:db8::5/64 dev eno1 nodad
ip addr add 2001:db8::6/64 dev eno1 nodad
"""
ROUTES = """
ip route add default via 192.0.2.1 dev eno1 proto static metric 100 src 192.0.2.5
ip route add 198.51.100.0/24 via 192.0.2.1 dev eno1 proto boot metric 7
ip route add 203.0.113.0/24 dev eno1 proto static scope link mtu 1400
ip route add default via 192.0.2.1 dev eno1 table 77
ip -6 route add default via 2001:db8::1 dev eno1 proto static metric 300
ip -6 route add 2001:db8:1::/48 via 2001:db8::1 dev eno1 proto boot
"""
GATEWAY = """
ip link set lo up
ip link set wire up
ip addr add 192.0.2.1/24 dev wire
ip addr add 2001:db8::1/64 dev wire nodad
"""


class Cable:
    """The host's namespace and the gateway's."""

    def __init__(self, net: NetNamespace, gateway: NetNamespace) -> None:
        self.net, self.gateway = net, gateway
        net.shell(HOST.format(gateway=gateway.path))
        gateway.shell(GATEWAY)
        self.wait(lambda: "02:00:00:00:00:05" in self.state() and "tentative" not in self.state())
        net.shell(ROUTES)

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            time.sleep(0.02)

    def state(self) -> str:
        """What must be the same afterwards, as ip and bridge print it."""
        words = ["ip -d addr", "ip route show table all", "ip -6 route show table all", "bridge link"]
        text = "\n".join(self.net.run(*line.split()) for line in words)
        return re.sub(r"_timer +[0-9.]+", "", text)  # of bridges, which run on

    def index(self, name: str) -> int:
        """The index of a link."""
        return int(self.net.links()[name]["ifindex"])


@contextmanager
def cable() -> Iterator[Cable]:
    """A host and its gateway for one test."""
    with namespace() as net, namespace() as gateway:
        yield Cable(net, gateway)


def onto_bridge(index: int, spec_hash: str = "1", **more: Any) -> Guarded:
    """What a plan does to put that NIC into a bridge, addresses and all."""
    return Guarded(
        "br0",
        (
            BridgeCreate("br0", MARK, "02:00:00:00:00:05", settings=(("stp_state", int(more.pop("stp", False))),)),
            LinkSet("eno1", index, master="br0", up=True, port_mark=f"kvmd.port.{index}.br0"),
            LinkSet("br0", up=True),
            AddressesMove("br0", 0, "eno1", index, tuple(ADDRESSES)),
        ),
        "Bridge/br0",
        spec_hash,
        **more,
    )


def back_again(index: int, bridge: int) -> Guarded:
    """What a plan does before it deletes the bridge."""
    release = LinkSet("eno1", index, master="", port_mark="")
    move = AddressesMove("eno1", index, "br0", bridge, tuple(ADDRESSES))
    return Guarded("br0", (release, move), "Bridge/br0", "removal of 1")


# ------------------------------------------------------------------------------- a kvmd that dies


def run(
    net: NetNamespace, state: Path, *, die: str = "", timeout: float = 60.0, **more: Any
) -> subprocess.Popen[str]:
    """Such a kvmd, in the namespace."""
    index = int(net.links()["eno1"]["ifindex"])
    words = json.dumps({"state": str(state), "die": die, "index": index, "more": more})
    command = ["nsenter", f"--net={net.path}", sys.executable, str(Path(__file__)), words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent)))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


class Mortal(Checkpoints):
    """Dies by SIGKILL at the end of the step that it is told, or in the middle of the batch."""

    die = ""

    def _begin(self, operation: Guarded) -> Any:
        return self._end("begin", super()._begin(operation))

    def _arm(self, entry: Any) -> Any:
        watchdog = super()._arm(entry)
        assert watchdog._process is not None
        print(watchdog._process.pid, flush=True)
        return self._end("arm", watchdog)

    def _apply(self, *words: Any) -> None:
        if self.die.startswith("middle"):
            self._links._writer.batch = self._part  # type: ignore[method-assign]
        self._end("apply", super()._apply(*words))
        if self.die == "lose the route":
            subprocess.run(["ip", "route", "del", "default", "dev", "br0"], check=True)
        if self.die == "wait":
            time.sleep(60)

    def _verify(self, *words: Any) -> None:
        self._end("verify", super()._verify(*words))

    def _part(self, requests: Sequence[Request]) -> list[Failure | None]:
        count = int(self.die.split()[1])
        type(self._links._writer).batch(self._links._writer, requests[:count])
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def _end(self, step: str, value: Any) -> Any:
        if step == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def _main(words: dict[str, Any]) -> None:
    checkpoints = Mortal(words["state"], Links())
    checkpoints.die = words["die"]
    try:
        checkpoints.execute(onto_bridge(words["index"], **words["more"]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    else:
        print("confirmed", flush=True)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
