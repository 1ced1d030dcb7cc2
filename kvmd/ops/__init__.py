"""What can be done to a host, as frozen data; ``kvmd.host`` alone carries it out.

Each operation says what it costs the guests (its impact) and describes itself in the words of a plan.
"""

from __future__ import annotations

from kvmd.ops.base import Impact, Op
from kvmd.ops.domain import (
    DomainAttach,
    DomainDefine,
    DomainDestroy,
    DomainDetach,
    DomainResume,
    DomainSetAutostart,
    DomainSetMark,
    DomainSetMemory,
    DomainSetVcpus,
    DomainShutdown,
    DomainStart,
    DomainUndefine,
    DomainUpdateDevice,
)
from kvmd.ops.ledger import LedgerWrite
from kvmd.ops.link import (
    AddressAdd,
    AddressDelete,
    BridgeCreate,
    LinkDelete,
    LinkOp,
    LinkSet,
    RouteAdd,
    RouteDelete,
    TapCreate,
    TapOwner,
)
from kvmd.ops.network import (
    NetworkDefine,
    NetworkRestart,
    NetworkSetAutostart,
    NetworkStart,
    NetworkStop,
    NetworkUndefine,
    NetworkUpdate,
)

__all__ = [
    "AddressAdd",
    "AddressDelete",
    "BridgeCreate",
    "DomainAttach",
    "DomainDefine",
    "DomainDestroy",
    "DomainDetach",
    "DomainResume",
    "DomainSetAutostart",
    "DomainSetMark",
    "DomainSetMemory",
    "DomainSetVcpus",
    "DomainShutdown",
    "DomainStart",
    "DomainUndefine",
    "DomainUpdateDevice",
    "Impact",
    "LedgerWrite",
    "LinkDelete",
    "LinkOp",
    "LinkSet",
    "NetworkDefine",
    "NetworkRestart",
    "NetworkSetAutostart",
    "NetworkStart",
    "NetworkStop",
    "NetworkUndefine",
    "NetworkUpdate",
    "Op",
    "RouteAdd",
    "RouteDelete",
    "TapCreate",
    "TapOwner",
]
