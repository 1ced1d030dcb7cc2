"""TLS before a server in the clear: ``tls_server.py FOLDER PORT BEHIND CERTIFICATE KEY`` (the folder is not used)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading

PORT, BEHIND = int(sys.argv[2]), int(sys.argv[3])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[4], sys.argv[5])


def copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def serve(plain: socket.socket) -> None:
    """One connection."""
    with contextlib.suppress(OSError):
        client = context.wrap_socket(plain, server_side=True)
        server = socket.create_connection(("127.0.0.1", BEHIND))
        threading.Thread(target=copy, args=(server, client), daemon=True).start()
        copy(client, server)


listening = socket.create_server(("127.0.0.1", PORT))
while True:
    connection, _ = listening.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
