"""How long two guests on one bridge are cut off when somebody deletes it: ``python tests/bench/healing.py``.

Needs root and libvirtd. The guests ping each other all the time; what counts is the time from the request to delete
the bridge until both their TAPs are forwarding ports of a bridge that is up, looked for every millisecond. Prints
Markdown; no assertion is made.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from guest import ARGS, guest_files  # noqa: E402
from hermetic import Agent, Hermetic, wait_until  # noqa: E402
from small import link  # noqa: E402

from kvmd.host.links import messages as encode  # noqa: E402
from kvmd.host.links.kernel import Links  # noqa: E402
from kvmd.host.links.rtnetlink import Namespace, RouteSocket  # noqa: E402
from kvmd.observed import Key  # noqa: E402

GUESTS = {"one": "10.77.0.11", "two": "10.77.0.12"}


def machine(name: str, other: str, folder: Path) -> str:
    files = guest_files()
    words = f"{ARGS} kvmd.name={name} kvmd.ip={GUESTS[name]}/24 kvmd.ping={GUESTS[other]}"
    return f"""---
apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: {name}}}
spec:
  accelerator: tcg
  memory: {{guest: 128Mi}}
  kernelBoot: {{kernel: {{path: {files.kernel}}}, initrd: {{path: {files.initrd}}}, args: "{words}"}}
  interfaces: [{{name: net0, bridge: br0}}]
  devices: {{serial: [{{name: console, file: {folder}/{name}.console}}]}}
"""


class Bench:
    """One kvmd with a bridge and two guests on it that reach each other."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.links = Links(agent.hermetic.namespace)
        self._socket = RouteSocket(Namespace(agent.hermetic.namespace))
        agent.write("all.yaml", link("Bridge", "br0"))
        pairs = (("one", "two"), ("two", "one"))
        agent.write("guests.yaml", "".join(machine(name, other, agent.folder) for name, other in pairs))
        agent.start()
        for name in GUESTS:
            wait_until(partial(self.pings, name, "ok"), 120, f"{name} reaches the other")
        agent.wait_ready("Bridge/br0", "VirtualMachine/one", "VirtualMachine/two")

    def pings(self, name: str, word: str) -> int:
        """How many pings of a guest ended so."""
        return (self.agent.folder / f"{name}.console").read_text(errors="replace").count(f" {word} ")

    def whole(self, not_index: int) -> bool:
        """Are both TAPs forwarding ports of a bridge that is up, and another one than that?"""
        facts, _ = self.links.observe()
        bridge = facts.get(Key("link", "br0"))
        taps = [fact for fact in facts.values() if fact.name.startswith("vnet")]
        ready = [tap.port is not None and tap.port.state == "forwarding" and tap.master == "br0" for tap in taps]
        return bridge is not None and bridge.up and bridge.index != not_index and len(ready) == 2 and all(ready)

    def round(self) -> float:
        """Delete the bridge; seconds until it is whole again."""
        index = self.links.observe()[0][Key("link", "br0")].index
        begun = time.perf_counter()
        self._socket.batch([encode.delete_link(index)])
        while not self.whole(index):
            assert time.perf_counter() < begun + 10, self.links.observe()
            time.sleep(0.001)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as folder:
        hermetic = Hermetic(Path(folder) / "libvirt")
        agent = Agent(hermetic, Path(folder) / "agent")
        try:
            bench, times = Bench(agent), []
            before = {word: sum(bench.pings(name, word) for name in GUESTS) for word in ("ok", "lost")}
            for _ in range(options.rounds):
                times.append(bench.round() * 1000)
                time.sleep(2.0)
            after = {word: sum(bench.pings(name, word) for name in GUESTS) for word in ("ok", "lost")}
        finally:
            agent.stop()
            hermetic.close()
    ok, lost = (after[word] - before[word] for word in ("ok", "lost"))
    print(f"load {os.getloadavg()[0]:.1f}; each: {' '.join(f'{each:.0f}' for each in times)} ms")
    print(f"pings of the guests, one every 200 ms each: {ok} answered, {lost} lost")
    print("| what | median | worst |\n|---|---|---|")
    what = f"bridge deleted under two guests until both are back on it ({len(times)} times)"
    print(f"| {what} | {statistics.median(times):.0f} ms | {max(times):.0f} ms |")


if __name__ == "__main__":
    main()
