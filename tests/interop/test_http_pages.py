"""derper and fastderp-relay answer HTTP requests alike: status, headers, keep-alive."""

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.ports import free_ports

from .conftest import StartRelay
from .deviations import HTTP_DEVIATIONS
from .relays import CONNECT_PAUSE_S, START_TIMEOUT_S, Relay

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 30.0

# parts that browsers and clients use; without Date, Content-Length and the framing of a body
HEADERS = (
    *(
        "Location",
        "Access-Control-Allow-Origin",
        "Cache-Control",
        "X-Tailscale-Response",
        "Strict-Transport-Security",
    ),
    *(
        "Content-Security-Policy",
        "X-Frame-Options",
        "X-Content-Type-Options",
        "Content-Type",
        "Connection",
        "Upgrade",
    ),
    *("Derp-Version", "Sec-WebSocket-Version", "Allow"),
)

METHODS = ("GET", "HEAD", "POST", "OPTIONS")
PATHS = (
    *(
        "/",
        "/derp",
        "/derp/probe",
        "/derp/latency-check",
        "/generate_204",
        "/robots.txt",
        "/debug",
        "/debug/",
        "/bootstrap-dns",
    ),
    *(
        "/nope",
        "/derp/",
        "/derp/x",
        "/derp/probe/",
        "/debugfoo",
        "/debug/nope",
        "/index.html",
        "/favicon.ico",
        "/DERP",
    ),
)
UNCLEAN_PATHS = (
    "//",
    "//derp/probe",
    "/derp//probe",
    "/./derp",
    "/derp/../nope",
    "/a/..",
    "/nope/.",
    "/%2e%2e/derp",
)
ENCODED_PATHS = (
    "/derp%2Fprobe",
    "/derp%2fprobe",
    "/%64erp/probe",
    "/a%20b?c=d",
    "/?q=%00",
    "/n%C3%B6",
)
PROBED_PATHS = ("/healthz", "/readyz", "/metrics")
GO_PATHS = ("/debug/pprof/", "/debug/gc", "/debug/set-mutex-profile-fraction")
DEBUG_PATHS = (
    *("/debug?debugkey=s3cret", "/debug/?debugkey=wrong", "/debug?", "/?debugkey=s3cret"),
    *("/debug/varz", "/debug/vars", "/debug/check"),
)
CHALLENGES = ("ts_derp.example", "a", "a" * 64, "a" * 65, "", "a b", "a/b", "A.b:c_d-9", "\xfc")
UPGRADES = (
    "h2c",
    "derpx",
    "derp, websocket",
    "DERP",
    "Derp ",
    "websocket",
    "WebSocket",
    "",
    "foo\x01",
    "TLS/1.2",
)


@dataclass(frozen=True)
class Question:
    """One request, keep-alive by default."""

    path: str
    method: str = "GET"
    version: str = "1.1"
    headers: tuple[str, ...] = ()
    body: str = ""

    @property
    def raw(self) -> bytes:
        """The encoded request."""
        lines = [
            f"{self.method} {self.path} HTTP/{self.version}",
            "Host: derp.example",
            *self.headers,
        ]
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join([*lines, "", ""]) + self.body).encode("latin-1")

    def __str__(self) -> str:
        text = f"{self.method} {self.path}"
        text += f" HTTP/{self.version}" if self.version != "1.1" else ""
        return " | ".join([text, *self.headers, *([self.body] if self.body else [])])


def questions() -> Iterator[Question]:
    """Yield the requests for every port."""
    for path in PATHS:
        for method in METHODS:
            yield Question(path, method)
        for method in ("PUT", "DELETE"):
            yield Question(path, method)
        yield Question(path, "POST", body="hello")
        yield Question(path, version="1.0")
        yield Question(path, version="1.0", headers=("Connection: keep-alive",))
        yield Question(path, headers=("Connection: close",))
        yield Question(path, headers=("Connection: Keep-Alive",))
    for path in (*UNCLEAN_PATHS, *ENCODED_PATHS, *PROBED_PATHS, *DEBUG_PATHS, *GO_PATHS):
        yield Question(path)
    yield Question("http://other.example/nope?q")
    yield Question("http://other.example")
    for challenge in CHALLENGES:
        for method in ("GET", "POST"):
            yield Question(
                "/generate_204", method, headers=(f"X-Tailscale-Challenge: {challenge}",)
            )
    yield Question(
        "/generate_204", headers=("X-Tailscale-Challenge: a", "X-Tailscale-Challenge: b")
    )
    for upgrade in UPGRADES:
        yield Question("/derp", headers=(f"Upgrade: {upgrade}", "Connection: Upgrade"))
    yield Question("/derp", headers=("Upgrade: derp", "Upgrade: h2c"))
    yield Question("/derp", headers=("Upgrade: h2c", "Upgrade: derp"))
    yield Question("/nope", headers=("Upgrade: derp", "Connection: Upgrade"))
    yield Question("/derp/probe", headers=("Origin: https://login.example",))
    yield Question(
        "/derp/probe",
        "OPTIONS",
        headers=("Origin: https://login.example", "Access-Control-Request-Method: GET"),
    )
    for forwarded in ("192.0.2.1", "127.0.0.1", ""):
        for path in ("/debug/", "/debug/vars", "/debug/nope", "/"):
            yield Question(path, headers=(f"X-Forwarded-For: {forwarded}",))
    yield Question("/debug/", headers=("X-Forwarded-For: ", "X-Forwarded-For: 192.0.2.1"))


