"""Acts on libvirt: one ``match`` over the operations. Success of a call is not success: the next look decides."""

from __future__ import annotations

import contextlib
import socket
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from kvmd import ops
from kvmd.api.mark import XML_NAMESPACE, XML_PREFIX
from kvmd.errors import KvmdError, Refused, Retry, Stale
from kvmd.host.forwarding.repair import repair
from kvmd.host.forwarding.rule_hold import held, release
from kvmd.host.libvirtd import hot_plug, power_button, snapshot_acts, unplug
from kvmd.host.libvirtd.connection import (
    ABSENT,
    DEFINITION,
    SECURE,
    Recorder,
    connect,
    counted,
    is_lost,
    translate,
)
from kvmd.host.libvirtd.disk_keys import lent
from kvmd.host.libvirtd.leftovers import end_dnsmasq
from kvmd.host.libvirtd.passwords import hide_in, reveal_in, words_in
from kvmd.host.secrets import password_in
from kvmd.host.storage.reach import explain, says_of_a_file, user_of, walk
from kvmd.settings import Libvirt

CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_NOT_VALID = libvirt.VIR_ERR_OPERATION_INVALID

_SECTIONS = {
    "dhcp-host": libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST,
    "dhcp-range": libvirt.VIR_NETWORK_SECTION_IP_DHCP_RANGE,
    "dns-host": libvirt.VIR_NETWORK_SECTION_DNS_HOST,
    "dns-txt": libvirt.VIR_NETWORK_SECTION_DNS_TXT,
    "dns-srv": libvirt.VIR_NETWORK_SECTION_DNS_SRV,
    "portgroup": libvirt.VIR_NETWORK_SECTION_PORTGROUP,
    "forward-interface": libvirt.VIR_NETWORK_SECTION_FORWARD_INTERFACE,
}
# The sections with which libvirt writes the firewall rules of the network anew (networkUpdate in bridge_driver.c).
_REWRITES_RULES = ("dhcp-host", "dhcp-range", "forward-interface")
_COMMANDS = {
    "add": libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST,
    "delete": libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE,
    "modify": libvirt.VIR_NETWORK_UPDATE_COMMAND_MODIFY,
}
_ON_REBOOT = {
    "destroy": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY,
    "restart": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART,
}
_OPENS = (ops.DomainStart, ops.DomainAttach, ops.DomainUpdateDevice)  # with them QEMU opens files
Result = TypeVar("Result")


