"""Types of leaves: sizes, MAC addresses, IP networks, names on the host."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, WithJsonSchema

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/ (the part that sizes use)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"([0-9]+)(\.[0-9]+)?(k|[KMGT]i|[MGT])?")
# https://www.w3.org/TR/xml/#charsets
_NO_CHARACTERS = "\ud800-\udfff\ufffe\uffff"
_NOT_IN_XML = re.compile(f"[\0-\x08\x0b-\x1f{_NO_CHARACTERS}]")
# What libvirt puts into attributes it also writes into the configuration of others, where a line end begins an order.
_NOT_IN_A_LINE = re.compile(f"[\0-\x1f\x7f-\x9f\u2028\u2029{_NO_CHARACTERS}]")
# RFC 1123 section 2.1, as Kubernetes applies it to names.
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MAC = re.compile(r"([0-9a-fA-F]{1,2}:){5}[0-9a-fA-F]{1,2}")

MEBIBYTE = 2**20


def parse_quantity(value: Any) -> int:
    """Read ``4Gi``, ``512Mi``, ``1G`` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write a number with a unit, such as 512Mi or 4Gi")
    number = float(match[1] + match[2]) if match[2] else int(match[1])
    return int(number * _UNITS[match[3] or ""])


def format_quantity(size: int) -> str:
    """Write bytes in the largest binary unit that divides them."""
    for unit, factor in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _whole_mebibytes(size: int) -> int:
    if size % MEBIBYTE or size <= 0:
        raise ValueError(
            f"{size} bytes is not a whole number of MiB; libvirt rounds memory up to 1 MiB, so write e.g. "
            f"{max(1, -(-size // MEBIBYTE))}Mi"
        )
    return size


def duration_seconds(text: str) -> float:
    """Read ``90s``, ``15m`` or ``2h``."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def normalise_mac(value: str) -> str:
    """Lower-case, zero-padded; a multicast address is refused because no NIC may have one."""
    if not _MAC.fullmatch(value):
        raise ValueError(f"'{value}' is not a MAC address; write six bytes, such as 52:54:00:12:34:56")
    octets = [int(octet, 16) for octet in value.split(":")]
    if octets[0] & 1:
        raise ValueError(f"'{value}' is a multicast address; the first byte of a NIC's MAC must be even")
    return ":".join(f"{octet:02x}" for octet in octets)


def _address(value: str) -> str:
    return str(ipaddress.ip_address(_without_zone(value)))


def _ipv4(value: str) -> str:
    return str(ipaddress.IPv4Address(value))


def _without_zone(value: str) -> str:
    if "%" in value:
        raise ValueError(f"'{value}' names a zone; leave out the part from '%' on")
    return value


def _interface(value: str) -> str:
    if "/" not in value:
        raise ValueError(f"'{value}' has no prefix length; write it as {value}/24")
    found = ipaddress.ip_interface(_without_zone(value))
    if found.ip.is_unspecified or found.ip.is_multicast:
        raise ValueError(f"'{value}' is no address that a link can have")
    return str(found)


def _one_prefix_each(values: tuple[str, ...]) -> tuple[str, ...]:
    """A link has an address of IPv6 once: a second prefix length is acknowledged and ignored (one of IPv4 is not)."""
    found = {value.partition("/")[0]: value for value in values if ":" in value}
    for value in values:
        if (other := found.get(value.partition("/")[0], value)) != value:
            raise ValueError(f"{value} and {other} are the same address; a link has it with one prefix length")
    return values


def _network(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise ValueError(f"'{value}' is not an absolute path without '..'")
    # One file, one spelling: claims and policy compare paths.
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def _printable(value: str) -> str:
    if _NOT_IN_XML.search(value):
        raise ValueError("control characters cannot be written to libvirt")
    return value


def _one_line(value: str) -> str:
    if _NOT_IN_A_LINE.search(value):
        raise ValueError(f"{value!r} must be one line without control characters")
    return value


def plain_for_dnsmasq(value: str) -> str:
    """A word that dnsmasq takes as it stands: libvirt writes it into a line of dnsmasq's configuration unquoted."""
    if "," in value:
        raise ValueError(f"{value!r} has a comma, at which dnsmasq would begin another value")
    return unquoted_for_dnsmasq(value)


