"""The relay as a web server: requests before and without a login. PROTOCOL §9."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import subprocess
from collections.abc import Callable

import pytest

from fastderp.server.http.message import Request, Response
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import relay_routes
from fastderp.server.net.listen import UNSENT_BYTES, client_options, listen_sockets
from tests.kit.memory import resident_bytes
from tests.kit.peer import FAST_START, SERVER_KEY, Peer, client_info, upgrade_request
from tests.kit.relay import Relay, Setup, client_context, eventually, without_websocket

StartRelay = Callable[..., Relay]

HOST = b"Host: derp.example.com\r\n"


def get(path: str) -> bytes:
    """Build a small request."""
    return b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n"


def read_response(peer: Peer) -> tuple[bytes, bytes]:
    """Read one response with a Content-Length; return its status line and body."""
    head = peer.read_head()
    status, _, rest = head.partition(b"\r\n")
    lengths = [
        line.split(b": ")[1] for line in rest.split(b"\r\n") if line.startswith(b"Content-Length: ")
    ]
    return status, peer.read(int(lengths[0]) if lengths else 0)


def _incomplete_requests(relay: Relay) -> int:
    """Count the connections whose request is incomplete."""
    sessions = [connection._http for connection in relay.listener._pending]
    return sum(session is not None and session.is_in_request for session in sessions)


def test_an_odd_upgrade_is_logged_once_escaped_and_cut(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    with relay.connect() as peer:
        for upgrade in (b"h\xb2c'" + b"x" * 5000, b"TLS/1.2", b"TLS/1.2"):
            peer.send(b"GET /derp HTTP/1.1\r\n" + HOST + b"Upgrade: " + upgrade + b"\r\n\r\n")
            assert read_response(peer)[0] == b"HTTP/1.1 426 Upgrade Required"
        peer.send(get("/derp"))
        assert read_response(peer)[0] == b"HTTP/1.1 426 Upgrade Required"
    (line,) = (line for line in caplog.messages if "upgrade" in line)
    assert line.endswith(r""": refused at http: odd upgrade "h\xb2c'""" + "x" * 36 + '"…')


@without_websocket
def test_pages_are_served_one_after_another_on_one_connection(relay: Relay) -> None:
    with relay.connect() as peer:
        for _ in range(3):
            peer.send(get("/derp/probe"))
            assert read_response(peer) == (b"HTTP/1.1 200 OK", b"")
        peer.send(get("/robots.txt") + get("/generate_204") + get("/derp") + get("/"))
        assert read_response(peer) == (b"HTTP/1.1 200 OK", b"User-agent: *\nDisallow: /\n")
        assert read_response(peer) == (b"HTTP/1.1 204 No Content", b"")
        assert read_response(peer) == (
            b"HTTP/1.1 426 Upgrade Required",
            b"DERP requires connection upgrade\n",
        )
        assert b"<h1>DERP</h1>" in read_response(peer)[1]
        peer.login(relay.server.public_key)
        assert peer.sync() == []


@without_websocket
def test_a_client_that_requests_close_is_closed_after_its_answer(relay: Relay) -> None:
    with relay.connect() as peer:
        peer.send(b"GET /robots.txt HTTP/1.0\r\n\r\n")
        assert peer.read_to_end().endswith(b"\r\n\r\nUser-agent: *\nDisallow: /\n")


@without_websocket
def test_a_request_with_a_body_is_answered_and_closed(relay: Relay) -> None:
    with relay.connect() as peer:
        peer.send(
            b"POST /derp/probe HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 100000\r\n\r\n"
            + b"x" * 100_000
        )
        answer = peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 405 ") and b"Connection: close\r\n" in answer


