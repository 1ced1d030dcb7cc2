"""kvmd against a bare loop of libvirt-python making the same calls, in one run: ``python tests/bench/run.py``.

Needs root and libvirtd (as tests/run.sh installs them). Prints a Markdown table of ratios; no assertion is made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "host")]

import libvirt  # noqa: E402
from hermetic import Agent, Hermetic  # noqa: E402

from kvmd.api.resource import Ref  # noqa: E402
from kvmd.daemon.assembly import Assembly, assemble  # noqa: E402
from kvmd.daemon.once import converge  # noqa: E402
from kvmd.ops import DomainDefine  # noqa: E402
from kvmd.sources.settings_file import load_settings  # noqa: E402
from kvmd.sources.watch import Watch  # noqa: E402

SPEC = """apiVersion: kvmd.dev/v1alpha1
kind: VirtualMachine
metadata: {{name: vm{number}}}
spec:
  runStrategy: {strategy}
  accelerator: tcg
  cpu: {{vcpus: {vcpus}, maxVcpus: 4}}
  memory: {{guest: 64Mi}}
  interfaces: [{{name: net0, user: {{}}}}]
"""
Row = tuple[str, str, str, str]


def specs(agent: Agent, count: int, strategy: str, vcpus: int = 1) -> None:
    for number in range(count):
        agent.write(f"vm{number}.yaml", SPEC.format(number=number, strategy=strategy, vcpus=vcpus))


def documents(assembly: Assembly, count: int) -> list[str]:
    """The very definitions that kvmd would write."""
    report = assembly.reconciler.cycle(act=False)
    while report.snapshot.wake_at is not None:
        time.sleep(0.05)
        report = assembly.reconciler.cycle(act=False)
    found = [op.xml for step in report.plan.steps for op in step.operations if isinstance(op, DomainDefine)]
    assert len(found) == count, (len(found), count)
    return found


def timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def clean(connection: Any) -> None:
    for domain in connection.listAllDomains(0):
        if domain.isActive():
            domain.destroy()
        domain.undefine()


class Bench:
    """One hermetic libvirtd; kvmd in this process enters its network namespace by the path."""

    def __init__(self, folder: Path) -> None:
        self.hermetic = Hermetic(folder / "libvirt")
        self.folder = folder
        self.connection = libvirt.open(self.hermetic.uri)
        self.runs = 0

    def agent(self, count: int, strategy: str) -> tuple[Agent, Assembly]:
        self.runs += 1
        agent = Agent(self.hermetic, self.folder / f"run{self.runs}")
        specs(agent, count, strategy)
        return agent, assemble(load_settings(str(agent.config), True), self.hermetic.namespace)

    def read_back(self, uuids: set[str]) -> None:
        """What whoever wants to know whether it was done asks for, in as few calls as kvmd needs."""
        domains = self.connection.listAllDomains(0)
        for flag in (
            libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT,
            libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART,
            libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
        ):
            self.connection.listAllDomains(flag)
        self.connection.domainListGetStats(domains, libvirt.VIR_DOMAIN_STATS_STATE, 0)
        read = [item.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE) for item in domains]
        assert len(read) == len(uuids)

    def converged(self, agent: Agent) -> tuple[Assembly, float]:
        """A new kvmd, and the seconds from its first thought, connecting included, until all is as asked."""
        time.sleep(1)  # the specs have settled
        begun = time.perf_counter()
        assembly = assemble(load_settings(str(agent.config), True), self.hermetic.namespace)
        converge(assembly)
        return assembly, time.perf_counter() - begun

    def define(self, count: int) -> list[Row]:
        agent, assembly = self.agent(count, "Halted")
        xml = documents(assembly, count)
        uuids: set[str] = set()
        alone = timed(lambda: uuids.update(self.connection.defineXML(item).UUIDString() for item in xml))
        bare = alone + timed(lambda: self.read_back(uuids))
        clean(self.connection)
        assembly.close()
        assembly, ours = self.converged(agent)
        left = converge(assembly)
        assert not left.plan.steps and all(item.ready for item in left.plan.objects.values())
        clean(self.connection)
        assembly.close()
        what = f"{count} domains, specs read and status kept"
        return [
            (f"define and read back {what}", f"{bare:.2f} s", f"{ours:.2f} s", f"{ours / bare:.2f}"),
            (
                f"the same; bare: define alone, {count} domains",
                f"{alone:.2f} s",
                f"{ours:.2f} s",
                f"{ours / alone:.2f}",
            ),
        ]

    def start(self, count: int) -> Row:
        agent, assembly = self.agent(count, "Always")
        xml = documents(assembly, count)
        bare = timed(lambda: [self.connection.defineXML(item).create() for item in xml])
        clean(self.connection)
        assembly.close()
        assembly, ours = self.converged(agent)
        clean(self.connection)
        assembly.close()
        return (f"define and start {count} domains", f"{bare:.2f} s", f"{ours:.2f} s", f"{ours / bare:.2f}")

    def idle(self, count: int) -> list[Row]:
        agent, assembly = self.agent(count, "Halted")
        watch = Watch(str(agent.specs), assembly.wake.set, assembly.heard)
        watch.start()
        converge(assembly)
        cycles = 20
        before = time.process_time()
        for _ in range(cycles):
            assembly.reconciler.cycle()
        idle = (time.process_time() - before) / cycles * 1000
        connection_lists = (
            statistics.median(timed(lambda: self.connection.listAllDomains(0)) for _ in range(9)) * 1000
        )
        rows: list[Row] = [
            (
                f"cycle with nothing to do, {count} domains (CPU; bare: one listAllDomains)",
                f"{connection_lists:.2f} ms",
                f"{idle:.2f} ms",
                f"{idle / connection_lists:.1f}",
            )
        ]
        changes = []
        for turn in range(9):
            agent.write("vm0.yaml", SPEC.format(number=0, strategy="Halted", vcpus=2 + turn % 2))
            time.sleep(0.4)
            before = time.process_time()
            report = assembly.reconciler.cycle()
            changes.append((time.process_time() - before) * 1000)
            assert [step.ref for step in report.dispatched] == [Ref("VirtualMachine", "vm0")], report.dispatched
            converge(assembly)
        rows.append(
            (f"cycle with one changed file, {count} domains (CPU)", "", f"{statistics.median(changes):.2f} ms", "")
        )
        watch.stop()
        clean(self.connection)
        assembly.close()
        return rows

    def latency(self, count: int) -> list[Row]:
        """File saved to the definition being another, as an outsider sees it, less the settle time."""
        agent, assembly = self.agent(count, "Halted")
        converge(assembly)
        assembly.close()
        agent.start()
        settle = load_settings(str(agent.config), True).source.settle
        domain = self.connection.lookupByName("vm0")
        seen = []
        for turn in range(9):
            before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            agent.write("vm0.yaml", SPEC.format(number=0, strategy="Halted", vcpus=2 + turn % 2))
            begun = time.perf_counter()
            while domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before:
                time.sleep(0.001)
            seen.append((time.perf_counter() - begun - settle) * 1000)
            time.sleep(0.5)
        with open(f"/proc/{agent.pid()}/status", encoding="ascii") as status:
            resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
        agent.stop()
        clean(self.connection)
        return [
            (
                f"file saved to definition written, beyond the settle time, {count} domains (median, worst of 9)",
                "",
                f"{statistics.median(seen):.0f} ms, {max(seen):.0f} ms",
                "",
            ),
            (f"resident memory of the daemon, {count} domains", "", f"{resident:.0f} MiB", ""),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="define,start,idle,latency")
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    wanted = options.only.split(",")
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as folder:
        bench = Bench(Path(folder))
        rows: list[Row] = []
        try:
            if "define" in wanted:
                rows += bench.define(options.count)
            if "start" in wanted:
                rows.append(bench.start(20))
            if "idle" in wanted:
                for count in (10, 100, options.count):
                    rows += bench.idle(count)
            if "latency" in wanted:
                rows += bench.latency(options.count)
        finally:
            bench.hermetic.close()
    print("| what | bare libvirt-python | kvmd | ratio |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
