"""Fixtures of the whole suite: what needs root or libvirt is skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "host"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write plan.yaml of every case as it is planned now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = os.geteuid() == 0
    libvirtd = shutil.which("libvirtd") is not None
    for item in items:
        if not root and any(item.get_closest_marker(name) for name in ("root", "libvirt", "guest")):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        elif not libvirtd and any(item.get_closest_marker(name) for name in ("libvirt", "guest")):
            item.add_marker(pytest.mark.skip(reason="needs libvirtd: apt-get install libvirt-daemon-system"))


@pytest.fixture(scope="module")
def hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One libvirtd for the tests of a module."""
    from hermetic import Hermetic

    made = Hermetic(tmp_path_factory.mktemp("libvirt"))
    yield made
    made.close()


@pytest.fixture
def agent(hermetic: object, tmp_path: Path) -> Iterator[object]:
    """A kvmd with an empty directory of specs; not started yet."""
    from hermetic import Agent

    made = Agent(hermetic, tmp_path)  # type: ignore[arg-type]
    yield made
    made.stop()


@pytest.fixture
def definitions(hermetic: object) -> Iterator[object]:
    """The simulated host whose definitions are those of a real libvirt."""
    import libvirt
    from definitions import Definitions

    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(hermetic.uri)  # type: ignore[attr-defined]
    made = Definitions(connection)
    yield made
    made.forget()
    connection.close()
