"""Facts about links of the kernel, and about who else cares for them. Part of observed."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd.api.bridge_settings import Numbers
from kvmd.api.mark import Mark


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address on a link: CIDR, scope and whether it is permanent (not DHCP or RA)."""

    cidr: str
    scope: str = "global"  # global | link | host | site
    permanent: bool = True
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table through one link; *to* is a CIDR or ``default``."""

    to: str
    via: str = ""
    metric: int = 0
    protocol: str = ""  # kernel | boot | static | …


@dataclass(frozen=True, slots=True)
class BridgePort:
    """What a link is as a port of a bridge."""

    state: str  # disabled | listening | learning | forwarding | blocking
    settings: Numbers = ()  # in the kernel's names and units


@dataclass(frozen=True, slots=True)
class Stacked:
    """What a VLAN or VXLAN is: its number and, of a VXLAN, where it leads to."""

    id: int
    local: str = ""
    remote: str = ""  # another host's address or a multicast group
    port: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the kernel."""

    name: str
    index: int
    kind: str  # bridge | tun | veth | vlan | vxlan | macvtap | "" for a physical NIC
    mac: str = ""
    mtu: int = 1500
    up: bool = False  # administratively
    carrier: bool = False
    operstate: str = "down"
    master: str = ""  # name of the bridge that it is a port of
    master_index: int = 0
    alias: str = ""
    alternative_names: tuple[str, ...] = ()
    mark: Mark | None = None
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    port: BridgePort | None = None
    # of a bridge: what is not there the kernel lacks, or has from the root of the spanning tree for now
    settings: Numbers = ()  # in the kernel's names and units
    root: str = ""  # the bridge that is the root of its spanning tree, where it is not this one
    # of a TAP or TUN
    tun_mode: str = ""  # tap | tun
    persistent: bool = False
    multi_queue: bool = False
    vnet_hdr: bool = False  # follows whoever attached last
    owner: int | None = None
    group: int | None = None
    # of a link that stands on another one
    parent: str = ""  # its name; "" too where it is in another namespace
    stacked: Stacked | None = None

    @property
    def stp(self) -> bool:
        """True for a bridge that takes part in the spanning tree."""
        return dict(self.settings).get("stp_state", 0) != 0


@dataclass(frozen=True, slots=True)
class Ports:
    """Who is, or should be, on one bridge or other link.

    *taps* are pairs of TAP and domain that live guests say they have there; *members* are the links whose
    master it is now; *above* are those whose parent it is (macvtap, VLAN, VXLAN), which the kernel deletes with it,
    and the domain that each belongs to, or "".
    """

    bridge: str
    taps: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()
    above: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LinkManager:
    """Who else configures a link: *by* is its name, *hint* what to write where so that it lets go."""

    name: str
    by: str
    hint: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A change of the host's own network that is not confirmed, or that was rolled back and why."""

    object: str  # Kind/name
    spec_hash: str
    state: str  # armed | rolled back
    why: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved to a bridge and proven there, since this boot: each with the kernel's message of it."""

    object: str  # Kind/name
    addresses: tuple[tuple[Address, bytes], ...]
    routes: tuple[tuple[Route | None, bytes], ...]  # None: of another table than the main one
    taken_at: float  # seconds since the boot
