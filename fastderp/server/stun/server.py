"""STUN: tells a client the address its UDP packets come from (PROTOCOL §11).

Control thread, on the loop's readable callback: a bounded number of datagrams per wake-up, one buffer for all.
Sockets are separate for IPv4 and IPv6, so an IPv4 client is answered with an IPv4 address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import zlib
from dataclasses import dataclass, field

from fastderp.errors import ListenError
from fastderp.server.net.listen import datagram_sockets
from fastderp.server.observe.metrics import Value

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

# Linux's number; Python's socket module has it from 3.14 on.
IP_PKTINFO = 8
# struct in_pktinfo: interface, local address, destination. struct in6_pktinfo: address, interface.
_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")
_CONTROL_BYTES = socket.CMSG_SPACE(_PKTINFO6.size)


@dataclass(slots=True)
class StunCounters:
    """Datagrams by the dispositions and families of PROTOCOL §14, §22."""

    success: int = 0
    not_stun: int = 0
    read_error: int = 0
    write_error: int = 0
    ipv4: int = 0
    ipv6: int = 0
    no_local_addr: int = 0

    def metrics(self) -> dict[str, Value]:
        """Return the counters under the names of `/debug/varz`."""
        requests = {
            name: getattr(self, name)
            for name in ("success", "not_stun", "read_error", "write_error")
        }
        return {
            "stun_requests": requests,
            "stun_addrfamily": {"ipv4": self.ipv4, "ipv6": self.ipv6},
            "stun_no_local_addr": self.no_local_addr,
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
    """Answers STUN on the sockets it is given until `close`; made by `bind_stun`."""

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
                n_bytes, ancillary, _, sender = sock.recvmsg_into([self._buffer], _CONTROL_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # an ICMP error for an earlier answer; the socket is well
            except OSError as error:
                self._pause(loop, sock, error)
                return
            self._answer(sock, view[:n_bytes], sender, ancillary)

    def _answer(
        self,
        sock: socket.socket,
        datagram: memoryview,
        sender: tuple[str, int],
        ancillary: list[tuple[int, int, bytes]],
    ) -> None:
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
        source = _source_of_answer(ancillary)
        if not source:
            self.counters.no_local_addr += 1
        try:
            sock.sendmsg([binding_response(txid, address, sender[1])], source, 0, sender)
        except OSError:
            self.counters.write_error += 1
        else:
            self.counters.success += 1

    def _pause(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, error: OSError) -> None:
        """Stop reading a socket for a moment after a read error, instead of spinning on it."""
        self.counters.read_error += 1
        log.warning(
            "STUN read failed: %s; trying again in %g s", error.strerror, READ_ERROR_PAUSE_S
        )
        loop.remove_reader(sock.fileno())
        self._resume[sock] = loop.call_later(
            READ_ERROR_PAUSE_S, loop.add_reader, sock.fileno(), self._on_readable, loop, sock
        )


def bind_stun(host: str, port: int) -> StunServer:
    """Bind the STUN sockets for every address of a host; any wildcard means all addresses of both families.

    Needs no running loop; call `start` on the result. Raises ListenError when an address cannot be bound.
    """
    try:
        return StunServer(datagram_sockets(host, port, _ask_for_destination))
    except OSError as error:
        raise ListenError(f"STUN: {error.strerror}") from error


def _ask_for_destination(sock: socket.socket) -> None:
    """Have the kernel tell the address that each datagram was sent to."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def _source_of_answer(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Return the control message that sends an answer from the address that was asked; [] when the kernel did not tell it."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) == _PKTINFO4.size:
            _, local, _ = _PKTINFO4.unpack(data)
            return [(level, kind, _PKTINFO4.pack(0, local, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(
            data
        ) == _PKTINFO6.size:
            local, interface = _PKTINFO6.unpack(data)
            # The route decides about the interface, but a link-local address is one of its interface only.
            is_link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80
            return [(level, kind, _PKTINFO6.pack(local, interface if is_link_local else 0))]
    return []
