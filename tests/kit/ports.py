"""Ports for programs that cannot report theirs."""

from __future__ import annotations

import socket

from bench.relays import free_port


def free_ports(n: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Return different ports that are free at the moment."""
    ports: set[int] = set()
    while len(ports) < n:
        ports.add(free_port(kind))
    return list(ports)


def is_served(port: int) -> bool:
    """Return whether a connection to a loopback port is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return False
    return True
