"""kvmd against ip, in one run: bridges and TAPs, and cycles over a thousand TAPs: ``python tests/bench/links.py``.

Needs root. Everything happens in a network namespace of its own. Prints a Markdown table; no time is asserted.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from netns import CLONE_NEWNET, NetNamespace, namespace  # noqa: E402

from kvmd.daemon.assembly import Assembly, assemble  # noqa: E402
from kvmd.daemon.once import converge  # noqa: E402
from kvmd.settings import Settings  # noqa: E402

HEAD = "---\napiVersion: kvmd.dev/v1alpha1\n"
MARK = "kvmd:v1:kvmd:{kind}/{name}:1:0123456789abcdef"
Row = tuple[str, str, str, str]


def specs(bridges: int, taps: int) -> str:
    """Bridges, and TAPs that are ports of them by turns."""
    text = [f"{HEAD}kind: Bridge\nmetadata: {{name: br{number}}}\nspec: {{}}\n" for number in range(bridges)]
    for number in range(taps):
        bridge = f"bridge: br{number % bridges}" if bridges else ""
        text.append(f"{HEAD}kind: Tap\nmetadata: {{name: tap{number}}}\nspec: {{owner: root, {bridge}}}\n")
    return "".join(text)


def commands(bridges: int, taps: int) -> list[str]:
    """The same by ip: made, marked, put into their bridge, up."""
    lines = []
    for number in range(bridges):
        name = f"br{number}"
        alias = MARK.format(kind="Bridge", name=name)
        lines += [f"link add {name} type bridge", f"link set {name} alias {alias}"]
    for number in range(taps):
        name = f"tap{number}"
        alias = MARK.format(kind="Tap", name=name)
        lines += [f"tuntap add {name} mode tap user 0", f"link set {name} alias {alias}"]
        lines.append(f"link set {name} master br{number % bridges} up")
    return [*lines, *(f"link set br{number} up" for number in range(bridges))]


@contextmanager
def inside(net: NetNamespace) -> Iterator[None]:
    """This thread, and those that it starts, are in the namespace, as ``ip`` is."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc/thread-self/ns/net", net.path)]
    try:
        assert libc.setns(descriptors[1], CLONE_NEWNET) == 0, "setns needs root"
        yield
    finally:
        assert libc.setns(descriptors[0], CLONE_NEWNET) == 0
        for descriptor in descriptors:
            os.close(descriptor)


@contextmanager
def kvmd(net: NetNamespace, text: str) -> Iterator[Assembly]:
    """A kvmd of this process with these specs; libvirt has no part in this."""
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as name, inside(net):
        folder = Path(name)
        (folder / "specs").mkdir()
        (folder / "specs" / "all.yaml").write_text(text)
        settings = Settings.model_validate(
            {
                "source": {"path": str(folder / "specs"), "settle": "20ms"},
                "libvirt": {"uri": "test:///default"},
                "paths": {key: str(folder / key) for key in ("state", "cache", "run")},
                "prune": {"grace": "100ms", "maxPercent": 100},
            }
        )
        assembly = assemble(settings)
        observe = assembly.host.observe
        assembly.host.observe = lambda *words: replace(observe(*words), missing=frozenset())  # type: ignore[method-assign]
        time.sleep(1)  # the file is settled, and the readers have begun
        try:
            yield assembly
        finally:
            assembly.executor.stop(10)
            assembly.close()


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds that passed, and of CPU, that of children included."""
    begun, before = time.perf_counter(), _cpu()
    act()
    return (time.perf_counter() - begun) * 1000, (_cpu() - before) * 1000


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ready(assembly: Assembly, count: int) -> None:
    """All of it is as asked, and a second look has nothing to do."""
    report = converge(assembly)
    assert not report.plan.steps and len(report.plan.objects) == count
    assert all(item.ready for item in report.plan.objects.values())


def building(count: int, rounds: int) -> list[Row]:
    """Half of them bridges, half TAPs on them: the ways by turns, the median of each."""
    half = count // 2
    lines = commands(half, half)
    ways: dict[str, list[tuple[float, float]]] = {
        "ip -batch": [],
        f"one ip a command ({len(lines)})": [],
        "kvmd, the building: one batch, all links read before and after": [],
        "kvmd, from the file to converged": [],
    }
    together, alone, acting, ours = ways.values()
    for number in range(rounds):
        with namespace() as net:
            together.append(run_in(net, "\n".join(lines), "ip", "-batch", "-"))
            assert len(net.links()) == count + 1
        with namespace() as net:
            if not number:
                alone.append(run_in(net, "\n".join(f"ip {line}" for line in lines), "sh", "-e"))
                assert len(net.links()) == count + 1
        with namespace() as net, kvmd(net, specs(half, half)) as assembly:
            watch(assembly, acting)
            ours.append(timed(lambda: converge(assembly)))
            ready(assembly, count)
            assert len(acting) == len(ours) and len(net.links()) == count + 1
    base = statistics.median(wall for wall, _ in together)
    rows = []
    for way, figures in ways.items():
        wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        what = f"{half} bridges and {half} TAPs on them: {way}"
        rows.append((what, f"{wall:.0f} ms", f"{wall / base:.1f}", f"{cpu:.0f} ms"))
    return rows


def run_in(net: NetNamespace, text: str, *command: str) -> tuple[float, float]:
    """Time a program of the namespace that gets the commands on stdin."""
    entering = ["nsenter", f"--net={net.path}", *command]
    return timed(lambda: subprocess.run(entering, input=text, text=True, check=True))


def watch(assembly: Assembly, figures: list[tuple[float, float]]) -> None:
    """Time what carries the operations of a plan out."""
    execute = assembly.host.execute_links

    def timed_batch(operations: Any) -> Any:
        answers: list[Any] = []
        figures.append(timed(lambda: answers.extend(execute(operations))))
        return answers

    assembly.host.execute_links = timed_batch  # type: ignore[method-assign]


def idle(count: int) -> list[Row]:
    """Cycles over TAPs that are as asked."""
    with namespace() as net, kvmd(net, specs(0, count)) as assembly:
        converge(assembly)
        ready(assembly, count)
        rows = []
        for what, stale in (("nothing to do", False), ("nothing to do, all links read anew", True)):
            figures = []
            for _ in range(20):
                if stale:
                    assembly.host._on_links(None)
                figures.append(timed(assembly.reconciler.cycle))
            wall = sorted(figure[0] for figure in figures)
            cpu = statistics.mean(figure[1] for figure in figures)
            name = f"cycle with {what}, {count} TAPs: median (worst of 20)"
            rows.append((name, f"{statistics.median(wall):.1f} ms ({wall[-1]:.1f} ms)", "", f"{cpu:.1f} ms"))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="building,idle")
    parser.add_argument("--build", type=int, default=200)
    parser.add_argument("--taps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: list[Row] = []
    if "building" in options.only:
        rows += building(options.build, options.rounds)
    if "idle" in options.only:
        rows += idle(options.taps)
    print("| what | time | of ip -batch | CPU |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
