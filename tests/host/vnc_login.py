"""Log in to a VNC server with a password, as RFC 6143 says (7.1 and 7.2.2); prints ``in`` or ``out``."""

from __future__ import annotations

import socket
import subprocess
import sys

VNC_AUTHENTICATION = 2


def response(challenge: bytes, password: str) -> bytes:
    """The challenge enciphered with DES; the key is the password with the bits of each byte turned round."""
    word = password.encode()[:8].ljust(8, b"\0")
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in word)
    # Three times the same key is single DES, which newer builds of openssl no longer have.
    command = ["openssl", "enc", "-des-ede3", "-nopad", "-K", (key * 3).hex()]
    return subprocess.run(command, input=challenge, capture_output=True, check=True).stdout


def login(host: str, port: int, password: str) -> bool:
    """True where the server lets us in; nothing is let in without a password."""
    with socket.create_connection((host, port), 5) as connection:
        stream = connection.makefile("rwb", buffering=0)
        stream.write(stream.read(12))
        types = stream.read(stream.read(1)[0])
        if VNC_AUTHENTICATION not in types or len(types) != 1:
            return False
        stream.write(bytes([VNC_AUTHENTICATION]))
        stream.write(response(stream.read(16), password))
        return stream.read(4) == b"\0\0\0\0"


if __name__ == "__main__":
    print("in" if login(sys.argv[1], int(sys.argv[2]), sys.argv[3]) else "out")
