"""A relay sends its clients away: announcement, waves, what waits for them. PROTOCOL §6.11."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from fastderp.errors import ConnectionClosed
from fastderp.server.accept import listener as listener_module
from fastderp.server.server import Server
from fastderp.wire.keys import MeshKey
from tests.kit.peer import RECV, RESTARTING, Peer, client_info, upgrade_request
from tests.kit.ports import is_served
from tests.kit.relay import EVERY_SETUP, Relay, Setup, eventually
from tests.kit.streams import StreamPair

StartRelay = Callable[..., Relay]


def draining(relay: Relay, seconds: float) -> Future[None]:
    """Start a drain; it has begun when this returns."""
    future = asyncio.run_coroutine_threadsafe(relay.server.drain(seconds), relay._loop)
    eventually(lambda: future.done() or relay.call(relay.server.unready))
    return future


def restarting(peer: Peer) -> tuple[float, float]:
    """Read the announcement; return when to come back, and for how long to try."""
    frame_type, payload = peer.read_frame()
    assert frame_type == RESTARTING
    wait_ms, try_ms = struct.unpack(">II", payload)
    return wait_ms / 1000, try_ms / 1000


def page(relay: Relay, path: str) -> str:
    """Return the status line of a page."""
    with relay.connect() as browser:
        browser.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return browser.read_head().split(b"\r\n")[0].decode()


@pytest.mark.parametrize("setup", EVERY_SETUP, ids=str)
def test_every_client_is_told_when_to_come_back_before_its_session_closes(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    peers = [relay.login() for _ in range(4)]
    drained = draining(relay, 0.5)
    times = [restarting(peer) for peer in peers]
    assert len({wait_s for wait_s, _ in times}) == 4
    assert all(0 < wait_s <= 0.4 and 5 <= wait_s + try_s <= 5.5 for wait_s, try_s in times)
    for peer in peers:
        with pytest.raises(EOFError):
            peer.read_frame()
        peer.close()
    drained.result(10)
    eventually(lambda: relay.metrics()["derp_current_connections"] == 0)


def test_what_waits_for_a_client_arrives_before_its_session_closes(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(Setup("TLS 1.3"))
    sender, receiver = relay.login(), relay.login()
    n = 0
    while not relay.metrics()["fastderp_backlog_bytes"]:
        sender.send_packet(receiver.public, n.to_bytes(1400, "big"))
        n += 1
    drained = draining(relay, 1.0)
    numbers = []
    with pytest.raises(EOFError):
        while True:
            frame_type, payload = receiver.read_frame()
            if frame_type == RECV:
                numbers.append(int.from_bytes(payload[32:], "big"))
    assert numbers == list(range(n))
    for peer in (sender, receiver):
        peer.close()
    drained.result(10)


def test_probes_and_new_logins_get_503_while_the_relay_drains(start_relay: StartRelay) -> None:
    relay = start_relay()
    assert page(relay, "/derp/probe") == "HTTP/1.1 200 OK"
    assert page(relay, "/readyz") == "HTTP/1.1 200 OK"
    with relay.login() as peer:
        drained = draining(relay, 600)
        restarting(peer)
        for path in ("/derp/probe", "/derp/latency-check", "/readyz", "/derp"):
            assert page(relay, path) == "HTTP/1.1 503 Service Unavailable"
        assert page(relay, "/healthz") == "HTTP/1.1 200 OK"
        with relay.connect() as newcomer:
            newcomer.send(upgrade_request())
            assert newcomer.read_head().startswith(b"HTTP/1.1 503 ")
        assert relay.refused()["http_503"] == 2
        assert peer.sync() == [], "its session goes on"
    drained.result(10)


def test_a_drain_ends_early_when_all_clients_are_gone(start_relay: StartRelay) -> None:
    relay = start_relay()
    peer = relay.login()
    drained = draining(relay, 600)
    assert not drained.done()
    peer.close()
    drained.result(10)


def test_a_login_that_had_begun_is_drained_like_the_others(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.login(), relay.connect() as late:
        late.upgrade(relay.server.public_key)
        draining(relay, 600)
        late.send(client_info(late.key, relay.server.public_key))
        late.read_server_info(relay.server.public_key)
        wait_s, _ = restarting(late)
        assert 0 <= wait_s <= 480


def test_a_relay_whose_region_has_another_one_refuses_connections(
    start_relay: StartRelay,
) -> None:
    secret = MeshKey.generate()
    leaving, staying = start_relay(mesh_key=secret), start_relay(mesh_key=secret)
    leaving.call(leaving.server.set_mesh_peers, [f"http://127.0.0.1:{staying.port}"])
    eventually(lambda: leaving.call(lambda: leaving.server._region.mesh.has_other_relays))
    with leaving.login() as peer, staying.login() as other:
        eventually(
            lambda: other.public.raw in leaving.call(lambda: leaving.server._region.announced)
        )
        drained = draining(leaving, 600)
        restarting(peer)
        eventually(lambda: not is_served(leaving.port))
        peer.send_packet(other.public, b"over the link")
        assert other.read_packet() == (peer.public, b"over the link")
        peer.close()
        drained.result(10)


async def test_an_embedded_stream_is_refused_while_the_relay_drains() -> None:
    async with Server(workers=1) as server:
        await server.drain(1.0)
        pair = StreamPair()
        with pytest.raises(ConnectionClosed, match="stopping"):
            await server.accept(pair.relay_reads, pair.relay_writes)
        assert pair.relay_writes.is_closed


async def test_a_second_drain_waits_for_the_first_and_a_closed_relay_drains_no_more() -> None:
    server = Server(workers=1)
    await asyncio.gather(server.drain(0.1), server.drain(600))
    await server.close()
    with pytest.raises(ConnectionClosed):
        await server.drain(1.0)
    with pytest.raises(ValueError, match="seconds: want 0 to 1h, not -1"):
        await Server(workers=1).drain(-1)


async def test_ports_that_close_during_a_shortage_of_descriptors_cause_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_descriptor(listening: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    loop = asyncio.get_running_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    monkeypatch.setattr(listener_module, "accept", no_descriptor)
    monkeypatch.setattr(listener_module, "HANDSHAKES_S", 0.0)
    async with Server(workers=1) as relay:
        listener = relay.listen("127.0.0.1", 0, reuse_port=True)
        with socket.create_connection(("127.0.0.1", listener.port)):
            while not relay.metrics()["fastderp_accept_shortages_total"]:
                await asyncio.sleep(0)
            await relay.drain(0.1)
        retried = loop.create_future()
        loop.call_later(listener_module.SHORTAGE_PAUSE_S, retried.set_result, None)
        await retried
    assert errors == []
