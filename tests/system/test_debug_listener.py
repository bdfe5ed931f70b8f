"""`fastderp-relay -debug-addr`: metrics and debug pages on a listener of their own, without DERP."""

from __future__ import annotations

import http.client
import signal
import socket
import stat
from collections.abc import Mapping
from http.client import HTTPMessage
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePublic
from tests.kit.command import RunningRelay, manual, refused, relay
from tests.kit.peer import RESTARTING, Peer
from tests.kit.ports import free_ports
from tests.kit.relay import eventually
from tests.kit.websocket import opening_request

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
# The relay takes such a request for one of a stranger, whom a proxy has forwarded.
FORWARDED = {"X-Forwarded-For": "203.0.113.9"}
QUIET = ("-stun=false", "-drain-time=1h")
Answer = tuple[int, HTTPMessage, str]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def get(where: int | Path, path: str, headers: Mapping[str, str] = {}) -> Answer:
    """Request a page of a local port or a unix socket."""
    if isinstance(where, Path):
        connection: http.client.HTTPConnection = UnixConnection(where)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", where, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def status(where: int | Path, path: str, headers: Mapping[str, str] = {}) -> int:
    return get(where, path, headers)[0]


def first_line(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(request)
        return sock.makefile("rb").readline()


def debug_port(running: RunningRelay) -> int:
    return int(running.find(r"; debug on \S+?:(\d+)[,;]"))


def flags_of(tmp_path: Path, *flags: str, at: str = "127.0.0.1:0") -> tuple[str, ...]:
    key = str(tmp_path / "key")
    return ("-a=127.0.0.1:0", "-debug-addr", at, "-c", key, *QUIET, *flags)


def log_in(running: RunningRelay, sock: socket.socket) -> Peer:
    sock.settimeout(20)
    peer = Peer(sock)
    peer.login(NodePublic.from_text(running.find(r"public key (\S+),")))
    return peer


def drain(running: RunningRelay, client: Peer) -> None:
    """Begin the drain; return when the client has been told."""
    running.process.send_signal(signal.SIGTERM)
    assert client.read_frame()[0] == RESTARTING


def test_each_page_is_served_to_everyone_who_reaches_the_listener(tmp_path: Path) -> None:
    with relay(*flags_of(tmp_path)) as running:
        port = debug_port(running)
        code, headers, text = get(port, "/metrics", FORWARDED)
        assert (code, headers["Content-Type"]) == (200, PROMETHEUS)
        assert "\n# TYPE derp_accepts counter\n" in text
        for path in ("/debug/varz", "/debug/vars", "/debug/check", "/debug/clients/?all=1"):
            assert status(port, path, FORWARDED) == 200, path
        assert "href=" in get(port, "/debug/", FORWARDED)[2]
        for path in ("/", "/debug"):
            code, headers, _ = get(port, path)
            assert (code, headers["Location"]) == (307, "/debug/")
        assert get(port, "/healthz")[::2] == (200, "ok\n")
        assert get(port, "/readyz")[::2] == (200, "ready\n")


def test_the_page_of_live_traffic_is_served(tmp_path: Path) -> None:
    with relay(*flags_of(tmp_path)) as running:
        request = b"GET /debug/traffic HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b" 200 " in first_line(debug_port(running), request)


def test_nothing_of_derp_is_served_there(tmp_path: Path) -> None:
    with relay(*flags_of(tmp_path, "-ace")) as running:
        port = debug_port(running)
        for path in (
            *("/derp", "/derp/probe", "/derp/latency-check", "/generate_204", "/bootstrap-dns"),
            *("/robots.txt", "/nope", "/metrics/", "/debugfoo", "/debug/nope"),
        ):
            assert status(port, path) == 404, path
        upgrade = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
        for request in (
            upgrade + b"\r\n",
            upgrade + b"Derp-Fast-Start: 1\r\n\r\n",
            opening_request(),
            b"CONNECT controlplane.tailscale.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            assert b" 404 " in first_line(port, request), request
        # A login elsewhere teaches this listener nothing: its requests are known by port.
        address = ("127.0.0.1", running.port)
        with log_in(running, socket.create_connection(address)):
            assert b" 404 " in first_line(port, upgrade + b"\r\n")


def test_the_public_ports_then_have_no_debug_pages(tmp_path: Path) -> None:
    key = tmp_path / "debug.key"
    key.write_text("open sesame")
    environment = {"TS_DEBUG_KEY_PATH": str(key)}
    https = manual(tmp_path, "127.0.0.1")
    with relay(*flags_of(tmp_path, "-http-port=0", *https), env=environment) as running:
        plain = int(running.find(r"plain HTTP on \S+?:(\d+)"))
        for path in ("/debug/", "/debug/varz", "/debug/varz?debugkey=open+sesame", "/metrics"):
            assert status(plain, path) == 404, path
        assert get(plain, "/")[1]["Location"] == f"https://127.0.0.1:{plain}/"
        assert "TS_ALLOW_DEBUG_IP and TS_DEBUG_TRUSTED_CIDRS have no effect\n" in running.said
    with relay(*flags_of(tmp_path), env=environment) as running:
        for path in ("/debug", "/debug/", "/debug/varz", "/debug/clients/?all=1", "/metrics"):
            assert status(running.port, path) == 404, path
        assert status(running.port, "/debug/vars?debugkey=open+sesame") == 404
        assert "/debug/" not in get(running.port, "/")[2], "a link"
        assert status(running.port, "/healthz") == 200


@pytest.mark.parametrize(
    ("content", "warned"), [(None, "No such file or directory"), (" \n", " is empty"), ("k", "")]
)
def test_a_key_file_that_admits_nobody_is_reported_at_the_start(
    tmp_path: Path, content: str | None, warned: str
) -> None:
    path = tmp_path / "debug.key"
    if content is not None:
        path.write_text(content)
    flags = ("-a=127.0.0.1:0", "-c", str(tmp_path / "key"), *QUIET)
    with relay(*flags, env={"TS_DEBUG_KEY_PATH": str(path)}) as running:
        lines = [line for line in running.said.splitlines() if "TS_DEBUG_KEY_PATH" in line]
        assert len(lines) == bool(warned)
        assert all(str(path) in line and warned in line for line in lines)
        # The file may come later.
        path.write_text("open sesame\n")
        key = "/debug/varz?debugkey=open+sesame"
        assert get(running.port, key, FORWARDED)[0] == 200


def test_without_the_flag_metrics_have_the_access_rule_of_the_debug_pages(tmp_path: Path) -> None:
    with relay("-a=127.0.0.1:0", "-c", str(tmp_path / "key"), *QUIET) as running:
        code, headers, text = get(running.port, "/metrics")
        assert (code, headers["Content-Type"]) == (200, PROMETHEUS)
        assert text.split("\n", 1)[0] == get(running.port, "/debug/varz")[2].split("\n", 1)[0]
        assert status(running.port, "/debug/varz", FORWARDED) == 403
        assert status(running.port, "/metrics", FORWARDED) == 404
        assert "debug on" not in running.said


def test_the_listener_ignores_what_proxies_of_the_relay_send(tmp_path: Path) -> None:
    proxied = ("-trusted-proxies=127.0.0.0/8", "-proxy-protocol", "-path-prefix=/relay")
    with relay(*flags_of(tmp_path, *proxied)) as running:
        assert status(debug_port(running), "/metrics", FORWARDED) == 200
        assert status(debug_port(running), "/relay/metrics") == 404


def test_a_unix_socket_is_for_its_owner_and_group_and_goes_with_the_relay(tmp_path: Path) -> None:
    path = tmp_path / "debug.sock"
    # The first relay is killed at the end of its block; the next one replaces its socket.
    with relay(*flags_of(tmp_path, at=f"unix:{path}")) as running:
        assert f"; debug on unix:{path};" in running.said
    assert path.is_socket()
    with relay(*flags_of(tmp_path, at=f"unix:{path}")) as running:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert get(path, "/metrics")[1]["Content-Type"] == PROMETHEUS
        assert status(path, "/debug/vars") == status(path, "/readyz") == 200
        assert status(path, "/derp") == 404
        assert running.stop()[0] == 0 and not path.exists()


def test_an_address_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "debug.sock"
    with relay(*flags_of(tmp_path)) as running, relay(*flags_of(tmp_path, at=f"unix:{path}")):
        for at in (f"127.0.0.1:{debug_port(running)}", f"unix:{path}"):
            code, said = refused(*flags_of(tmp_path, at=at))
            assert code == 71
            assert f"fastderp-relay: cannot listen on {at}: Address already in use" in said
            assert said.splitlines()[-1].startswith("fastderp-relay: ")
        assert status(path, "/healthz") == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-a=:8443", "-debug-addr=127.0.0.1:8443"), "-a and -debug-addr are both port 8443"),
        (("-a=127.0.0.1:8443", "-debug-addr=:8443"), "-a and -debug-addr are both port 8443"),
        (
            ("-a=:8443", "-certmode=manual", "-hostname=127.0.0.1", "-debug-addr=[::1]:80"),
            "-http-port and -debug-addr are both port 80",
        ),
        (("-a=unix:/x/s", "-debug-addr=unix:/x/s"), "-a and -debug-addr are both unix:/x/s"),
        (("-debug-addr=127.0.0.1",), 'invalid address "127.0.0.1" for -debug-addr: missing port'),
        (("-debug-addr=9090",), 'invalid address "9090" for -debug-addr: missing port'),
        (("-debug-addr=::1:90",), 'invalid address "::1:90" for -debug-addr: write IPv6 in'),
        (("-debug-addr=unix:s",), 'invalid address "unix:s" for -debug-addr: want unix: and an'),
    ],
)
def test_addresses_that_cannot_work_are_refused(flags: tuple[str, ...], message: str) -> None:
    for command in ((), ("check",)):
        code, said = refused(*command, "-c=/dev/null/k", "-certdir=/dev/null/c", *flags)
        assert code == 2
        assert said.startswith(f"fastderp-relay: {message}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("at", "is_seen"),
    [
        ("127.0.0.1:0", False),
        ("localhost:0", False),
        ("unix:DIR/s", False),
        (":0", True),
        ("0.0.0.0:0", True),
    ],
)
def test_a_listener_that_other_machines_reach_is_reported(
    tmp_path: Path, at: str, is_seen: bool
) -> None:
    flags = flags_of(tmp_path, at=at.replace("DIR", str(tmp_path)))
    code, checked = refused("check", *flags)
    assert code == 0 and "ok     listeners: debug on " in checked
    assert ("\nnote   -debug-addr is not on loopback" in checked) is is_seen
    with relay(*flags) as running:
        assert ("\n-debug-addr is not on loopback" in running.said) is is_seen


