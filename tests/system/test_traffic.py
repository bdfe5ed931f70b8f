"""Traffic and round trips of connections, as a relay shows them. PROTOCOL §6.10, §14."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.server.observe.traffic import BytesSentRecv
from fastderp.wire.keys import NodePublic
from tests.kit.command import relay as command
from tests.kit.http_heads import get
from tests.kit.peer import Peer, client_info
from tests.kit.relay import Relay, Setup, eventually

StartRelay = Callable[..., Relay]


@pytest.mark.parametrize(
    "transport", ["plain", "TLS 1.2", "TLS 1.3", "WebSocket", "WebSocket over TLS 1.2"]
)
def test_traffic_grows_with_what_a_client_sends(start_relay: StartRelay, transport: str) -> None:
    relay = start_relay(Setup(transport))

    async def until_sent(key: NodePublic, n_bytes: int) -> BytesSentRecv:
        async with asyncio.timeout(10):
            async for one in relay.server.debug_traffic(0.05):
                if one.key == key and one.recv + one.sent >= n_bytes:
                    return one
        raise AssertionError

    with relay.login() as sender, relay.login() as receiver:
        for _ in range(10):
            sender.send_packet(receiver.public, bytes(10_000))
            receiver.read_packet()
        # Frame headers, keys and all earlier bytes count.
        assert relay.run(until_sent(sender.public, 100_000)).recv > 100_370
        received = relay.run(until_sent(receiver.public, 100_000))
        assert received.sent > 100_370
        assert received.unique_senders == 1


def test_the_page_continues_until_its_reader_leaves(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1", "-c", str(tmp_path / "key"))
    with command(*flags) as running:
        public = running.public_key
        with (
            socket.create_connection(("127.0.0.1", running.port), 10) as page,
            Peer.connect("127.0.0.1", running.port, None, 10) as peer,
        ):
            page.sendall(b"GET /debug/traffic HTTP/1.1\r\nHost: x\r\n\r\n")
            lines = page.makefile("rb")
            assert lines.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = {line.split(b":")[0].lower() for line in iter(lines.readline, b"\r\n")}
            assert b"content-length" not in headers
            peer.upgrade(public)
            peer.send(client_info(peer.key, public))
            peer.read_server_info(public)
            shown = next(json.loads(line) for line in lines if line != b"\n")
            assert shown["Key"] == peer.public.text and shown["Recv"] > 0
            lines.close()
        code, said = running.stop()
        assert code == 0 and "Traceback" not in said


def shown_round_trip_us(relay: Relay) -> int | None:
    """Return the round-trip time of the only client on the page of clients."""
    answer = relay.server.clients_page().respond(get("/debug/clients/?all=1&format=json"))
    [client] = json.loads(answer.body)["clients"]
    found: int | None = client["rttMicros"]
    return found


def test_round_trips_are_sampled_and_shown_on_every_transport_but_websockets(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.observe.maintenance.INTERVAL_S", 0.02)
    for transport in ("plain", "TLS 1.2", "TLS 1.3"):
        relay = start_relay(Setup(transport))
        with relay.login():
            eventually(lambda: sum(relay.metrics()["derp_tcp_rtt"].values()) > 3)
            assert 0 < (shown_round_trip_us(relay) or 0) < 1_000_000
        assert "non-tcp" not in relay.metrics()["derp_tcp_rtt"]
    for transport in ("WebSocket", "WebSocket over TLS 1.2"):
        relay = start_relay(Setup(transport))
        with relay.login():
            eventually(lambda: relay.metrics()["derp_tcp_rtt"])
            assert shown_round_trip_us(relay) is None
            relay.login().close()
            eventually(lambda: relay.metrics()["fastderp_session_closed_total"])
        assert relay.metrics()["derp_tcp_rtt"].keys() == {"non-tcp"}
        assert 1 <= relay.metrics()["derp_tcp_rtt"]["non-tcp"] <= 2
