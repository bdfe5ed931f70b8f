"""CONNECT through the relay (ACE): permitted targets and their cost. PROTOCOL §9.8."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from fastderp.net import connect
from fastderp.net.lookup import Address
from fastderp.server.admission.limits import AddressLimit, Limits
from fastderp.server.http import tunnel
from fastderp.server.http.tunnel import Target, Tunnels
from fastderp.server.net import pump
from fastderp.server.observe.supervisor import Supervisor
from fastderp.util.token_bucket import TokenBucket
from tests.kit.descriptors import n_descriptors
from tests.kit.peer import Peer
from tests.kit.relay import LOOPS, PATIENCE_S, Relay, Setup, eventually
from tests.kit.silent import silent_server

StartRelay = Callable[..., Relay]

TLS_SETUPS = [Setup(transport, loop) for transport in ("TLS 1.2", "TLS 1.3") for loop in LOOPS]
CONNECT = b"CONNECT control.tailscale.com:443 HTTP/1.1\r\nHost: control.tailscale.com:443\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"


class Control:
    """A listening socket in the place of the control server, and the relay's dial to it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.wanted: list[Target] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    async def dial(self, target: Target) -> socket.socket:
        """Connect to it for any target, once the test permits it."""
        self.wanted.append(target)
        await asyncio.to_thread(self.may_answer.wait, PATIENCE_S)
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.getsockname())
        return sock

    def accept(self) -> Peer:
        """Accept the relay's connection."""
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE_S)
        return Peer(sock)


@pytest.fixture
def control() -> Iterator[Control]:
    control = Control()
    yield control
    control.may_answer.set()
    control.listener.close()


def taken(relay: Relay, control: Control, more: bytes = b"") -> tuple[Peer, Peer]:
    """Open a tunnel to the control server; return both ends of it."""
    client = relay.connect()
    client.send(CONNECT + more)
    server = control.accept()
    assert client.read(len(ESTABLISHED)) == ESTABLISHED
    return client, server


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_bytes_pass_both_ways_unchanged(
    start_relay: StartRelay, control: Control, setup: Setup
) -> None:
    relay = start_relay(setup, tunnels=Tunnels(control.dial))
    client, server = taken(relay, control, b"said at once")
    with client, server:
        assert server.read(12) == b"said at once"
        assert control.wanted == [Target("control.tailscale.com", 443)]
        for sender, receiver in ((client, server), (server, client)):
            data = os.urandom(2_000_000)
            thread = threading.Thread(target=sender.send, args=(data,))
            thread.start()
            assert receiver.read(len(data)) == data
            thread.join()


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
def test_the_end_of_one_side_ends_the_other_and_no_earlier_byte_is_lost(
    start_relay: StartRelay, control: Control, setup: Setup
) -> None:
    tunnels = Tunnels(control.dial)
    relay = start_relay(setup, tunnels=tunnels)
    data = os.urandom(300_000)
    client, server = taken(relay, control)
    with client, server:
        server.send(data)
        server.close()
        assert client.read_to_end() == data
    client, server = taken(relay, control)
    with client, server:
        client.send(data)
        client.close()
        assert server.read_to_end() == data
    eventually(lambda: tunnels.metrics()["fastderp_ace_tunnels"] == 0)
    assert tunnels.metrics()["fastderp_ace_connects_total"] == {"connected": 2}


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("control.tailscale.com:443", True),
        ("login.tailscale.com:80", True),
        ("a.b.tailscale.com:443", True),
        ("tailscale.com:443", False),
        ("control.tailscale.com:22", False),
        ("control.tailscale.com", False),
        ("derp1.tailscale.com:443", False),
        ("my-derp.tailscale.com:443", False),
        ("DERP1.tailscale.com:443", False),
        ("control.tailscale.com.evil.example:443", False),
        ("eviltailscale.com:443", False),
        ("evil.example/.tailscale.com:443", False),
        ("user@control.tailscale.com:443", False),
        ("[::1]:443", False),
        ("control.tailscale.com:0443", False),
    ],
)
def test_only_control_servers_of_the_vendor_are_targets(target: str, allowed: bool) -> None:
    assert (Target.parse(target) is not None) is allowed