def test_check_finds_a_missing_directory_of_the_socket(tmp_path: Path) -> None:
    code, said = refused("check", *flags_of(tmp_path, at=f"unix:{tmp_path}/none/s"))
    assert code == 71
    assert f"WRONG  listeners: cannot listen on unix:{tmp_path}/none/s: No such file" in said


def test_the_pages_stay_while_the_relay_drains(tmp_path: Path) -> None:
    with relay(*flags_of(tmp_path)) as running:
        port = debug_port(running)
        sock = socket.create_connection(("127.0.0.1", running.port))
        with log_in(running, sock) as client:
            running.process.send_signal(signal.SIGHUP)
            assert status(port, "/readyz") == 200, "a reload changes nothing"
            drain(running, client)
            assert get(port, "/readyz")[::2] == (503, "the relay is stopping\n")
            assert status(port, "/healthz") == status(port, "/metrics") == 200
        assert running.process.wait(20) == 0


def test_with_a_shared_port_a_scraper_gets_to_the_relay_that_stays(tmp_path: Path) -> None:
    main, debug = free_ports(2)
    flags = ("-reuse-port", "-a", f"127.0.0.1:{main}", "-debug-addr", f"127.0.0.1:{debug}")
    key = ("-c", str(tmp_path / "key"))
    with relay(*flags, *key, *QUIET) as previous:
        client = log_in(previous, socket.create_connection(("127.0.0.1", main)))
        with client, relay(*flags, *key, *QUIET, "-drain-time=0"):
            drain(previous, client)
            eventually(lambda: not_stopping(debug))
            assert all(not_stopping(debug) for _ in range(20))


def not_stopping(port: int) -> bool:
    return status(port, "/readyz") == 200


def test_a_unix_socket_beside_a_shared_debug_port_refuses_logins_during_the_drain(
    tmp_path: Path,
) -> None:
    path = tmp_path / "relay.sock"
    at = (f"-a=unix:{path}", "-trusted-proxies=unix", "-reuse-port")
    with relay(*flags_of(tmp_path, *at)) as running:
        assert "-reuse-port has no effect on -a\n" in running.said
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        with log_in(running, sock) as client:
            drain(running, client)
            upgrade = {"Connection": "Upgrade", "Upgrade": "DERP"}
            assert get(path, "/derp", upgrade)[::2] == (503, "the relay is stopping\n")


def test_two_relays_do_not_share_a_unix_socket_of_debug_pages(tmp_path: Path) -> None:
    with relay(*flags_of(tmp_path, "-reuse-port", at=f"unix:{tmp_path}/s")) as running:
        assert "-reuse-port has no effect on -debug-addr\n" in running.said
