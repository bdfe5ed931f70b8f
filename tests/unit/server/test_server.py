"""The relay's event loop, the reports of the data plane and the sockets of listeners."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fastderp import HTTPClient, ListenError, NodePrivate
from fastderp.errors import WrongLoopError
from fastderp.server import server
from fastderp.server.server import Server
from fastderp.wire.keys import MeshKey
from fastderp.wire.protocol import FrameType, frame
from tests.kit.descriptors import n_descriptors
from tests.kit.plane import PlanePeer


def test_a_flood_of_mesh_frames_is_spread_over_many_iterations_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_frames = 2000
    handled: list[int] = []

    async def flood() -> None:
        async with Server(mesh_key=MeshKey(os.urandom(32)), workers=1) as relay:
            turn = 0

            def received(_: Any) -> bool:
                handled.append(turn)
                return True

            monkeypatch.setattr(relay._region, "received", received)
            mesh = PlanePeer(relay._plane, mesh=True)
            mesh.write(frame(FrameType.CLOSE_PEER, bytes(32)) * n_frames)
            mesh.sync()  # all of them wait for the loop, which this call has blocked
            while len(handled) < n_frames:
                await asyncio.sleep(0)
                turn += 1
            mesh.close()

    asyncio.run(asyncio.wait_for(flood(), 10))
    assert max(Counter(handled).values()) <= 256


def options_of_the_connection_to(port: int) -> list[int]:
    """Return the TCP options of this process's connected socket whose peer has a port."""
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with sock:
            try:
                found = sock.getpeername()[1] == port
            except (OSError, IndexError):
                continue
            if found:
                keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                names = (socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT, socket.TCP_USER_TIMEOUT)
                return [keepalive, *(sock.getsockopt(socket.IPPROTO_TCP, one) for one in names)]
    raise AssertionError(f"no connection to port {port}")


def test_connections_that_an_inherited_socket_had_queued_get_the_options_of_later_ones() -> None:
    async def compare() -> None:
        inherited = socket.create_server(("127.0.0.1", 0))
        inherited.setblocking(False)
        address = inherited.getsockname()
        early = [socket.create_connection(address) for _ in range(3)]
        async with Server(workers=1) as relay:
            listener = relay.listen([inherited], user_timeout_s=7)
            while listener.n_accepted < len(early):
                await asyncio.sleep(0)
            late = socket.create_connection(address)
            while listener.n_accepted < len(early) + 1:
                await asyncio.sleep(0)
            for client in (*early, late):
                options = options_of_the_connection_to(client.getsockname()[1])
                assert options == [1, 1, 128 * 1024, 7000]
                client.close()

    asyncio.run(asyncio.wait_for(compare(), 30))


async def test_connections_that_refuse_the_options_of_later_ones_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(sock: socket.socket) -> None:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(server, "client_options", lambda *_: prepare)
    inherited = socket.create_server(("127.0.0.1", 0))
    inherited.setblocking(False)
    early = [socket.create_connection(inherited.getsockname()) for _ in range(2)]
    async with Server(workers=1) as relay:
        listener = relay.listen([inherited])
        async with asyncio.timeout(10):
            while listener.n_accepted < len(early):
                await asyncio.sleep(0)
        for client in early:
            client.close()


async def test_closed_relays_hold_no_descriptor_even_before_a_garbage_collection() -> None:
    gc.disable()
    try:
        n_before = n_descriptors()
        relays = [Server(workers=2) for _ in range(2)]
        port = relays[0].listen("127.0.0.1", 0).port
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: .* in use") as caught:
            relays[1].listen("127.0.0.1", port)
        assert isinstance(caught.value, OSError) and caught.value.errno == errno.EADDRINUSE
        async with HTTPClient(f"http://127.0.0.1:{port}/derp", NodePrivate.generate()):
            for relay in relays:
                await relay.close()
        await asyncio.sleep(0)
        assert n_descriptors() == n_before
        # What a program may still ask a closed relay.
        assert relays[0].clients() == [] and relays[0].stuck_workers() == []
        assert relays[0].metrics()["derp_accepts"] == 1
    finally:
        gc.enable()


