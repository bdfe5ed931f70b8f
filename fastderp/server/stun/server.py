"""STUN: tells a client the address its UDP packets come from (PROTOCOL §11).

Control thread, on the loop's readable callback: a bounded number of datagrams per wake-up, one buffer for all.
Sockets are separate for IPv4 and IPv6, so an IPv4 client is answered with an IPv4 address.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import zlib
from dataclasses import dataclass, field

from fastderp.errors import ListenError

log = logging.getLogger("fastderp.stun")

DATAGRAM_MAX = 65536
TURN_DATAGRAMS = 64  # per wake-up, so that a flood cannot keep the loop from logins
READ_ERROR_PAUSE_S = 1.0

_HEADER_BYTES = 20
_COOKIE = bytes.fromhex("2112a442")
_BINDING_REQUEST = b"\x00\x01"
_SOFTWARE = 0x8022
_SOFTWARE_VALUE = b"tailnode"
_FINGERPRINT = 0x8028
_FINGERPRINT_XOR = 0x5354554E
# Everything of an answer up to the transaction id, and the attribute up to the port.
_IPV4_HEAD, _IPV4_ATTRIBUTE = bytes.fromhex("0101000c2112a442"), bytes.fromhex("002000080001")
_IPV6_HEAD, _IPV6_ATTRIBUTE = bytes.fromhex("010100182112a442"), bytes.fromhex("002000140002")


@dataclass(slots=True)
class StunCounters:
    """What became of the datagrams, by the dispositions and families of PROTOCOL §14."""

    success: int = 0
    not_stun: int = 0
    read_error: int = 0
    write_error: int = 0
    ipv4: int = 0
    ipv6: int = 0

    def metrics(self) -> dict[str, dict[str, int]]:
        """Return the counters under the names of `/debug/varz`."""
        requests = {
            name: getattr(self, name)
            for name in ("success", "not_stun", "read_error", "write_error")
        }
        return {
            "stun_requests": requests,
            "stun_addrfamily": {"ipv4": self.ipv4, "ipv6": self.ipv6},
        }


def transaction_id(datagram: bytes | memoryview) -> bytes | None:
    """Return the 12-byte transaction id of a tailscale binding request, None for anything else.

    Strict where the reference is: SOFTWARE `tailnode` somewhere, FINGERPRINT last and right, attributes that fill the
    datagram exactly. The length field of the header is not looked at.
    """
    n_bytes = len(datagram)
    if n_bytes < _HEADER_BYTES or datagram[:2] != _BINDING_REQUEST or datagram[4:8] != _COOKIE:
        return None
    from_tailscale = False
    last, at = -1, _HEADER_BYTES
    while at < n_bytes:
        if at + 4 > n_bytes:
            return None
        last = int.from_bytes(datagram[at : at + 2])
        length = int.from_bytes(datagram[at + 2 : at + 4])
        value = at + 4
        at = value + (length + 3 & ~3)
        if at > n_bytes:
            return None
        if last == _SOFTWARE and datagram[value : value + length] == _SOFTWARE_VALUE:
            from_tailscale = True
    if not from_tailscale or last != _FINGERPRINT or length != 4:
        return None
    fingerprint = zlib.crc32(datagram[: n_bytes - 8]) ^ _FINGERPRINT_XOR
    if int.from_bytes(datagram[n_bytes - 4 :]) != fingerprint:
        return None
    return bytes(datagram[8:20])


def binding_response(txid: bytes, address: bytes, port: int) -> bytes:
    """Build the answer to a binding request: txid as sent, the sender's address as 4 or 16 bytes, its port.

    32 bytes for IPv4. The 44 bytes for IPv6 are 1.1 times a client's 40-byte request: there is no shorter answer.
    """
    head, attribute = (
        (_IPV4_HEAD, _IPV4_ATTRIBUTE) if len(address) == 4 else (_IPV6_HEAD, _IPV6_ATTRIBUTE)
    )
    mask = _COOKIE + txid
    hidden = int.from_bytes(address) ^ int.from_bytes(mask[: len(address)])
    return head + txid + attribute + (port ^ 0x2112).to_bytes(2) + hidden.to_bytes(len(address))


@dataclass(slots=True)
class StunServer:
    """Answers STUN on the sockets it is given until `close`; made by `serve_stun`."""

    sockets: list[socket.socket]
    counters: StunCounters = field(default_factory=StunCounters)
    _buffer: bytearray = field(default_factory=lambda: bytearray(DATAGRAM_MAX))
    _resume: dict[socket.socket, asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The (host, port) of every bound socket."""
        return [sock.getsockname()[:2] for sock in self.sockets]

    def start(self) -> None:
        """Begin answering on the running loop."""
        loop = asyncio.get_running_loop()
        for sock in self.sockets:
            loop.add_reader(sock.fileno(), self._on_readable, loop, sock)

    def close(self) -> None:
        """Stop answering and close the sockets."""
        loop = asyncio.get_running_loop()
        for timer in self._resume.values():
            timer.cancel()
        for sock in self.sockets:
            loop.remove_reader(sock.fileno())
            sock.close()
        self.sockets.clear()

    def _on_readable(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        view = memoryview(self._buffer)
        for _ in range(TURN_DATAGRAMS):
            try:
                n_bytes, sender = sock.recvfrom_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # an ICMP answer to an earlier reply: says nothing about this socket
            except OSError as error:
                self._pause(loop, sock, error)
                return
            self._answer(sock, view[:n_bytes], sender)

    def _answer(self, sock: socket.socket, datagram: memoryview, sender: tuple[str, int]) -> None:
        txid = transaction_id(datagram)
        if txid is None:
            self.counters.not_stun += 1
            return
        if sock.family == socket.AF_INET:
            self.counters.ipv4 += 1
        else:
            self.counters.ipv6 += 1
        # A link-local sender carries its zone as "fe80::1%eth0"; the address on the wire has none.
        address = socket.inet_pton(sock.family, sender[0].partition("%")[0])
        try:
            sock.sendto(binding_response(txid, address, sender[1]), sender)
        except OSError:
            self.counters.write_error += 1
        else:
            self.counters.success += 1

    def _pause(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, error: OSError) -> None:
        """Leave a socket alone for a moment after a read error, instead of spinning on it."""
        self.counters.read_error += 1
        log.warning(
            "STUN read failed: %s; trying again in %g s", error.strerror, READ_ERROR_PAUSE_S
        )
        loop.remove_reader(sock.fileno())
        self._resume[sock] = loop.call_later(
            READ_ERROR_PAUSE_S, loop.add_reader, sock.fileno(), self._on_readable, loop, sock
        )


def bind_stun(host: str, port: int) -> StunServer:
    """Bind the STUN sockets for every address of a host; an empty host means all of this machine's.

    Needs no running loop; call `start` on the result. Raises ListenError when the port cannot be had.
    """
    server = StunServer([])
    try:
        for family, address in _addresses(host):
            server.sockets.append(
                _bound(family, address, server.addresses[0][1] if server.sockets else port)
            )
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}") from error
    except OSError as error:
        for sock in server.sockets:
            sock.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ListenError(f"STUN: cannot listen on UDP {where}: {error.strerror}") from error
    return server


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if host:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        return list(
            dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found)
        )
    both = [(socket.AF_INET, "0.0.0.0")]
    if _has_ipv6():
        both.append((socket.AF_INET6, "::"))
    return both


def _has_ipv6() -> bool:
    """Tell whether the kernel can bind an IPv6 socket at all; containers often have it switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return True


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
