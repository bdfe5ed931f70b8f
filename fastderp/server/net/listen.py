"""Binds the sockets of an address, TCP and UDP by the same rules: those of Go's net package.

PROTOCOL §9.1, §11. Every wildcard ("", 0.0.0.0, ::) stands for both families, with one socket
each. A family without support on the machine is skipped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastderp.errors import ListenError
from fastderp.util.net import client_ip, format_address, host_bytes
from fastderp.util.reasons import errno_text

# prefix of the address of a unix socket
UNIX = "unix:"
BACKLOG = 4096
# Maximum of attempts: a free port of one family may be in use in the other.
FREE_PORT_ATTEMPTS = 16

# Unsent bytes that the kernel may hold for one peer; further packets would be stale when sent.
UNSENT_BYTES = 128 << 10

# Linux's numbers, which Python's socket module lacks.
SO_ATTACH_REUSEPORT_CBPF = 51
BPF_RETURN = 0x06

SocketAddress = tuple[Any, ...]
Prepare = Callable[[socket.socket], None]
"""Sets options of a socket, before it is bound unless it is another owner's."""


def client_options(keepalive_idle_s: float = 600.0, user_timeout_s: float = 15.0) -> Prepare:
    """Return a function that sets the options of a client's connection on a TCP socket.

    Args:
        keepalive_idle_s: seconds of silence before the first keep-alive probe.
        user_timeout_s: seconds that sent data may stay unacknowledged.
    """

    def prepare(sock: socket.socket) -> None:
        tune(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tune(sock, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        tune(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive_idle_s)))
        tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)
        tune(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(user_timeout_s * 1000))

    return prepare


def tune(sock: socket.socket, level: int, option: int, value: int) -> None:
    """Set an option that the relay can do without, unless the system has no such option.

    gVisor and WSL 1 lack some. Raises OSError for other errors.
    """
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            raise