async def test_use_of_a_relay_in_another_loop_raises_and_changes_nothing() -> None:
    async with Server(workers=1) as relay:

        async def use() -> None:
            with pytest.raises(WrongLoopError, match="the relay belongs to another event loop"):
                relay.listen("127.0.0.1", 0)
            with pytest.raises(WrongLoopError):
                await relay.close()
            with pytest.raises(WrongLoopError):
                await relay.drain(0)

        await asyncio.to_thread(asyncio.run, use())
        assert relay.listeners == []
        relay.listen("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"private_key": "privkey:" + "11" * 32}, r"private_key must be .*NodePrivate\.from_text"),
        ({"mesh_key": "11" * 32}, r"mesh_key must be a MeshKey.*MeshKey\.from_text"),
        ({"mesh_key": [MeshKey(b"1" * 32), b"2" * 32]}, "mesh_key must be a MeshKey, not bytes"),
        ({"disallowed_app_names": "spam"}, "a collection of names, not one str"),
    ],
)
async def test_a_key_or_a_list_of_names_given_as_a_text_is_refused_and_not_quoted(
    arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint) as caught:
        Server(workers=1, **arguments)
    assert "1111" not in str(caught.value)


async def test_a_mesh_key_assigned_as_a_text_is_refused_and_changes_nothing() -> None:
    async with Server(workers=1, mesh_key=MeshKey(b"1" * 32)) as relay:
        text: Any = "11" * 32
        with pytest.raises(TypeError, match=r"MeshKey\.from_text"):
            relay.mesh_key = text
        with pytest.raises(TypeError, match=r"MeshKey\.from_text"):
            relay.mesh_keys = text
        assert relay.mesh_keys == [MeshKey(b"1" * 32)]


@pytest.mark.parametrize("kind", ["SSLContext", "str"])
async def test_another_library_s_tls_context_is_refused_before_anything_listens(kind: str) -> None:
    tls: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if kind == "SSLContext" else "relay.pem"
    relay = Server(workers=1)
    with pytest.raises(TypeError, match=f"tls must be .*ServerContext or .*, not {kind}"):
        relay.listen("127.0.0.1", 0, tls=tls)
    assert relay.listeners == []
    await relay.close()


async def test_a_listener_shows_its_address() -> None:
    async with Server(workers=1) as relay:
        listener = relay.listen("127.0.0.1", 0)
        assert repr(listener) == f"<Listener on 127.0.0.1:{listener.port}>"


KEY = NodePrivate.generate()
TEXT = KEY.public_key.text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"private_key": KEY.text}, "private_key must be a NodePrivate, not str; "),
        ({"mesh_key": "a" * 64}, "mesh_key must be a MeshKey, not str; "),
        ({"watched_drops": [TEXT]}, "watched_drops must be a NodePublic, not str; "),
        ({"watched_drops": TEXT}, "watched_drops must be a NodePublic, not str; "),
        ({"disallowed_app_names": "ci"}, "disallowed_app_names must be a collection of names"),
        ({"verify": True}, "verify must be an async function, not bool"),
        ({"rate_limit": 1000}, "rate must be a RateLimit, not int"),
        ({"workers": "2"}, "workers must be a whole number, not str"),
        ({"workers": 1.5}, "workers must be a whole number, not float"),
        ({"queue_packets": 64.0}, "queue_packets must be a whole number, not float"),
        ({"login_memory_bytes": 1e9}, "login_memory_bytes must be a whole number, not float"),
        ({"login_timeout": "10s"}, "login_timeout must be a number, not str"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_of_another_type_is_named(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(TypeError, match=error):
        Server(**arguments)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda relay: relay.listen("127.0.0.1", "80"), "port must be a whole number, not str"),
        (lambda relay: relay.is_client_connected(TEXT), "key must be a NodePublic, not str; "),
        (lambda relay: relay.add_packet_forwarder(TEXT, None), "key must be a NodePublic"),
        (lambda relay: relay.set_rate_limit(1000), "rate must be a RateLimit, not int"),
        (lambda relay: relay.set_limits(1000), "limits must be a Limits, not int"),
        (lambda relay: relay.set_mesh_peers("a.test"), "peers must be a list of members"),
        (lambda relay: setattr(relay, "verify", 1), "verify must be an async function, not int"),
    ],
    ids=["port", "connected", "forwarder", "rate", "limits", "members", "verify"],
)
async def test_a_call_with_another_type_is_refused(
    call: Callable[[Server], object], error: str
) -> None:
    async with Server(workers=1, mesh_key=MeshKey.generate()) as relay:
        with pytest.raises(TypeError, match=error):
            call(relay)
        assert relay.rate_limit is None and relay.verify is None
