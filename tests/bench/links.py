"""kvmd against ip, in one run: bridges and TAPs, and cycles over a thousand TAPs: ``python tests/bench/links.py``.

Needs root. Everything happens in a network namespace of its own. Prints a Markdown table; no time is asserted.
"""

from __future__ import annotations

import argparse
import os
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

from netns import NetNamespace, namespace  # noqa: E402

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
def kvmd(net: NetNamespace, text: str) -> Iterator[Assembly]:
    """A kvmd of this process with these specs; libvirt has no part in this."""
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as name:
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
        assembly = assemble(settings, namespace=net.path)
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
    begun, before = time.perf_counter(), os.times()
    act()
    after = os.times()
    return (time.perf_counter() - begun) * 1000, sum(after[:4]) * 1000 - sum(before[:4]) * 1000


def ready(assembly: Assembly, count: int) -> None:
    """All of it is as asked, and a second look has nothing to do."""
    report = converge(assembly)
    assert not report.plan.steps and len(report.plan.objects) == count
    assert all(item.ready for item in report.plan.objects.values())


def building(count: int) -> list[Row]:
    """Half of them bridges, half TAPs on them."""
    half = count // 2
    lines = commands(half, half)
    with namespace() as net:
        batch = ["nsenter", f"--net={net.path}", "ip", "-batch", "-"]
        together = timed(lambda: subprocess.run(batch, input="\n".join(lines), text=True, check=True))
        assert len(net.links()) == count + 1
    with namespace() as net:
        single = f"while read -r words; do ip $words; done <<'END'\n{chr(10).join(lines)}\nEND"
        alone = timed(lambda: subprocess.run(["nsenter", f"--net={net.path}", "sh", "-ec", single], check=True))
        assert len(net.links()) == count + 1
    with namespace() as net, kvmd(net, specs(half, half)) as assembly:
        ours = timed(lambda: converge(assembly))
        assert len(net.links()) == count + 1
        ready(assembly, count)
    what = f"{half} bridges and {half} TAPs on them"
    ways = {
        "ip -batch": together,
        f"one ip a command ({len(lines)})": alone,
        "kvmd, from the file to converged": ours,
    }
    return [
        (f"{what}: {way}", f"{wall:.0f} ms", f"{wall / together[0]:.1f}", f"{cpu:.0f} ms")
        for way, (wall, cpu) in ways.items()
    ]


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
            cpu = statistics.mean(figure[1] for figure in figures)  # the clock of the CPU ticks in 10 ms
            name = f"cycle with {what}, {count} TAPs: median (worst of 20)"
            rows.append((name, f"{statistics.median(wall):.1f} ms ({wall[-1]:.1f} ms)", "", f"{cpu:.1f} ms"))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="building,idle")
    parser.add_argument("--build", type=int, default=200)
    parser.add_argument("--taps", type=int, default=1000)
    options = parser.parse_args()
    rows: list[Row] = []
    if "building" in options.only:
        rows += building(options.build)
    if "idle" in options.only:
        rows += idle(options.taps)
    print("| what | time | of ip -batch | CPU |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
