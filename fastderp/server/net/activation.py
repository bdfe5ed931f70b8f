"""Takes the sockets that systemd has opened for the relay (socket activation, sd_listen_fds).

The names of `FileDescriptorName=` choose the use of a socket; without one of them its type and its
port do.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from fastderp.errors import ListenError
from fastderp.util.reasons import errno_text

# The first inherited descriptor: those before are the standard streams.
FIRST = 3
DERP, HTTP, STUN, DEBUG = "derp", "http", "stun", "debug"


class Inherited:
    """The inherited sockets, by their use."""

    def __init__(self) -> None:
        self.derp: list[socket.socket] = []
        self.http: list[socket.socket] = []
        self.stun: list[socket.socket] = []
        self.debug: list[socket.socket] = []


def inherited_sockets(environment: MutableMapping[str, str], http_port: int | None) -> Inherited:
    """Return the sockets that $LISTEN_FDS hands over to this process; remove the variables.

    http_port: TCP sockets of this port serve plain HTTP, others DERP.

    Raises ListenError for a descriptor that does not fit its name.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    found = Inherited()
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return found
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        sock = _take(FIRST + index, name)
        used_for: list[socket.socket] = getattr(found, _use(sock, name, http_port))
        used_for.append(sock)
    return found


def _take(descriptor: int, name: str) -> socket.socket:
    where = f"inherited descriptor {descriptor} ({name or 'without a name'})"
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"{where} is no socket: {errno_text(error)}") from None
    is_datagram = sock.type == socket.SOCK_DGRAM
    if is_datagram == bool(listens) or (
        name in (DERP, HTTP, STUN, DEBUG) and is_datagram != (name == STUN)
    ):
        wanted = "a UDP socket" if name == STUN else "a listening TCP socket"
        raise ListenError(f"{where} is not {wanted}: see ListenStream= and ListenDatagram=")
    sock.setblocking(False)
    return sock


def _use(sock: socket.socket, name: str, http_port: int | None) -> str:
    if name in (DERP, HTTP, STUN, DEBUG):
        return name
    if sock.type == socket.SOCK_DGRAM:
        return STUN
    address = sock.getsockname()
    port = None if isinstance(address, str) else address[1]
    return HTTP if http_port is not None and port == http_port else DERP
