"""Which user-mode networks this host can give guests: asked of QEMU, libvirt and the file system, not guessed."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from typing import Any

import libvirt

from kvmd.host.preflight.tools import SEARCH_PATH, output_of

# Only turned into a command line, never defined. Debian 12's libvirt 9.0 refuses the backend (code 27), with passt
# installed or not; a newer one that was built without it does, too.
_PROBE = """<domain type='qemu'><name>kvmd-probe</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type>hvm</type></os><devices><interface type='user'><backend type='passt'/></interface></devices></domain>"""


def user_backends(connection: Any, capabilities: ElementTree.Element) -> tuple[str, ...]:
    """``slirp`` where QEMU was built with it, ``passt`` where libvirt starts it and it is installed."""
    emulator = capabilities.findtext("guest/arch/emulator") or ""
    listed = output_of(emulator, "-netdev", "help") if emulator else None
    # A QEMU that did not answer is not one that was built without.
    without = listed is not None and re.search(r"(?m)^tap$", listed) and not re.search(r"(?m)^user$", listed)
    return (*([] if without else ["slirp"]), *(["passt"] if _starts_passt(connection) else []))


def _starts_passt(connection: Any) -> bool:
    if shutil.which("passt", path=SEARCH_PATH) is None:
        return False
    try:
        connection.domainXMLToNative("qemu-argv", _PROBE, 0)
    except libvirt.libvirtError as error:
        return error.get_error_code() not in (libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
    return True
