"""From link operations to the requests of one batch, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from kvmd.api.bridge_settings import Numbers
from kvmd.errors import Refused
from kvmd.host.checkpoint.move import add_route, compile_move
from kvmd.host.checkpoint.record import boot_seconds
from kvmd.host.checkpoint.restore import compile_restore
from kvmd.host.links import messages as encode
from kvmd.host.links.batch import Batch, Phase, Step
from kvmd.host.links.checks import (
    PORT_MARK_PREFIX,
    Presence,
    check_master,
    check_removable,
    check_way,
    find_route,
    held_by_failed_addition,
    same_address,
    same_subnet,
)
from kvmd.host.links.errors import GONE
from kvmd.observed import Stacked
from kvmd.ops import (
    AddressAdd,
    AddressDelete,
    AddressesMove,
    AddressesRestore,
    BridgeCreate,
    LinkDelete,
    LinkOp,
    LinkSet,
    RouteAdd,
    RouteDelete,
    StackedCreate,
    TapCreate,
    TapOwner,
    VlanCreate,
    VxlanCreate,
)

_SECONDARY: Final = 0x01  # IFA_F_SECONDARY
_ANY: Final = frozenset(range(1, 256))


def compile_batch(batch: Batch) -> list[Step]:
    """Check every operation that has no error yet and give the batch all requests, in order."""
    creates_first = sorted(enumerate(batch.operations), key=lambda pair: _depth(pair[1], batch.operations))
    for position, operation in creates_first:
        if batch.errors[position] is None:
            batch.attempt(position, operation, partial(_compile, batch))
    _hold_back(batch)
    batch.steps = [step for step in batch.steps if batch.errors[step.position] is None]
    batch.steps.sort(key=lambda step: step.phase)
    return batch.steps


def _depth(operation: LinkOp, operations: Sequence[LinkOp]) -> int:
    """What is created first: bridges, then links by how many new ones they stand on, then all else."""
    if isinstance(operation, BridgeCreate):
        return 0
    if not isinstance(operation, StackedCreate):
        return len(operations) + 1
    below = {item.name: item.parent for item in operations if isinstance(item, StackedCreate)}
    depth, parent = 1, operation.parent
    while parent in below and depth < len(operations):
        depth, parent = depth + 1, below[parent]
    return depth


def _hold_back(batch: Batch) -> None:
    """Old goes only after new: what failed to be added somewhere else is not removed here."""
    for position, operation in enumerate(batch.operations):
        if batch.errors[position] is None:
            batch.errors[position] = held_by_failed_addition(operation, batch.operations, batch.errors)


def _compile(batch: Batch, position: int, operation: LinkOp) -> None:
    match operation:
        case BridgeCreate():
            _create_bridge(batch, position, operation)
        case VlanCreate() | VxlanCreate():
            _create_stacked(batch, position, operation)
        case TapCreate() | TapOwner():
            pass  # by ioctl, before the batch
        case LinkSet():
            _set_link(batch, position, operation)
        case LinkDelete():
            index = batch.target(operation.name, operation.index)
            check_removable(operation, batch.before)
            if not batch.is_bridge_delete(operation):
                batch.add(Phase.DELETE, position, encode.delete_link(index), index)
                batch.expect(position, index, "absent", True)
        case AddressAdd(cidr=cidr):
            index = batch.target(operation.name, operation.index)
            batch.add(Phase.ADDRESS_ADD, position, encode.add_address(index, cidr), index)
            batch.expect_presence(position, index, Presence(True, cidr))
        case AddressDelete():
            _delete_address(batch, position, operation)
        case RouteAdd():
            _add_route(batch, position, operation)
        case AddressesMove():
            compile_move(batch, position, operation)
        case AddressesRestore():
            compile_restore(batch, position, operation, boot_seconds())
        case RouteDelete():
            _delete_route(batch, position, operation)
        case _:
            raise Refused(f"cannot {operation.describe()}: not an operation on links", hint="report this")


def _create_bridge(batch: Batch, position: int, operation: BridgeCreate) -> None:
    index, mtu = batch.index_of(operation.name), operation.mtu
    # An MTU in the create message is overwritten by the first port's; one that is *changed* to stays, so it is
    # changed before there is a port that may bring the very same one.
    provisional = None if mtu is None else mtu - 1 if mtu > 68 else mtu + 1
    request = encode.create_bridge(index, operation.name, operation.mac, provisional)
    batch.add(Phase.CREATE, position, request, index)
    batch.add(Phase.CREATE, position, encode.set_alias(index, operation.alias), index)
    batch.expect(position, index, "alias", operation.alias)
    if mtu is not None:
        batch.add(Phase.MARK, position, encode.set_mtu(index, mtu), index)
        batch.expect(position, index, "mtu", mtu)
    if operation.mac:
        batch.expect(position, index, "mac", operation.mac.lower())
    _set_bridge(batch, position, index, operation.settings)


def _create_stacked(batch: Batch, position: int, operation: StackedCreate) -> None:
    index = batch.index_of(operation.name)
    parent = batch.index_of(operation.parent) if operation.parent else 0
    if isinstance(operation, VlanCreate):
        stacked = Stacked(operation.id)
        request = encode.create_vlan(index, operation, parent)
    else:
        stacked = Stacked(operation.id, operation.local, operation.remote, operation.port)
        request = encode.create_vxlan(index, operation, parent)
    batch.add(Phase.CREATE, position, request, index, parent)
    batch.add(Phase.CREATE, position, encode.set_alias(index, operation.alias), index)
    batch.expect(position, index, "alias", operation.alias)
    batch.expect(position, index, "stacked", stacked)
    batch.expect(position, index, "parent", operation.parent)
    if operation.mtu is not None:
        batch.add(Phase.ATTRIBUTE, position, encode.set_mtu(index, operation.mtu), index)
        batch.expect(position, index, "mtu", operation.mtu)


def _set_bridge(batch: Batch, position: int, index: int, settings: Numbers) -> None:
    # A message each: in one message the kernel judges the delay by the old STP state, and the first error ends it.
    for name, number in settings:
        batch.add(Phase.ATTRIBUTE, position, encode.set_bridge(index, name, number), index)
        batch.expect(position, index, f"bridge {name}", number)


def _set_link(batch: Batch, position: int, operation: LinkSet) -> None:
    index = batch.target(operation.name, operation.index)
    if operation.alias is not None:
        batch.add(Phase.MARK, position, encode.set_alias(index, operation.alias), index)
        batch.expect(position, index, "alias", operation.alias)
    if operation.port_mark is not None:
        _set_port_mark(batch, position, index, operation.port_mark)
    if operation.master is not None:
        _set_master(batch, position, index, operation)
    if operation.mtu is not None:
        batch.add(Phase.ATTRIBUTE, position, encode.set_mtu(index, operation.mtu), index)
        batch.expect(position, index, "mtu", operation.mtu)
    if operation.mac is not None:
        batch.add(Phase.ATTRIBUTE, position, encode.set_mac(index, operation.mac), index)
        batch.expect(position, index, "mac", operation.mac.lower())
    _set_bridge(batch, position, index, operation.settings)
    for name, number in operation.port_settings:
        batch.add(Phase.ATTRIBUTE, position, encode.set_port(index, name, number), index)
        batch.expect(position, index, f"port {name}", number)
    if operation.rename is not None:
        batch.add(Phase.MARK, position, encode.rename(index, operation.rename), index)
        batch.expect(position, index, "name", operation.rename)
    if operation.up is not None:
        link = batch.before.by_index.get(index)
        bridge = operation.name in batch.bridges or (link is not None and link.kind == "bridge")
        phase = Phase.BRIDGE_UP if bridge else Phase.PORT_UP
        batch.add(phase, position, encode.set_up(index, operation.up), index)
        batch.expect(position, index, "up", operation.up)


def _set_port_mark(batch: Batch, position: int, index: int, port_mark: str) -> None:
    """Say by an altname that this port is kvmd's doing; "" takes every such altname off."""
    link = batch.before.by_index.get(index)
    present = link.alternative_names if link else ()
    for name in present:
        if name.startswith(PORT_MARK_PREFIX) and name != port_mark:
            batch.add(Phase.MARK, position, encode.remove_altname(index, name), index, tolerated=GONE)
    if port_mark and port_mark not in present:
        batch.add(Phase.MARK, position, encode.add_altname(index, port_mark), index)
    batch.expect(position, index, "port_mark", port_mark)