def answer(relay: Relay, request: bytes) -> tuple[bytes, bytes]:
    """Return status line and body of an answer."""
    with relay.connect() as client:
        client.send(request)
        head, _, body = client.read_to_end().partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], body


def test_other_targets_are_refused_and_not_dialled(
    start_relay: StartRelay, control: Control
) -> None:
    relay = start_relay(Setup("TLS 1.3"), tunnels=Tunnels(control.dial))
    refused = answer(relay, CONNECT.replace(b"control", b"derp1"))
    assert refused == (b"HTTP/1.1 403 Forbidden", b"Invalid CONNECT target\n")
    assert control.wanted == []


def test_without_tunnels_and_without_tls_connect_is_refused(
    start_relay: StartRelay, control: Control
) -> None:
    assert answer(start_relay(Setup("TLS 1.3")), CONNECT) == (
        b"HTTP/1.1 403 Forbidden",
        b"CONNECT not enabled\n",
    )
    plain = start_relay(Setup("plain"), tunnels=Tunnels(control.dial))
    assert answer(plain, CONNECT)[0] == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "refused"), socket.gaierror(-2, "no such name"), TimeoutError()],
)
def test_a_target_that_cannot_be_reached_is_a_502(start_relay: StartRelay, error: OSError) -> None:
    async def dial(target: Target) -> socket.socket:
        raise error

    tunnels = Tunnels(dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    assert answer(relay, CONNECT) == (b"HTTP/1.1 502 Bad Gateway", b"Connect failure\n")
    assert tunnels.metrics()["fastderp_ace_connects_total"] == {"failed": 1}


def test_an_internal_error_of_the_dial_is_a_502_and_is_counted(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "supervisor", supervisor := Supervisor())

    async def dial(target: Target) -> socket.socket:
        raise ZeroDivisionError

    tunnels = Tunnels(dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    assert answer(relay, CONNECT) == (b"HTTP/1.1 502 Bad Gateway", b"Connect failure\n")
    assert tunnels.metrics()["fastderp_ace_connects_total"] == {"failed": 1}
    assert supervisor.metrics() == {"fastderp_internal_errors_total": {"tunnel": 1}}


def test_a_target_that_does_not_answer_ends_in_a_timeout(
    start_relay: StartRelay, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "DIAL_S", 0.05)

    async def dial(target: Target) -> socket.socket:
        await asyncio.Event().wait()
        raise AssertionError

    assert (
        answer(start_relay(Setup("TLS 1.3"), tunnels=Tunnels(dial)), CONNECT)[0]
        == b"HTTP/1.1 502 Bad Gateway"
    )


def test_every_address_of_the_target_is_tried(start_relay: StartRelay, control: Control) -> None:
    port = control.listener.getsockname()[1]
    relay = start_relay(Setup("TLS 1.3"))
    # On most systems localhost is ::1 first, where no socket listens.
    relay.run(tunnel.dial(Target("localhost", port))).close()
    control.accept().close()
    with pytest.raises(OSError):
        relay.run(tunnel.dial(Target("no-such-name.invalid", port)))


def test_a_silent_address_of_the_target_delays_the_next_briefly(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_server() as silent:

        async def look_up(*_: object) -> list[Address]:
            addresses = (silent, control.listener.getsockname())
            return [(socket.AF_INET, address) for address in addresses]

        monkeypatch.setattr(connect, "look_up", look_up)
        dial = tunnel.dial(Target("control.tailscale.com", 443))
        asyncio.run(asyncio.wait_for(dial, tunnel.DIAL_S / 2)).close()
    control.accept().close()


def test_a_client_that_leaves_during_the_dial_leaves_no_state(
    start_relay: StartRelay, control: Control
) -> None:
    control.may_answer.clear()
    tunnels = Tunnels(control.dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    with relay.connect() as client:
        client.send(CONNECT)
        eventually(lambda: control.wanted)
    control.may_answer.set()
    with control.accept() as server:
        assert server.read_to_end() == b""
    eventually(
        lambda: (
            tunnels.metrics()
            == {"fastderp_ace_tunnels": 0, "fastderp_ace_connects_total": {"connected": 1}}
        )
    )


def test_a_side_that_does_not_read_makes_the_other_wait(
    start_relay: StartRelay, control: Control
) -> None:
    relay = start_relay(Setup("TLS 1.3"), tunnels=Tunnels(control.dial, TokenBucket(1e12, 1e12)))
    client, server = taken(relay, control)
    with client, server:
        server.sock.setblocking(False)
        n_sent = 0
        piece = bytes(65536)
        while select.select([], [server.sock], [], 0.5)[1] and n_sent < 64_000_000:
            n_sent += server.sock.send(piece)
        assert n_sent < 32_000_000, "the kernel's buffers are the only ones"


def test_bytes_of_all_tunnels_together_are_limited_and_logins_are_not_delayed(
    start_relay: StartRelay, control: Control
) -> None:
    # The first read uses up the budget, which takes far longer than the test to refill.
    relay = start_relay(Setup("TLS 1.3"), tunnels=Tunnels(control.dial, TokenBucket(1e-3, 4096)))
    client, server = taken(relay, control)
    with client, server:
        server.send(b"x" * 4000)
        assert client.read(4000) == b"x" * 4000
        server.send(b"y")
        assert client.read(1) == b"y"
        server.send(b"z" * 1000)
        with relay.login() as peer:
            peer.sync()
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.sock.recv(1000)


def test_no_more_tunnels_than_allowed_and_again_when_one_has_ended(
    start_relay: StartRelay, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "TUNNELS_LIMIT", 1)
    tunnels = Tunnels(control.dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    client, server = taken(relay, control)
    with client, server:
        assert answer(relay, CONNECT)[0] == b"HTTP/1.1 502 Bad Gateway"
    eventually(lambda: tunnels.metrics()["fastderp_ace_tunnels"] == 0)
    for end in taken(relay, control):
        end.close()
    assert tunnels.metrics()["fastderp_ace_connects_total"] == {"connected": 2, "refused": 1}


def test_a_tunnel_counts_among_the_connections_of_its_address_until_its_end(
    start_relay: StartRelay, control: Control
) -> None:
    tunnels = Tunnels(control.dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    relay.call(relay.server.set_limits, Limits(address=AddressLimit(connections=1)))
    for n_refused in (1, 2):
        client, server = taken(relay, control)
        with client, server, relay.connect_tcp() as refused:
            assert refused.is_closed()
        assert relay.refused() == {"accept_address": n_refused}
        eventually(lambda: tunnels.metrics()["fastderp_ace_tunnels"] == 0)


@pytest.mark.parametrize("setup", TLS_SETUPS, ids=str)
@pytest.mark.parametrize("failing", ["answer", "begin"])
def test_a_tunnel_that_cannot_begin_leaves_neither_side_nor_its_place(
    start_relay: StartRelay,
    control: Control,
    monkeypatch: pytest.MonkeyPatch,
    setup: Setup,
    failing: str,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    tunnels = Tunnels(control.dial)
    relay = start_relay(setup, tunnels=tunnels)
    relay.call(relay.server.set_limits, Limits(address=AddressLimit(connections=1)))
    n_before = n_descriptors()
    with monkeypatch.context() as broken:
        if failing == "answer":
            broken.setattr(tunnel, "ESTABLISHED", None)
        else:
            broken.setattr(pump.Pump, "_go_on", fail)
        with relay.connect() as client:
            client.send(CONNECT)
            with control.accept() as server:
                assert server.is_closed()
                client.read_to_end()
    eventually(lambda: n_descriptors() <= n_before)
    assert tunnels.metrics()["fastderp_ace_tunnels"] == 0
    for end in taken(relay, control):
        end.close()


def test_an_idle_tunnel_ends(
    start_relay: StartRelay, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "IDLE_S", 0.05)
    relay = start_relay(Setup("TLS 1.3"), tunnels=Tunnels(control.dial))
    client, server = taken(relay, control)
    with client, server:
        assert server.read_to_end() == b""
        assert client.read_to_end() == b""


def test_tunnels_end_with_the_relay(start_relay: StartRelay, control: Control) -> None:
    tunnels = Tunnels(control.dial)
    relay = start_relay(Setup("TLS 1.3"), tunnels=tunnels)
    client, server = taken(relay, control)
    with client, server:
        relay.call(tunnels.close)
        assert server.is_closed()