def listen_sockets(
    host: str | Sequence[socket.socket],
    port: int,
    options: Prepare = client_options(),
    *,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Return non-blocking TCP sockets that listen on every address of `host`, all on the same port.

    Accepted connections inherit the options of the listening socket, except those that it has
    queued before it got them.

    Args:
        host: name or address; any wildcard for all addresses of both families; or unix:PATH; or
            sockets that listen already.
        port: 0 for a free one.
        options: sets them; the result of `client_options`.
        reuse_port: share the port with other processes of this user that do so, too.

    Raises ListenError that names the address.
    """

    def prepare(sock: socket.socket) -> None:
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        options(sock)

    if not isinstance(host, str):
        for sock in host:
            if sock.family != socket.AF_UNIX:
                prepare(sock)
        return list(host)
    if host.startswith(UNIX):
        return [_unix_socket(host.removeprefix(UNIX))]
    return _bind_all(host, port, socket.SOCK_STREAM, prepare)


def _unix_socket(path: str) -> socket.socket:
    """Return a non-blocking socket that listens at a path, for its owner and its group.

    A stale socket, at which no process listens, is replaced. Raises ListenError naming the path.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if Path(path).is_socket():
            # A process that does not accept would keep a blocking one waiting.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        where = f"cannot listen on unix:{path}: {errno_text(error)}"
        raise ListenError(error.errno, where) from None
    return sock


def check_unix(address: str) -> None:
    """Raise ListenError when the directory of `unix:PATH` does not exist or is not writable."""
    directory = Path(address.removeprefix(UNIX)).parent
    if not os.access(directory, os.W_OK | os.X_OK):
        number = errno.EACCES if directory.exists() else errno.ENOENT
        raise ListenError(f"cannot listen on {address}: {os.strerror(number)}")


def steer_to_successor(sock: socket.socket) -> None:
    """Have the kernel give new connections to the second process on a shared port, if there is one.

    Connections that it has queued for this one stay. Without effect where the kernel refuses it.
    """
    # The program is one instruction: return 1. The kernel numbers the sockets of a port in the
    # order of their start, and chooses one by itself while there is no number 1.
    instruction = array("B", struct.pack("HBBI", BPF_RETURN, 0, 0, 1))
    program = struct.pack("HP", 1, instruction.buffer_info()[0])
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def datagram_sockets(
    host: str, port: int, prepare: Prepare, *, reuse_port: bool = False
) -> list[socket.socket]:
    """Return non-blocking UDP sockets bound to every address of `host`, all on the same port.

    Arguments and errors are those of `listen_sockets`; prepare sets further options before the
    bind.
    """

    def prepare_shared(sock: socket.socket) -> None:
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        prepare(sock)

    return _bind_all(host, port, socket.SOCK_DGRAM, prepare_shared)


def is_local(host: str | Sequence[socket.socket]) -> bool:
    """Return whether only this machine reaches the `host` of `listen_sockets`.

    False also for a name that cannot be resolved.
    """
    if not isinstance(host, str):
        names = [sock.getsockname() for sock in host]
        hosts = [name[0] for name in names if not isinstance(name, str)]
    elif host.startswith(UNIX):
        hosts = []
    else:
        try:
            hosts = [address[0] for _, address in _addresses(host, 0, socket.SOCK_STREAM)]
        except ListenError:
            return False
    return all((ip := client_ip(one)) is not None and ip.is_loopback for one in hosts)


def is_wildcard(host: str) -> bool:
    """Return whether a host stands for every address of both families."""
    ip = client_ip(host)
    return not host or (ip is not None and ip.is_unspecified)


def _bind_all(
    host: str, port: int, kind: socket.SocketKind, prepare: Prepare
) -> list[socket.socket]:
    addresses = _addresses(host, port, kind)
    for attempt in range(1, FREE_PORT_ATTEMPTS + 1):
        try:
            return _bind_each(addresses, kind, prepare)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE or attempt == FREE_PORT_ATTEMPTS:
                raise
    raise AssertionError


def _addresses(
    host: str, port: int, kind: socket.SocketKind
) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Return the addresses to bind, IPv4 first; those of IPv6 keep their zones."""
    if is_wildcard(host):
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))]
    ip = client_ip(host)
    if ip is not None and ip.version == 4:
        host = str(ip)  # the text may be ::ffff:a.b.c.d
    try:
        found = socket.getaddrinfo(host_bytes(host), port, type=kind)
    except (socket.gaierror, UnicodeError) as error:
        where = format_address((host, port))
        raise ListenError(
            errno.EADDRNOTAVAIL, f"cannot listen on {where}: {errno_text(error)}"
        ) from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_each(
    addresses: list[tuple[socket.AddressFamily, SocketAddress]],
    kind: socket.SocketKind,
    prepare: Prepare,
) -> list[socket.socket]:
    """Bind all addresses or none.

    Of several addresses, those of an unsupported family are skipped.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            host, port, *zone = address
            if sockets:
                port = sockets[0].getsockname()[1]
            try:
                sockets.append(_bind(family, (host, port, *zone), kind, prepare))
            except OSError as error:
                if not _lacks_family(error, host):
                    raise
                missing = error
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets and missing is not None:
        raise missing
    return sockets


def _lacks_family(error: OSError, host: str) -> bool:
    """Return whether an address cannot be bound because the machine lacks its family.

    Many containers have no IPv6, or none on loopback.
    """
    if error.errno == errno.EADDRNOTAVAIL:
        return host in ("::", "::1")
    return error.errno == errno.EAFNOSUPPORT


def _bind(
    family: socket.AddressFamily,
    address: SocketAddress,
    kind: socket.SocketKind,
    prepare: Prepare,
) -> socket.socket:
    sock: socket.socket | None = None
    host, port = str(address[0]), int(address[1])
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if family == socket.AF_INET6:
            # One socket per family keeps the IPv4 address of an IPv4 client in logs and answers.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as error:
        remedy = _remedy(error, kind, port, sock)
        if sock is not None:
            sock.close()
        where = format_address((host, port))
        if kind == socket.SOCK_DGRAM:
            where = f"UDP {where}"
        text = f"cannot listen on {where}: {errno_text(error)}{remedy}"
        raise ListenError(error.errno, text) from None
    return sock


def _remedy(error: OSError, kind: socket.SocketKind, port: int, sock: socket.socket | None) -> str:
    """Return what an operator can do about an address that cannot be bound; "" if unknown."""
    if error.errno == errno.EADDRINUSE:
        if sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            return " by a program without SO_REUSEPORT, or of another user"
        protocol = "u" if kind == socket.SOCK_DGRAM else "t"
        return f"; the program that has it: ss -lnp{protocol} 'sport = :{port}'"
    if error.errno == errno.EADDRNOTAVAIL:
        return "; no interface of this machine has this address"
    if error.errno == errno.EINVAL and sock is not None and sock.family == socket.AF_INET6:
        return "; a link-local address needs its interface, such as [fe80::1%eth0]:443"
    if error.errno == errno.EACCES:
        return " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
    return ""