def _set_master(batch: Batch, position: int, index: int, operation: LinkSet) -> None:
    if operation.master:
        master = batch.index_of(operation.master)
        check_master(operation, batch.before.by_index.get(index), master, index in batch.released)
        batch.add(Phase.ENSLAVE, position, encode.set_master(index, master), index, master)
    else:
        batch.released.add(index)
        batch.add(Phase.RELEASE, position, encode.set_master(index, 0), index)
    batch.expect(position, index, "master", operation.master)


def _delete_address(batch: Batch, position: int, operation: AddressDelete) -> None:
    index = batch.target(operation.name, operation.index)
    batch.before.must_be_complete(operation)
    phase, cidr = Phase.ADDRESS_DELETE, operation.cidr
    batch.add(phase, position, encode.delete_address(index, cidr), index, tolerated=GONE)
    batch.expect_presence(position, index, Presence(False, cidr))
    lost = _lost_with(batch, index, operation)
    for other in lost:
        body = batch.before.address_body(index, other)
        request = encode.replay_address(body) if body else encode.add_address(index, other)
        batch.add(phase, position, request, index)
        batch.expect_presence(position, index, Presence(True, other))
    for body in batch.before.static_routes(index) if lost else ():
        # While no address was left the kernel flushed the routes of the link.
        batch.add(phase, position, add_route(body), index, tolerated=_ANY)