QUESTIONS = {str(question): question for question in questions()}
STILL_THERE = Question("/generate_204", headers=("Connection: close",)).raw


@contextlib.contextmanager
def connected(port: int, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """Connect to a port of a relay."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        # Otherwise each request waits 40 ms for the acknowledgement of the handshake's last bytes.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            with tls.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped:
                yield wrapped
        else:
            yield sock


def answer(sock: socket.socket, question: Question) -> dict[str, str]:
    """Send a request; return the answer, and whether the connection stays open."""
    sock.sendall(question.raw)
    response = http.client.HTTPResponse(sock, method=question.method)
    response.begin()
    said = {
        name: ", ".join(values) for name in HEADERS if (values := response.headers.get_all(name))
    }
    said["status"] = f"HTTP/{response.version / 10:.1f} {response.status} {response.reason}"
    if response.status != 101:
        body = response.read().decode()
        if said.get("Content-Type", "").startswith("text/plain") and question.path != "/debug/varz":
            said["body"] = body
        said["then"] = "lives on" if still_answers(sock) else "ends"
    return said


def still_answers(sock: socket.socket) -> bool:
    """Return whether a connection accepts another request."""
    try:
        sock.sendall(STILL_THERE)
        return sock.recv(1 << 16).startswith(b"HTTP/")
    except (ConnectionError, ssl.SSLError):
        return False


async def served(port: int) -> None:
    """Wait for a listener: derper opens its second port after the first."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
                return
            await asyncio.sleep(CONNECT_PAUSE_S)


@dataclass(frozen=True)
class Place:
    """A port of a relay with these flags, which gets all requests."""

    flags: tuple[str, ...] = ()
    tls: bool = False
    beside: bool = False

    async def answers(self, start: StartRelay, key: Path) -> dict[str, dict[str, str]]:
        """Start a relay and send it all requests, each on its own connection."""
        port = free_ports(1)[0]
        beside = [f"-http-port={port}"] if self.beside else []
        async with start(*self.flags, *beside, tls=self.tls, TS_DEBUG_KEY_PATH=str(key)) as relay:
            if self.beside:
                await served(port)
            return await asyncio.to_thread(self._ask, relay, port if self.beside else relay.port)

    def _ask(self, relay: Relay, port: int) -> dict[str, dict[str, str]]:
        tls = (
            ssl.create_default_context(cafile=relay.root) if self.tls and not self.beside else None
        )
        said = {}
        for name, question in QUESTIONS.items():
            with connected(port, tls) as sock:
                said[name] = answer(sock, question)
        return said


PLACES = {
    "plain": Place(),
    "TLS": Place(tls=True),
    "beside TLS": Place(tls=True, beside=True),
    "decommissioned": Place(("-derp=false",)),
    "blank home": Place(("-home=blank",)),
    "home elsewhere": Place(("-home=https://www.example/relay",)),
}


def differing(theirs: dict[str, str], ours: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return the parts of two answers that differ."""
    pairs = {
        part: (theirs.get(part, ""), ours.get(part, "")) for part in theirs.keys() | ours.keys()
    }
    return {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}


async def test_pages_are_answered_as_derper_does(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path
) -> None:
    key = tmp_path / "debug.key"
    key.write_text("s3cret\n")
    unforeseen, seen = [], set()
    for where, place in PLACES.items():
        theirs, ours = (
            await place.answers(start_derper, key),
            await place.answers(start_fastderp, key),
        )
        for name in QUESTIONS:
            for part, (their, our) in differing(theirs[name], ours[name]).items():
                reasons = {
                    deviation
                    for deviation in HTTP_DEVIATIONS
                    if re.fullmatch(deviation.requests, name)
                    and part in (deviation.parts or (part,))
                }
                seen |= reasons
                if not reasons:
                    unforeseen.append(f"{where}: {name}: {part}: {their!r} at derper, {our!r} here")
    assert not unforeseen, "\n".join(unforeseen[:20])
    assert seen == set(HTTP_DEVIATIONS), "deviations that are none any more"
