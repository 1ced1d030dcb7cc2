"""Giving a link back what it once had, within a batch: the kernel's own messages of then, readdressed."""

from __future__ import annotations

from kvmd.host.checkpoint.move import (
    NOTHING_NEW,
    add_address,
    add_route,
    aged,
    in_order_of_adding,
    lives,
    readdressed,
    route_through,
)
from kvmd.host.links.batch import Batch, Phase
from kvmd.host.links.checks import Presence
from kvmd.host.links.facts import parse_address, parse_route
from kvmd.ops import AddressesRestore


def compile_restore(batch: Batch, position: int, operation: AddressesRestore, now: float) -> None:
    """Give the batch what a link once had; what is there already stays as it is."""
    target, age = batch.target(operation.name, operation.index), now - operation.taken_at
    names = (operation.name, operation.name)
    for body in in_order_of_adding([body for body in operation.addresses if lives(body, age)]):
        for request in add_address(readdressed(aged(body, age), target, names)):
            batch.add(Phase.ADDRESS_ADD, position, request, target)
        if parsed := parse_address(body):
            batch.expect_presence(position, target, Presence(True, parsed[1].cidr))
    for body in operation.routes:
        request = add_route(route_through(body, target))
        batch.add(Phase.ROUTE_ADD, position, request, target, tolerated=NOTHING_NEW)
        if route := parse_route(body):
            batch.expect_presence(position, target, Presence(True, "", route[1].to, route[1].via, route[1].metric))