def _lost_with(batch: Batch, index: int, operation: AddressDelete) -> list[str]:
    """The addresses to keep that go with a primary, since promote_secondaries is mostly off.

    Of IPv6 what is to be there with another prefix length, too: the kernel takes that only once the first has gone.
    """
    body = batch.before.address_body(index, operation.cidr)
    if body is None or body[2] & _SECONDARY:
        return []
    added = [
        other.cidr for other in batch.operations if isinstance(other, AddressAdd) and other.name == operation.name
    ]
    gone = operation.cidr
    wanted = dict.fromkeys((*operation.keep, *added))
    return [cidr for cidr in wanted if same_subnet(gone, cidr) or same_address(gone, cidr)]


def _add_route(batch: Batch, position: int, operation: RouteAdd) -> None:
    index = batch.target(operation.name, operation.index)
    to, via, metric = operation.to, operation.via, operation.metric
    replaces = check_way(operation, index, batch.before, batch.operations)
    batch.add(Phase.ROUTE_ADD, position, encode.add_route(index, to, via, metric, replaces), index)
    batch.expect_presence(position, index, Presence(True, "", to, via, metric))


def _delete_route(batch: Batch, position: int, operation: RouteDelete) -> None:
    index = batch.target(operation.name, operation.index)
    batch.before.must_be_complete(operation)
    to, via, metric = operation.to, operation.via, operation.metric
    link = batch.before.by_index.get(index)
    if link is not None and find_route(link, to, via, metric):  # else the kernel would take a similar one
        batch.add(Phase.ROUTE_DELETE, position, encode.delete_route(index, to, via, metric), index, tolerated=GONE)
    batch.expect_presence(position, index, Presence(False, "", to, via, metric))
