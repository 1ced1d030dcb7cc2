"""The numbers of serial consoles: the same spec gives the same ttyS0, whatever was there before."""

from __future__ import annotations

from generators import decoded, document
from simulator import Loop
from worlds import machine_for

from kvmd.xmlmap import parse

NAMES = (("first",), ("first", "second"), ("second",), ("second", "third"), ("third",), ("first",))


def test_a_console_moves_up_when_one_before_it_goes() -> None:
    wished = [
        decoded(
            [
                document(
                    "VirtualMachine",
                    "web",
                    {
                        "runStrategy": "Halted",
                        "memory": {"guest": "256Mi"},
                        "devices": {"serial": [{"name": name} for name in names]},
                    },
                )
            ]
        )
        for names in NAMES
    ]
    loop, found = Loop(machine_for(*wished)), []
    for resources in wished:
        loop.converge(resources)
        root = parse(loop.machine.domain("web").config or "")
        names = [item.get("name", "").removeprefix("ua-serial-") for item in root.findall("devices/serial/alias")]
        ports = [item.get("port") for item in root.findall("devices/serial/target")]
        found.append(dict(zip(names, ports, strict=True)))
    assert found == [
        {"first": "0"},
        {"first": "0", "second": "1"},
        {"second": "0"},
        {"second": "0", "third": "1"},
        {"third": "0"},
        {"first": "0"},
    ]