def unquoted_for_dnsmasq(value: str) -> str:
    """The same, but commas may stand in it."""
    if re.search(r"[\"\\]|(^|\s)#|^\s|\s$", value):
        raise ValueError(
            f"{value!r} would not reach dnsmasq as it stands: no quotes, no backslash, no '#' after a blank, no "
            "blank at either end"
        )
    return value


_RESERVED_LINKS = ("vnet", "vif", "macvtap", "macvlan")


def link_name(value: str) -> str:
    """A name that the kernel takes and libvirt leaves alone (dev_valid_name() and virnetdev.c's prefixes)."""
    if not 0 < len(value.encode()) <= 15 or value in (".", "..") or re.search(r"[/:%\s\x00-\x1f]", value):
        # The kernel takes '%d' for "the next free number".
        raise ValueError(f"'{value}' is not a link name: 1 to 15 bytes, without '/', ':', '%' and blanks")
    if value.startswith(_RESERVED_LINKS):
        raise ValueError(f"'{value}' begins with a prefix that libvirt takes for itself {_RESERVED_LINKS}")
    return value


def domain_name(value: str) -> str:
    """A name that libvirt takes for a domain or network (virXMLCheckIllegalChars: no newline, no '/')."""
    if not value or len(value) > 128 or re.search(r"[/\x00-\x1f]", value) or value.strip() != value:
        raise ValueError(f"'{value}' is not a libvirt name: 1 to 128 characters, without '/' and line ends")
    return value


def _device_name(value: str) -> str:
    if not DNS_LABEL.fullmatch(value):
        raise ValueError(f"'{value}' is not a DNS-1123 label (lower-case letters, digits and '-')")
    return value


Integer = Annotated[int, Strict()]
Boolean = Annotated[bool, Strict()]
AccountNumber = Annotated[int, Strict(), Field(ge=0, le=2**32 - 2)]  # the kernel keeps the last one for "nobody"
Text = Annotated[str, AfterValidator(_one_line)]
Lines = Annotated[str, AfterValidator(_printable)]
DnsmasqWord = Annotated[Text, AfterValidator(plain_for_dnsmasq)]
DnsmasqText = Annotated[Text, AfterValidator(unquoted_for_dnsmasq)]
_SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(k|[KMGT]i|[MGT])?$"
_SIZE_SCHEMA = {"anyOf": [{"type": "string", "pattern": _SIZE_PATTERN}, {"type": "integer"}]}
Size = Annotated[int, BeforeValidator(parse_quantity), WithJsonSchema(_SIZE_SCHEMA)]
Memory = Annotated[
    int, BeforeValidator(parse_quantity), AfterValidator(_whole_mebibytes), WithJsonSchema(_SIZE_SCHEMA)
]
Duration = Annotated[
    str,
    StringConstraints(pattern=r"^[1-9][0-9]{0,4}(s|m|h)$"),
    WithJsonSchema({"type": "string", "pattern": r"^[1-9][0-9]{0,4}(s|m|h)$"}),
]
Mac = Annotated[str, AfterValidator(normalise_mac)]
Address = Annotated[str, AfterValidator(_address)]
Ipv4Address = Annotated[str, AfterValidator(_ipv4)]
InterfaceAddress = Annotated[str, AfterValidator(_interface)]
InterfaceAddresses = Annotated[tuple[InterfaceAddress, ...], AfterValidator(_one_prefix_each)]
IpNetwork = Annotated[str, AfterValidator(_network)]
HostPath = Annotated[Text, AfterValidator(_absolute)]
LinkName = Annotated[Text, AfterValidator(link_name)]
DomainName = Annotated[Text, AfterValidator(domain_name)]
DeviceName = Annotated[str, AfterValidator(_device_name)]