class LibvirtActs:
    """One worker's hand on libvirt, with a connection of its own, opened when first needed."""

    def __init__(self, settings: Libvirt, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._connection: Any = None
        self._capabilities: tuple[Any, str] = (None, "")

    def execute(self, operation: ops.Op) -> None:
        """Carry out one operation; raises a KvmdError that says what to do next."""
        try:
            self.call(operation, lambda _connection: self._match(operation))
        except libvirt.libvirtError as error:
            if error.get_error_code() in ABSENT and isinstance(operation, ops.DomainUndefine | ops.NetworkUndefine):
                return
            raise self._explained(operation, error) or translate(error, operation.describe()) from None

    def _explained(self, operation: ops.Op, error: libvirt.libvirtError) -> KvmdError | None:
        """The cure, where a file of the guest or its own doing keeps QEMU from starting or taking a device."""
        if "waiting to open tray" in str(error):
            hint = "unmount or eject the medium in the guest; it is tried again by itself"
            return Retry(f"{operation.describe()}: the guest keeps the tray locked: {error}", hint=hint)
        if not isinstance(operation, _OPENS) or not says_of_a_file(str(error)) or self._connection is None:
            return None
        with contextlib.suppress(libvirt.libvirtError):
            domain = self._connection.lookupByUUIDString(operation.uuid)
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            text, hint = explain(str(error), xml, self._host_words())
            return Retry(f"{operation.describe()}: {text}", hint=hint)
        return None

    def _host_words(self) -> str:
        """The capabilities of the host; read once a connection."""
        if self._capabilities[0] is not self._connection:
            self._capabilities = (self._connection, self._connection.getCapabilities())
        return self._capabilities[1]

    def call(self, operation: ops.Op, act: Callable[[Any], Result]) -> Result:
        """Do something over the connection, counted as a call of that operation. Raises libvirtError."""
        if self._connection is None or not self._connection.isAlive():
            self._connection = None
            self._connection = connect(self._settings)
        try:
            with counted(self._recorder, type(operation).__name__, "write"):
                return act(self._connection)
        except libvirt.libvirtError as error:
            if is_lost(error):
                self._connection = None
            raise

    def another(self) -> LibvirtActs:
        """The hand of another thread."""
        return LibvirtActs(self._settings, self._recorder)

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _match(self, operation: ops.Op) -> None:
        match operation:
            case ops.DomainDefine():
                self._define(operation)
            case ops.NetworkDefine(xml=xml):
                if operation.base:
                    _hold_to(operation, self._network(operation.uuid).XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
                self._connection.networkDefineXML(xml)
            case ops.NetworkStart(uuid=uuid):
                _start(self._network(uuid))
            case ops.NetworkRestart(uuid=uuid):
                network = self._network(uuid)
                _unless_done(network.destroy)
                _start(network)
            case ops.NetworkStop(uuid=uuid):
                network = self._network(uuid)
                _unless_done(network.destroy)
                with contextlib.suppress(libvirt.libvirtError):  # a network without a bridge
                    release(network.bridgeName())
            case ops.NetworkUndefine(uuid=uuid):
                network = self._network(uuid)
                _clear_away(network)
                network.undefine()
            case ops.NetworkSetAutostart(uuid=uuid, enabled=enabled):
                self._network(uuid).setAutostart(int(enabled))
            case ops.NetworkRepair(uuid=uuid):
                repair(operation, self._network(uuid))
            case ops.NetworkUpdate():
                self._update_network(operation)
            case _:
                self._match_domain(operation)

    def _match_domain(self, operation: ops.Op) -> None:
        domain = self._connection.lookupByUUIDString(getattr(operation, "uuid", ""))
        match operation:
            case ops.DomainStart():
                xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
                walk(operation.describe(), xml, user_of(xml, self._host_words()))
                with lent(self._connection, xml):
                    _unless_done(domain.create)
            case ops.DomainResume():
                domain.resume()
            case ops.DomainShutdown(methods=methods):
                power_button.ask(domain, methods)
            case ops.DomainDestroy():
                _unless_done(domain.destroy)
            case ops.DomainUndefine(nvram=nvram):
                _undefine(domain, nvram)
            case ops.DomainSetMark(mark=mark, live=live):
                text = None if mark is None else mark.as_metadata()
                flags = CONFIG | (LIVE if live else 0)
                domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, XML_PREFIX, XML_NAMESPACE, flags)
            case ops.DomainSetAutostart(enabled=enabled):
                domain.setAutostart(int(enabled))
            case ops.SnapshotOp():
                snapshot_acts.act(domain, operation)
            case _:
                self._match_live(domain, operation)

    def _match_live(self, domain: Any, operation: ops.Op) -> None:
        """Changes of a running guest."""
        match operation:
            case ops.DomainSetVcpus(count=count):
                domain.setVcpusFlags(count, LIVE)
            case ops.DomainRequestMemory(xml=xml):
                domain.updateDeviceFlags(xml, LIVE)
            case ops.DomainSetMemory(size=size):
                domain.setMemoryFlags(size // 1024, LIVE)
            case ops.DomainSetIoTune(target=target, limits=limits):
                domain.setBlockIoTune(target, dict(limits), LIVE)
            case ops.DomainSetIoThreads(add=add, remove=remove):
                for number in add:
                    domain.addIOThread(number, LIVE)
                for number in remove:
                    domain.delIOThread(number, LIVE)
            case ops.DomainSetBalloonPeriod(seconds=seconds):
                domain.setMemoryStatsPeriod(seconds, LIVE)
            case ops.DomainAttach(alias=alias):
                hot_plug.attach(domain, alias)
            case ops.DomainDetach():
                unplug.detach(domain, operation)
            case ops.DomainUpdateDevice(xml=xml, secrets=secrets):
                with lent(self._connection, xml):
                    domain.updateDeviceFlags(_with_passwords(xml, secrets, domain), LIVE)
            case ops.DomainSetOnReboot(action=action):
                domain.setLifecycleAction(libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, _ON_REBOOT[action], LIVE)
            case _:
                raise Refused(f"no way to {operation.describe()} is known", hint="please report this as a bug")

    def _network(self, uuid: str) -> Any:
        return self._connection.networkLookupByUUIDString(uuid)

    def _define(self, operation: ops.DomainDefine) -> None:
        """Define; a name that meanwhile belongs to somebody else is refused by libvirt, since the UUID is sent."""
        xml = operation.xml
        domain = None if operation.creates else self._connection.lookupByUUIDString(operation.uuid)
        if operation.base and domain is not None:
            _hold_to(operation, hide_in(domain.XMLDesc(DEFINITION)))
        if "passwd=" in xml:
            xml = _with_passwords(xml, operation.secrets, domain)
        self._connection.defineXML(xml)

    def _update_network(self, operation: ops.NetworkUpdate) -> None:
        flags = (LIVE if operation.live else 0) | (CONFIG if operation.config else 0)
        section, command = _SECTIONS[operation.section], _COMMANDS[operation.command]
        network = self._network(operation.uuid)
        rewrites = operation.live and operation.section in _REWRITES_RULES
        with held(network.bridgeName()) if rewrites else contextlib.nullcontext():
            network.update(command, section, operation.parent_index, operation.xml, flags)


def _hold_to(operation: ops.DomainDefine | ops.NetworkDefine, now: str) -> None:
    """Raise Stale where the definition is not the one that was planned with.

    libvirt (9.0) tells nobody of what ``virsh attach-disk --config`` or ``virsh net-update --config`` has written
    since, and it would be lost.
    """
    if now != operation.base:
        raise Stale(f"cannot {operation.describe()}: somebody has changed it meanwhile", hint="kvmd plans again")


def _start(network: Any) -> None:
    """Start; what a libvirtd that died left running would hold the address for ever."""
    _keep_strangers_bridge(network)
    try:
        _unless_done(network.create)
    except libvirt.libvirtError as error:
        if "dnsmasq" not in str(error) or not _clear_away(network):
            raise
        _unless_done(network.create)


def _keep_strangers_bridge(network: Any) -> None:
    """Raise Stale where the bridge's name is taken since the plan: libvirt 11 deletes that link when it fails."""
    with contextlib.suppress(libvirt.libvirtError, OSError):
        bridge, mode = network.bridgeName(), ElementTree.fromstring(network.XMLDesc()).find("forward[@mode='bridge']")
        if mode is None and not network.isActive() and socket.if_nametoindex(bridge):
            raise Stale(f"network {network.name()}: a link {bridge} has appeared")


def _clear_away(network: Any) -> bool:
    """End a dnsmasq that runs for a network which is not active; True where one did."""
    try:
        return not network.isActive() and end_dnsmasq(network.name(), network.bridgeName())
    except libvirt.libvirtError:  # a network without a bridge
        return False


def _unless_done(act: Any) -> None:
    """Call; "it is so already" is success (a destroy was seen to fail with 55 having done its job)."""
    try:
        act()
    except libvirt.libvirtError as error:
        if error.get_error_code() != _NOT_VALID or not _says_already(str(error)):
            raise


def _says_already(text: str) -> bool:
    return any(part in text for part in ("already running", "already active", "is not running", "is not active"))


def _with_passwords(xml: str, secrets: tuple[str, ...], domain: Any) -> str:
    """The XML with each password in the place of its digest: from a secret, else the one that is there already."""
    if "passwd=" not in xml:
        return xml
    words = [word for name in secrets if (word := password_in(name)) is not None]
    if domain is not None:
        words += words_in(domain.XMLDesc(DEFINITION))
        words += words_in(domain.XMLDesc(SECURE))
    return reveal_in(xml, words)


def _undefine(domain: Any, nvram: bool) -> None:
    """Remove the definition; TPM state stays, as disks do, and NVRAM unless *nvram* asks; not with snapshots."""
    if domain.isActive():
        raise Stale(f"domain {domain.name()} is running again; it is not undefined")
    flags = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM if nvram else libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    flags |= getattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)
    flags |= libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    domain.undefineFlags(flags | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
