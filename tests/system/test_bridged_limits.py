"""Promises about slow readers hold on every transport. RELIABILITY F7–F9, F40."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from fastderp.server.accept import bridge
from tests.kit.descriptors import n_descriptors
from tests.kit.peer import SEND, Peer, frame
from tests.kit.relay import RAW_TRANSPORTS, WEBSOCKETS, Relay, Setup, eventually

StartRelay = Callable[..., Relay]

EVERY_TRANSPORT = [Setup(transport) for transport in (*RAW_TRANSPORTS, *WEBSOCKETS)]
BRIDGED = [setup for setup in EVERY_TRANSPORT if setup.transport not in ("plain", "TLS 1.3")]

# Bytes that the relay's kernel holds for one client, and that this client's kernel takes at least.
KERNEL_BYTES = 256 << 10
RECEIVE_BYTES = 64 << 10


def login_with_a_small_window(relay: Relay) -> Peer:
    """Log in a client with a small receive buffer."""
    peer = relay.login()
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return peer


@pytest.mark.parametrize("setup", EVERY_TRANSPORT, ids=str)
def test_a_client_that_does_not_read_holds_little_in_the_kernel(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup, write_timeout=0)
    with relay.login() as sender, login_with_a_small_window(relay) as frozen:
        packets = b"".join(frame(SEND, frozen.public.raw + bytes(1400)) for _ in range(100))
        for _ in range(60):
            sender.send(packets)
        sender.sync()
        metrics = relay.metrics()
        assert metrics["derp_packets_received"] == 6000
        assert metrics["derp_bytes_sent"] <= KERNEL_BYTES + RECEIVE_BYTES


@pytest.mark.parametrize("setup", BRIDGED, ids=str)
def test_a_client_that_never_reads_is_closed_at_the_write_deadline_and_not_later(
    start_relay: StartRelay, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay waits for the delivery of a close only with clients that read."""
    monkeypatch.setattr(bridge, "DRAIN_S", 600.0)
    relay = start_relay(setup, write_timeout=0.2)
    with relay.login() as sender:
        n_before = n_descriptors()
        frozen = login_with_a_small_window(relay)
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                sender.send_packet(frozen.public, bytes(20_000))

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            relay.wait_connected(frozen.public, False)
            # Only the client's own end of the connection is left.
            eventually(lambda: n_descriptors() <= n_before + 1)
        finally:
            stop.set()
            flooder.join()
            frozen.close()
        assert relay.metrics()["derp_sclient_write_timeouts"] == 1
        # The close of the other sessions must not delay the end of the test.
        monkeypatch.setattr(bridge, "DRAIN_S", 0.1)
