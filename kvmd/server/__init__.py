"""HTTP: metrics, health and a read-only API on TCP; the same and acts on the UNIX socket."""

from __future__ import annotations

from kvmd.server.listeners import Server

__all__ = ["Server"]
