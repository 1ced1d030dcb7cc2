"""Putting the rooms together: source, host, executor and reconciler of one process."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kvmd.api.secrecy import use_key
from kvmd.engine.executor import Executor
from kvmd.engine.reconciler import Reconciler, Sources
from kvmd.engine.records import Records
from kvmd.host import Host
from kvmd.host.digest_key import digest_key
from kvmd.kinds import CONTROLLERS
from kvmd.settings import Settings
from kvmd.sources.directory import Directory
from kvmd.sources.heard import Heard
from kvmd.sources.store import Store
from kvmd.telemetry.events import Events
from kvmd.telemetry.metrics import Metrics

SWITCH_SECONDS = 0.0005
EXIT_TOO_MANY_SLOW = 75  # EX_TEMPFAIL: systemd starts kvmd again, and nothing is lost by that


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything that one kvmd process is made of."""

    settings: Settings
    metrics: Metrics
    events: Events
    wake: threading.Event
    heard: Heard
    host: Host
    executor: Executor
    reconciler: Reconciler

    def close(self) -> None:
        """Stop watching; running guests are none of our children and go on."""
        self.host.close()


def assemble(settings: Settings, namespace: str | None = None, log: Callable[..., None] | None = None) -> Assembly:
    """Build the process; nothing is written and nothing is started but readers."""
    # Almost nothing here is garbage that only the collector finds; at Python's default it takes a sixth of the time
    # in which a thousand specs are read and planned.
    gc.set_threshold(50_000, 20, 20)
    # A worker whose call of libvirt has returned waits that long for a thread that is planning: at Python's default
    # of 5 ms the calls take longer to begin than to be answered.
    sys.setswitchinterval(SWITCH_SECONDS)
    use_key(lambda: digest_key(settings.paths.state))
    wake = threading.Event()
    metrics, events = Metrics(CONTROLLERS), Events()
    host = Host(settings, metrics, wake.set, namespace)
    good = Store(os.path.join(settings.paths.state, "specs.jsonl"))
    specs = {kind: controller.Spec for kind, controller in CONTROLLERS.items()}
    heard = Heard()
    directory = Directory(settings.source.path, settings.source, specs, good, heard)

    def tell(object_: str, reason: str, message: str, warning: bool) -> None:
        events.add(object_, reason, message, warning=warning)
        if log is not None:
            log(message, object=object_, reason=reason, warning=warning)

    executor = Executor(host.hand, settings.workers, settings.libvirt, wake.set, _give_up)
    records = Records(good, Store(os.path.join(settings.paths.state, "applied.jsonl")))
    reconciler = Reconciler(settings, host, Sources(directory, records), executor, tell)
    return Assembly(settings, metrics, events, wake, heard, host, executor, reconciler)


def _give_up() -> None:
    """Too many calls hang for this process to be of use; a new one starts with clean connections."""
    os.write(2, b"<2>kvmd: 16 calls of libvirt hang; exiting so that a new process starts with new connections\n")
    os._exit(EXIT_TOO_MANY_SLOW)