@without_websocket
@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\n" + HOST + b"\r\n", b"400", id="bare LF"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"A: b\0c\r\n\r\n", b"400", id="NUL"),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", b"400", id="folded header"
        ),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", b"400", id="two Hosts"),
        pytest.param(
            b"GET /derp HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 30_000 + b"\r\n\r\n",
            b"431",
            id="oversized head",
        ),
        pytest.param(b"\x00" * 100, b"400", id="binary"),
    ],
)
def test_a_bad_request_is_answered_closed_counted_and_logged(
    relay: Relay, request_head: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    with relay.login() as bystander, relay.connect() as peer:
        peer.send(request_head)
        answer = peer.read_to_end()
        assert answer.startswith(b"HTTP/1.1 " + status) and b"Connection: close\r\n" in answer
        assert bystander.sync() == []
    assert relay.refused() == {f"http_{status.decode()}": 1}
    assert "refused at http: " in caplog.text


@without_websocket
def test_requests_stay_in_the_kernel_while_answers_are_not_read(relay: Relay) -> None:
    before = resident_bytes()
    with relay.connect() as peer, relay.login() as bystander:
        peer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                peer.send(get("/") * 1000)
        assert bystander.sync() == []
        assert resident_bytes() - before < 32 << 20


def test_an_idle_connection_is_closed(start_relay: StartRelay) -> None:
    relay = start_relay(idle_s=1.0)
    with relay.connect() as peer:
        peer.send(get("/derp/probe"))
        assert read_response(peer)[0] == b"HTTP/1.1 200 OK"
        assert peer.is_closed()
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
    assert relay.refused() == {}


@without_websocket
def test_visitors_whose_requests_are_answered_are_no_refused_logins(relay: Relay) -> None:
    routes = relay.listener.routes.exact
    relay.call(
        routes.__setitem__, "/endless", lambda _: Response(pieces=relay.server.traffic_lines())
    )
    with relay.connect() as browser, relay.connect() as checker, relay.connect() as watcher:
        for peer in (browser, checker):
            for _ in range(2):
                peer.send(get("/derp/probe"))
                assert read_response(peer)[0] == b"HTTP/1.1 200 OK"
        watcher.send(get("/endless"))
        watcher.read_head()
        browser.send(b"GET /derp/pro")
        eventually(lambda: relay.call(_incomplete_requests, relay) == 1)
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
    # The browser's third request was incomplete.
    assert relay.refused() == {"http_end": 1}


def test_a_visitor_at_the_end_of_the_relay_is_no_refused_login(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.connect() as peer:
        peer.send(get("/derp/probe"))
        read_response(peer)
        relay.run(relay.server.close())
        assert peer.is_closed()
    assert relay.refused() == {}


def test_other_clients_are_served_during_a_slow_answer(start_relay: StartRelay) -> None:
    asked: list[asyncio.Future[Response]] = []

    def later(request: Request) -> asyncio.Future[Response]:
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    routes = relay_routes(Site())
    routes.exact["/later"] = later
    relay = start_relay(routes=routes)
    with (
        relay.connect() as waiting,
        relay.connect() as leaving,
        relay.connect() as failing,
        relay.connect() as other,
    ):
        for number, peer in enumerate((waiting, leaving, failing), 1):
            peer.send(get("/later"))
            eventually(lambda: len(asked) == number)
        other.send(get("/derp/probe"))
        assert read_response(other)[0] == b"HTTP/1.1 200 OK"
        leaving.close()
        eventually(asked[1].cancelled)
        relay.call(asked[2].set_exception, ZeroDivisionError())
        assert read_response(failing)[0] == b"HTTP/1.1 500 Internal Server Error"
        relay.call(asked[0].set_result, Response(200, b"here"))
        status, body = read_response(waiting)
        assert (status, body) == (b"HTTP/1.1 200 OK", b"here")
        assert waiting.is_closed()


def test_a_page_that_fails_answers_500_and_affects_no_other(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Request) -> Response:
        raise ZeroDivisionError

    routes = relay_routes(Site())
    routes.exact["/broken"] = broken
    relay = start_relay(routes=routes)
    with relay.connect() as peer:
        peer.send(get("/broken?debugkey=s3cret"))
        assert read_response(peer)[0] == b"HTTP/1.1 500 Internal Server Error"
        peer.send(get("/derp/probe"))
        assert read_response(peer)[0] == b"HTTP/1.1 200 OK"
    assert "no answer to GET '/broken'" in caplog.text and "ZeroDivisionError" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_one_port_serves_ipv4_and_ipv6(
    start_relay: StartRelay, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fastderp")
    relay = start_relay()
    with relay.connect(host) as peer:
        peer.login(relay.server.public_key)
        assert peer.sync() == []
    relay.wait_connected(peer.public, False)
    eventually(lambda: f"{peer.public.short} {'[::1]' if ':' in host else host}:" in caplog.text)


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    [first] = listen_sockets("127.0.0.1", 0)
    with (
        first,
        pytest.raises(
            OSError,
            match=rf"cannot listen on 127\.0\.0\.1:{first.getsockname()[1]}: "
            "Address already in use",
        ),
    ):
        listen_sockets("127.0.0.1", first.getsockname()[1])


def test_a_malformed_address_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid:1: "):
        listen_sockets("no.such.host.invalid", 1)


@pytest.mark.parametrize("user_timeout_s", [0, 12.5, 30])
def test_accepted_sockets_inherit_the_settings_of_the_listener(user_timeout_s: float) -> None:
    [listener] = listen_sockets("127.0.0.1", 0, client_options(77, user_timeout_s))
    with listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            tcp = {
                name: accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in (
                    "TCP_NODELAY",
                    "TCP_NOTSENT_LOWAT",
                    "TCP_KEEPIDLE",
                    "TCP_KEEPINTVL",
                    "TCP_KEEPCNT",
                    "TCP_USER_TIMEOUT",
                )
            }
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert tcp == {
        "TCP_NODELAY": 1, "TCP_NOTSENT_LOWAT": UNSENT_BYTES, "TCP_KEEPIDLE": 77,
        "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 9, "TCP_USER_TIMEOUT": user_timeout_s * 1000,
    }  # fmt: skip


# TLS

TLS_SETUPS = [
    Setup("TLS 1.3", "uvloop"),
    Setup("TLS 1.3", "asyncio"),
    Setup("TLS 1.2", "uvloop"),
    Setup("TLS 1.2", "asyncio"),
]


@pytest.mark.parametrize("setup", TLS_SETUPS[:2], ids=str)
def test_plain_http_on_the_tls_port_gets_an_answer_that_names_it(
    start_relay: StartRelay, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay(setup)
    with relay.connect_tcp() as peer:
        peer.send(get("/"))
        answer = peer.read_to_end()
    assert answer.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    assert answer.endswith(b"\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
    assert relay.refused() == {"tls_plain_http": 1}
    assert "refused at tls: " in caplog.text


@pytest.mark.parametrize("setup", TLS_SETUPS[:2], ids=str)
def test_a_handshake_that_fails_closes_that_connection_only_and_is_counted_and_logged(
    start_relay: StartRelay, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay(setup)
    with relay.login() as bystander:
        with relay.connect_tcp() as peer:
            peer.send(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(100))
            peer.read_to_end()
        with relay.connect_tcp() as peer:
            peer.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" + bytes(100))
            peer.read_to_end()
        context = client_context(setup)
        assert context is not None
        context.set_alpn_protocols(["h2"])
        with relay.connect_tcp() as peer, pytest.raises(ssl.SSLError):
            context.wrap_socket(peer.sock)
        assert bystander.sync() == []
    assert sum(relay.refused().values()) == 3
    assert all(reason.startswith("tls_") for reason in relay.refused())
    assert "refused at tls: " in caplog.text


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_damaged_ciphertext_before_the_login_closes_that_connection_only(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    with relay.login() as bystander, relay.connect() as peer:
        raw = socket.socket(fileno=peer.sock.detach())
        raw.settimeout(10)
        raw.sendall(b"\x17\x03\x03\x00\x30" + bytes(48))
        while raw.recv(4096):
            pass
        raw.close()
        assert bystander.sync() == []
    assert sum(relay.refused().values()) == 1


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_the_chain_ends_with_the_metacert(start_relay: StartRelay, setup: Setup) -> None:
    relay = start_relay(setup)
    arguments = [
        "-connect",
        f"127.0.0.1:{relay.port}",
        "-showcerts",
        "-tls1_3" if setup.transport == "TLS 1.3" else "-tls1_2",
    ]
    shown = subprocess.run(
        ["openssl", "s_client", *arguments], input=b"", capture_output=True, timeout=60
    ).stdout.decode()
    subjects = [line for line in shown.splitlines() if line.strip().startswith(("0 s:", "1 s:"))]
    assert "derpkey" + relay.server.public_key.hex in subjects[1]


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_the_relay_sends_close_notify_at_the_end_of_tls(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    context = client_context(setup)
    assert context is not None
    with relay.connect_tcp() as peer:
        peer.sock = context.wrap_socket(peer.sock, suppress_ragged_eofs=False)
        peer.send(b"GET /robots.txt HTTP/1.0\r\n\r\n")
        while peer.sock.recv(65536):
            pass


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_a_client_that_ends_tls_but_not_tcp_is_removed(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    with relay.login() as logged_in, relay.connect() as early:
        for peer in (logged_in, early):
            assert isinstance(peer.sock, ssl.SSLSocket)
            # It sends close_notify and then waits for the relay's, or for its end.
            with contextlib.suppress(ssl.SSLEOFError):
                peer.sock.unwrap()
    relay.wait_connected(logged_in.public, False)


def test_requests_are_counted_by_tls_version(start_relay: StartRelay) -> None:
    relay = start_relay(Setup("TLS 1.2"))
    with relay.connect() as peer:
        peer.send(get("/derp/probe"))
        read_response(peer)
    assert relay.metrics()["derper_tls_request_version"] == {"1.2": 1}
    assert relay.metrics()["tls_listener_accepted_connections"] == 1


# Embedded streams


def test_a_pair_of_streams_can_be_served_without_http(start_relay: StartRelay) -> None:
    relay = start_relay()
    served: list[asyncio.Server] = []

    async def listen() -> int:
        server = await asyncio.start_server(
            lambda r, w: relay.server.accept(r, w, w.get_extra_info("peername")), "127.0.0.1", 0
        )
        served.append(server)
        return int(server.sockets[0].getsockname()[1])

    port = relay.run(listen())
    with Peer.connect("127.0.0.1", port, None, 10) as streams, relay.login() as socket_peer:
        assert streams.read_frame()[0] == SERVER_KEY
        streams.send(client_info(streams.key, relay.server.public_key))
        streams.read_server_info(relay.server.public_key)
        socket_peer.send_packet(streams.public, b"x" * 65536)
        assert streams.read_packet() == (socket_peer.public, b"x" * 65536)
        streams.send_packet(socket_peer.public, b"y" * 65536)
        assert socket_peer.read_packet() == (streams.public, b"y" * 65536)
    relay.wait_connected(streams.public, False)
    relay.call(served[0].close)


def test_closing_the_relay_closes_every_connection(start_relay: StartRelay) -> None:
    relay = start_relay(Setup("TLS 1.2"))
    with relay.login() as peer, relay.connect() as waiting:
        waiting.send(upgrade_request(FAST_START))
        assert waiting.read_frame()[0] == SERVER_KEY
        closing = asyncio.run_coroutine_threadsafe(relay.server.close(), relay._loop)
        peer.read_to_end()
        waiting.read_to_end()
        peer.close()
        closing.result(10)
        with pytest.raises(OSError):
            relay.connect_tcp()


def test_tls_on_a_plain_port_is_named_in_the_log(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    context = client_context(Setup("TLS 1.3"))
    assert context is not None
    with relay.connect_tcp() as peer, pytest.raises(ssl.SSLError):
        context.wrap_socket(peer.sock, server_hostname="127.0.0.1")
    assert relay.refused() == {"http_400": 1}
    assert "refused at http: the client speaks TLS on a plain HTTP port" in caplog.text
