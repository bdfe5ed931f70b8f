"""Connections that end with a reset."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

import pytest

from tests.kit.peer import PING, Peer, frame, upgrade_request
from tests.kit.relay import EVERY_SETUP, Relay, Setup, eventually, without_websocket

StartRelay = Callable[..., Relay]


def _reset(peer: Peer) -> None:
    """Close with RST, like a killed process with unread data."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@pytest.mark.parametrize("setup", EVERY_SETUP, ids=str)
def test_a_reset_right_behind_unread_data_ends_the_connection_at_every_stage(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    for _ in range(10):
        early, logged_in = relay.connect(), relay.login()
        early.send(upgrade_request() + frame(2, b"x" * 40_000)[:30_000])
        logged_in.send(frame(PING, b"x" * 8) + frame(0x77, bytes(50_000)) * 2)
        _reset(early)
        _reset(logged_in)
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
    eventually(lambda: relay.metrics()["derp_current_connections"] == 0)
    eventually(lambda: relay.call(lambda: len(relay.server._registrar.bridges)) == 0)


@without_websocket
def test_a_reset_before_the_login_is_counted_and_not_logged(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    early = relay.connect()
    early.send(b"GET /generate_204 HTTP/1.1\r\n")
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 1)
    _reset(early)
    eventually(lambda: relay.refused() == {"http_reset": 1})
    assert "refused" not in caplog.text
