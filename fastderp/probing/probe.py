"""Checks a relay from outside: each step is what a client would do, timed and described.

One event loop. A step that needs an earlier one is skipped when that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastderp.client.client import Client
from fastderp.errors import ConfigError, ConnectionClosed, DerpError, DialError, ProtocolError
from fastderp.net.lookup import Address, look_up
from fastderp.net.metacert import announced_key
from fastderp.net.socket_stream import open_socket_stream
from fastderp.net.stream import Stream
from fastderp.net.target import PIN_PREFIX, UrlTarget, certificate_pin
from fastderp.net.tls import TlsStream
from fastderp.net.upgrade import USER_AGENT, host_header, upgrade
from fastderp.probing.certificate import certificate_finding
from fastderp.probing.echo import PACKET_BYTES, Echo
from fastderp.probing.step import Finding, Outcome, Step, ms
from fastderp.probing.stun import stun_finding
from fastderp.tls.client import ClientContext
from fastderp.tls.errors import TlsError
from fastderp.util.net import format_address
from fastderp.util.reasons import errno_text
from fastderp.util.text import one_line
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.protocol import HEADER_SIZE, KEY_SIZE

N_PINGS = 5
APP_NAME = "fastderp-probe"
# characters of a relay's key in the lines, of which the JSON has all
KEY_SHOWN = len("nodekey:") + 8
_MAX_ERROR = 120
_MAX_HEAD_SIZE = 64 << 10
# errors of this machine, not of the relay: it has no network of the address's family
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """What to probe, and how.

    Args:
        cert_name: as for HTTPClient; the UrlTarget has it, too.
        cafile: PEM file of more roots to trust.
        keys: of the two clients; none for new ones, or one for a client that sends to itself.
        family: AF_INET or AF_INET6 for the addresses of one family only.
        stun_port: 0 for no STUN.
        timeout_s: limit of each step; the echo takes longer where the relay limits the rate.
        count: packets of the echo.
    """

    cert_name: str = ""
    cafile: str | os.PathLike[str] | None = None
    keys: Sequence[NodePrivate] = ()
    family: socket.AddressFamily = socket.AF_UNSPEC
    stun_port: int = 3478
    timeout_s: float = 10.0
    count: int = 100


class Probe:
    """One check of a relay; `run` does it once."""

    def __init__(
        self, target: UrlTarget, options: ProbeOptions, report: Callable[[Step], object]
    ) -> None:
        """Prepare; `report` gets each step when it is over.

        Raises ConfigError for roots that cannot be read.
        """
        self._target = target
        self._options = options
        self._report = report
        self._pin = None
        if options.cert_name.startswith(PIN_PREFIX):
            self._pin = certificate_pin(options.cert_name)
        try:
            self._context = ClientContext(cafile=options.cafile, pin=self._pin)
        except TlsError as error:
            raise ConfigError(str(error)) from error
        self._keys = list(options.keys) or [NodePrivate.generate(), NodePrivate.generate()]
        self._addresses: list[Address] = []
        self._reached: Address | None = None
        self._chain: list[bytes] = []
        self._is_trusted = False
        self._announced: NodePublic | None = None
        self._upgraded: Stream | None = None
        self._clients: list[Client] = []

    async def run(self) -> None:
        """Do all steps."""
        try:
            await self._step("name", self._look_up)
            await self._each_address("tcp", self._connect, self._addresses)
            reached = self._reached is not None
            if self._target.https:
                reached = await self._step("tls", self._shake_hands, reached)
                await self._step("cert", self._certificate, bool(self._chain))
            await self._step("http-probe", self._get_probe, reached)
            await self._step("http-204", self._get_204, reached)
            name = "websocket" if self._target.websocket else "upgrade"
            upgraded = await self._step(name, self._upgrade, reached)
            admitted = await self._step("login", self._log_in, upgraded)
            await self._step("ping", self._ping, admitted)
            await self._step("echo", self._echo, admitted, limits_itself=True)
            if stun_port := self._options.stun_port:
                others = [_with_port(address, stun_port) for address in self._addresses]
                await self._each_address("stun", self._stun, others, limits_itself=True)
        finally:
            await asyncio.gather(*(client.close() for client in self._clients))
            if self._upgraded is not None:
                self._upgraded.abort()

    async def _step(
        self,
        name: str,
        action: Callable[[], Awaitable[Finding]],
        can_run: bool = True,
        *,
        place: str = "",
        limits_itself: bool = False,
    ) -> bool:
        """Do a step within the time limit, and report it; return whether it succeeded.

        `place` is the address that it is for, if it is repeated for each.
        """
        if not can_run:
            self._report(Step(name, Outcome.SKIPPED, "an earlier step failed"))
            return False
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(None if limits_itself else self._options.timeout_s):
                found = await action()
        except (DerpError, OSError, ValueError, OverflowError) as error:
            found = self._failure(error, place)
        seconds = time.monotonic() - started_s if found.seconds is None else found.seconds
        step = Step(name, found.outcome, one_line(found.text), seconds, found.details)
        self._report(step)
        return step.is_good

    def _failure(self, error: Exception, place: str) -> Finding:
        """Describe the error that has ended a step."""
        if isinstance(error, DerpError):
            text = _shortened(str(error))
        elif isinstance(error, TimeoutError) and error.errno is None:
            text = f"no answer within {self._options.timeout_s:g} s"
        else:
            text = errno_text(error)
        if not place:
            return _failed(text)
        families = {family for family, _ in self._addresses}
        if getattr(error, "errno", None) in _NO_ROUTE and len(families) > 1:
            text += " from this machine"
            return Finding(f"{place}: {text}", {"server": place}, outcome=Outcome.NOTE)
        return Finding(f"{place}: {text}", {"server": place}, outcome=Outcome.FAILED)

    async def _each_address(
        self,
        name: str,
        action: Callable[[Address], Awaitable[Finding]],
        addresses: Sequence[Address],
        *,
        limits_itself: bool = False,
    ) -> None:
        """Do a step for each address; skip it without one."""
        for address in addresses:
            await self._step(
                name, partial(action, address), place=_text(address), limits_itself=limits_itself
            )
        if not addresses:
            await self._step(name, self._look_up, False)

    async def _look_up(self) -> Finding:
        host = self._target.node.host_name
        self._addresses = await look_up(host, self._target.port, self._options.family)
        ips = list(dict.fromkeys(place[0] for _, place in self._addresses))
        return Finding(", ".join(ips), {"host": host, "addresses": ips})

    async def _connect(self, address: Address) -> Finding:
        stream = await _open(address)
        stream.abort()
        self._reached = self._reached or address
        place = _text(address)
        return Finding(place, {"server": place})

    async def _open(self) -> Stream:
        """Return a new connection to the address that was reached first, inside TLS if any."""
        stream = await self._open_tcp()
        return Stream.of(await self._secured(stream)) if self._target.https else stream

    async def _open_tcp(self) -> Stream:
        assert self._reached is not None
        return await _open(self._reached)

    async def _secured(self, stream: Stream, context: ClientContext | None = None) -> TlsStream:
        cert_name = None if self._pin else self._options.cert_name or None
        host = self._target.node.host_name
        return await TlsStream.connect(stream, context or self._context, host, cert_name=cert_name)

    async def _shake_hands(self) -> Finding:
        stream = await self._open_tcp()
        started_s = time.monotonic()
        try:
            inside = await self._secured(stream)
        except DialError as error:
            cause = error.__cause__
            if isinstance(cause, TlsError) and cause.cause == "certificate":
                await self._look_at_certificate()
            text = str(cause or error)
            return _failed(text.removeprefix("TLS handshake failed: "))
        seconds = time.monotonic() - started_s
        inside.abort()
        self._chain, self._is_trusted = inside.peer_chain, True
        if inside.version == "TLSv1.3":
            self._announced = announced_key(self._chain)
        details = {"version": inside.version, "cipher": inside.cipher}
        return Finding(f"{inside.version}, {inside.cipher}", details, seconds)

    async def _look_at_certificate(self) -> None:
        """Connect again without checks, for the description of a refused certificate."""
        with contextlib.suppress(DerpError, OSError):
            inside = await self._secured(await self._open_tcp(), ClientContext(verify=False))
            self._chain = inside.peer_chain
            inside.abort()

    async def _certificate(self) -> Finding:
        return certificate_finding(
            self._chain[0], self._options.cert_name, is_trusted=self._is_trusted
        )

    async def _get_probe(self) -> Finding:
        """Request the page by which clients measure the way to a relay when UDP is blocked."""
        return await self._get("/derp/probe", 200, otherwise=Outcome.FAILED)

    async def _get_204(self) -> Finding:
        """Request the page by which clients detect captive portals; they work without it."""
        return await self._get("/generate_204", 204, otherwise=Outcome.NOTE)

    async def _get(self, path: str, expected: int, otherwise: Outcome) -> Finding:
        """Request a page. The outcome is `otherwise` for another status than expected."""
        stream = await self._open()
        started_s = time.monotonic()
        try:
            head = await _head_of(stream, host_header(self._target.host_header), path)
        finally:
            stream.abort()
        seconds = time.monotonic() - started_s
        line = head.partition(b"\r\n")[0].decode("latin-1")
        version, _, status = line.partition(" ")
        if not version.startswith("HTTP/1."):
            return _failed(f"GET {path}: not an HTTP answer: {line[:40]!r}")
        code = int(status[:3]) if status[:3].isdecimal() else 0
        details = {"path": path, "status": code}
        if code == expected:
            return Finding(f"GET {path}: {status[:40]}", details, seconds)
        text = f"GET {path}: {status[:40]!r} instead of {expected}"
        return Finding(text, details, seconds, otherwise)

    async def _upgrade(self) -> Finding:
        if self._target.websocket:  # its import must not count for the relay's time
            from fastderp.client.websocket import WebSocketStream
        stream = await self._open()
        started_s = time.monotonic()
        host, path = self._target.host_header, self._target.path
        try:
            if self._target.websocket:
                https = self._target.https
                inside = await WebSocketStream.open(stream, host=host, path=path, https=https)
                self._upgraded = Stream.of(inside)
            else:
                await upgrade(stream, host=host, path=path)
                self._upgraded = stream
        except BaseException:
            stream.abort()
            raise
        return Finding(f"GET {path}: 101", {"path": path}, time.monotonic() - started_s)

    async def _log_in(self) -> Finding:
        assert self._upgraded is not None
        started_s = time.monotonic()
        client = await self._admitted(self._upgraded, self._keys[0])
        seconds = time.monotonic() - started_s
        key, info = client.server_public_key, client.server_info
        assert info is not None
        rate, burst = info.token_bucket_bytes_per_second, info.token_bucket_bytes_burst
        details = {
            "server_key": str(key),
            "protocol_version": info.version,
            "rate_bytes_per_second": rate,
            "burst_bytes": burst,
        }
        if self._announced not in (None, key):
            text = f"the relay's key is {key}, but its certificate announces {self._announced}"
            return Finding(text, details, seconds, Outcome.FAILED)
        limit = f"{rate} bytes/s, burst {burst}" if rate else "no rate limit"
        text = f"{str(key)[:KEY_SHOWN]}…, protocol {info.version}, {limit}"
        return Finding(text, details, seconds)

    async def _admitted(self, stream: Stream, key: NodePrivate) -> Client:
        """Log in and wait for the relay's consent."""
        try:
            client = await Client.handshake(stream, key, is_prober=True, app_name=APP_NAME)
        except ProtocolError as error:
            raise DialError(f"the server does not speak DERP: {error}") from error
        self._clients.append(client)
        try:
            await client.wait_accepted()
        except ConnectionClosed as error:
            hint = "" if self._options.keys else "; if it admits known keys only, use -key"
            raise DialError(f"{error}{hint}") from error
        return client

    async def _ping(self) -> Finding:
        times = [await self._clients[0].ping(self._options.timeout_s) for _ in range(N_PINGS)]
        details = {"pings": N_PINGS, "max_seconds": round(max(times), 6)}
        text = f"median of {N_PINGS}; max {ms(max(times))}"
        return Finding(text, details, statistics.median(times))

    async def _echo(self) -> Finding:
        near = far = self._clients[0]
        timeout_s = self._options.timeout_s
        if len(self._keys) > 1:
            async with asyncio.timeout(timeout_s):
                await self._upgrade()
                assert self._upgraded is not None
                far = await self._admitted(self._upgraded, self._keys[1])
        count = self._options.count
        info = near.server_info
        if info is not None and (rate := info.token_bucket_bytes_per_second):
            timeout_s += count * (HEADER_SIZE + KEY_SIZE + PACKET_BYTES) / rate
        return await Echo(near, far, count).run(timeout_s)

    async def _stun(self, address: Address) -> Finding:
        return await stun_finding(address, self._options.timeout_s)


def _text(address: Address) -> str:
    return format_address(address[1][:2])


def _with_port(address: Address, port: int) -> Address:
    family, (ip, _, *rest) = address
    return family, (ip, port, *rest)


async def _open(address: Address) -> Stream:
    family, place = address
    return Stream.of(await open_socket_stream(place[0], place[1], family))


async def _head_of(stream: Stream, host: str, path: str) -> bytes:
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: {USER_AGENT}",
        "Connection: close",
    )
    stream.write("\r\n".join([*lines, "", ""]).encode())
    await stream.drain()
    return await stream.read_head(_MAX_HEAD_SIZE)


def _shortened(text: str) -> str:
    """Cut the text of an error, which may hold a page of a web server."""
    return text if len(text) <= _MAX_ERROR else text[: _MAX_ERROR - 1] + "…"


def _failed(text: str) -> Finding:
    return Finding(text, outcome=Outcome.FAILED)
