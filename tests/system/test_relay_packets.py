"""Frames between logged-in clients and the relay. PROTOCOL §5, §6.3–§6.7."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from fastderp.server.accept import duplicate_keys
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from tests.kit.peer import (
    CLOSE_PEER,
    DISCO,
    FORWARD,
    GONE,
    KEEP_ALIVE,
    PING,
    PONG,
    PREFERRED,
    RECV,
    RESTARTING,
    SEND,
    WATCH,
    Peer,
    frame,
)
from tests.kit.relay import PATIENCE_S, Relay, Setup, eventually

StartRelay = Callable[..., Relay]

MAX_PACKET = 65536
DISCO_PACKET = DISCO + bytes(32 + 24)


# Delivery


def test_packets_reach_the_addressed_peer_only_and_name_their_sender(relay: Relay) -> None:
    with relay.login() as a, relay.login() as b, relay.login() as c:
        a.send_packet(b.public, b"to b")
        b.send_packet(c.public, b"to c")
        assert b.read_packet() == (a.public, b"to b")
        assert c.read_packet() == (b.public, b"to c")
        assert a.sync() == b.sync() == c.sync() == []


@pytest.mark.parametrize("size", [0, 1, 1400, 16384, 65535, MAX_PACKET])
def test_packets_of_every_legal_size_arrive_whole(relay: Relay, size: int) -> None:
    data = os.urandom(size)
    with relay.login() as a, relay.login() as b:
        a.send_packet(b.public, data)
        assert b.read_packet() == (a.public, data)


def test_packets_arrive_in_order_in_any_pieces(relay: Relay) -> None:
    packets = [os.urandom(size % 1500) for size in range(0, 30_000, 301)]
    with relay.login() as a, relay.login() as b:
        stream = b"".join(frame(SEND, b.public.raw + data) for data in packets)

        def send_in_pieces() -> None:
            for i in range(0, len(stream), 977):
                a.send(stream[i : i + 977])

        sender = threading.Thread(target=send_in_pieces)
        sender.start()
        assert [b.read_packet() for _ in packets] == [(a.public, data) for data in packets]
        sender.join()


def test_a_client_may_send_to_itself(relay: Relay) -> None:
    with relay.login() as peer:
        peer.send_packet(peer.public, b"note to self")
        assert peer.read_packet() == (peer.public, b"note to self")


def test_packets_received_and_sent_are_counted(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.login() as a, relay.login() as b:
        a.send_packet(b.public, b"x" * 100)
        a.send_packet(b.public, DISCO_PACKET)
        a.send_packet(NodePrivate.generate().public_key, b"x" * 10)
        a.sync()
        b.sync()
        metrics = relay.metrics()
    assert metrics["derp_packets_received"] == 3
    assert metrics["derp_packets_received_kind"] == {"disco": 1, "other": 2}
    assert metrics["derp_bytes_received"] == 172
    assert (metrics["derp_packets_sent"], metrics["derp_bytes_sent"]) == (2, 162)
    assert metrics["derp_packets_dropped"][("unknown_dest", "other")] == 1
    assert metrics["derp_bytes_dropped"][("unknown_dest", "other")] == 10


_TALKERS = """
import sys, time
from fastderp.wire.keys import NodePublic
from tests.kit.peer import SEND, RECV, Peer, frame
from tests.kit.relay import Setup, client_context
setup, port, relay = Setup(sys.argv[1]), int(sys.argv[2]), NodePublic.from_text(sys.argv[3])
a, b = (Peer.connect("127.0.0.1", port, client_context(setup), 10) for _ in range(2))
a.login(relay)
b.login(relay)
sent = frame(SEND, b.public.raw + bytes(1000)) * 16
received = frame(RECV, a.public.raw + bytes(1000)) * 16
print("ready", flush=True)
for duration_s in map(float, sys.stdin):
    n_packets, began = 0, time.monotonic()
    while time.monotonic() < began + duration_s:
        a.send(sent)
        assert b.read(len(received)) == received
        n_packets += 16
    print(n_packets / (time.monotonic() - began), flush=True)
"""


class Talkers:
    """Two clients in another process; they report the packets per second between them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout
        assert self.stdout.readline() == "ready\n"

    def talk(self, duration_s: float) -> None:
        """Start their exchange for `seconds`."""
        self.stdin.write(f"{duration_s}\n")
        self.stdin.flush()

    def talk_while_python_is_blocked(self, duration_s: float) -> None:
        """Wait for the end of the exchange in a PyDLL call, which keeps the GIL of this process."""
        answer = ctypes.create_string_buffer(
            struct.pack("ihh", self.stdout.fileno(), select.POLLIN, 0)
        )
        self.talk(duration_s)
        assert ctypes.PyDLL(None).poll(answer, 1, int(PATIENCE_S * 1000)) == 1

    def rate(self) -> float:
        """Return packets per second."""
        return float(self.stdout.readline())


@pytest.mark.parametrize("setup", [Setup("plain"), Setup("TLS 1.3")], ids=str)
def test_packets_keep_flowing_at_full_rate_while_python_is_blocked(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    arguments = [setup.transport, str(relay.port), relay.server.public_key.text]
    shares: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", _TALKERS, *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        talkers = Talkers(process)
        while not shares or (len(shares) < 5 and shares[-1] < 0.7):
            talkers.talk(0.5)
            free = talkers.rate()
            relay.call(talkers.talk_while_python_is_blocked, 2.0)
            shares.append(talkers.rate() / free)
        talkers.stdin.close()
    # A busy machine may halve one of the rates, but not all five.
    assert shares[-1] >= 0.7, shares


# Frames that are refused or ignored

_KEY = bytes(range(32))


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(SEND, bytes(31)), id="SendPacket without a whole key"),
        pytest.param(frame(SEND, bytes(32 + MAX_PACKET + 1)), id="SendPacket one byte too long"),
        pytest.param(struct.pack(">BI", SEND, 0xFFFFFFFF) + _KEY, id="SendPacket of 4 GiB"),
        pytest.param(frame(PREFERRED), id="NotePreferred without a value"),
        pytest.param(frame(PREFERRED, b"\0\0"), id="NotePreferred with two"),
        pytest.param(frame(PING, bytes(7)), id="Ping too short"),
        pytest.param(frame(PING, bytes(1001)), id="Ping too long"),
        pytest.param(frame(FORWARD, bytes(64)), id="ForwardPacket from an ordinary client"),
        pytest.param(frame(WATCH), id="WatchConns from an ordinary client"),
        pytest.param(frame(WATCH, b"x"), id="WatchConns with a payload"),
        pytest.param(frame(CLOSE_PEER, bytes(32)), id="ClosePeer from an ordinary client"),
        pytest.param(frame(CLOSE_PEER, bytes(31)), id="ClosePeer too short"),
    ],
)
def test_a_forbidden_frame_closes_its_sender_only_and_is_counted_and_logged(
    start_relay: StartRelay, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    with relay.login() as bystander, relay.login() as peer:
        peer.send(sent)
        assert peer.is_closed()
        assert bystander.sync() == []
        relay.wait_connected(peer.public, False)
        eventually(lambda: sum(relay.metrics()["fastderp_session_closed_total"].values()) == 1)
        [reason] = relay.metrics()["fastderp_session_closed_total"]
    assert reason in ("bad_frame_size", "frame_not_permitted")
    assert any(peer.public.short in line and reason in line for line in caplog.messages)


@pytest.mark.parametrize(
    "frame_type", [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x08, 0x09, 0x13, 0x14, 0x15, 0x42, 0xFF]
)
@pytest.mark.parametrize("size", [0, 1, 65_568])
def test_frames_of_unknown_types_are_skipped(
    start_relay: StartRelay, frame_type: int, size: int
) -> None:
    relay = start_relay()
    with relay.login() as peer:
        peer.send(frame(frame_type, bytes(size)))
        assert peer.sync() == []


@pytest.mark.parametrize("size", [65_569, 0xFFFFFFFF])
def test_an_unknown_frame_longer_than_any_packet_closes_its_connection(
    relay: Relay, size: int
) -> None:
    with relay.login() as peer:
        peer.send(struct.pack(">BI", 0x77, size))
        relay.wait_connected(peer.public, False)


def test_a_frame_cut_off_by_the_end_of_the_connection_is_not_delivered(relay: Relay) -> None:
    with relay.login() as a, relay.login() as b:
        a.send(frame(SEND, b.public.raw + b"x" * 1000)[:-1])
        a.close()
        relay.wait_connected(a.public, False)
        assert b.sync() == []


# Ping, preferred, keep-alive


@pytest.mark.parametrize("size", [8, 9, 1000])
def test_a_ping_is_answered_with_its_first_8_bytes(relay: Relay, size: int) -> None:
    with relay.login() as peer:
        peer.send_frame(PING, bytes(range(8)) + bytes(size - 8))
        assert peer.read_frame() == (PONG, bytes(range(8)))


@pytest.mark.parametrize("yes", [1, 2, 255])
def test_declared_homes_are_counted(start_relay: StartRelay, yes: int) -> None:
    relay = start_relay()

    def homes() -> int:
        return int(relay.metrics()["derp_current_home_connections"])

    with relay.login() as peer:
        for value, expected in ((yes, 1), (yes, 1), (0, 0), (0, 0), (yes, 1)):
            peer.send_frame(PREFERRED, bytes([value]))
            peer.sync()
            assert homes() == expected
        assert relay.metrics()["derp_home_moves_in"] == 0
    eventually(lambda: homes() == 0)


def test_clients_that_are_not_at_their_ideal_node_are_counted(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.login(headers=["Ideal-Node: 1a"]):
        assert relay.metrics()["derp_current_notideal_connections"] == 1
    eventually(lambda: relay.metrics()["derp_current_notideal_connections"] == 0)


# Departures


def test_only_receivers_of_its_packets_get_peer_gone_for_a_sender(relay: Relay) -> None:
    with (
        relay.login() as sender,
        relay.login() as receiver,
        relay.login() as stranger,
        relay.login() as correspondent,
    ):
        sender.send_packet(receiver.public, b"hello")
        assert receiver.read_packet() == (sender.public, b"hello")
        correspondent.send_packet(sender.public, b"hi")
        assert sender.read_packet() == (correspondent.public, b"hi")
        sender.close()
        assert receiver.read_frame() == (GONE, sender.public.raw + b"\0")
        assert receiver.sync() == stranger.sync() == correspondent.sync() == []


def test_a_second_departure_is_also_reported(relay: Relay) -> None:
    key = NodePrivate.generate()
    with relay.login() as receiver:
        for _ in range(3):
            with relay.login(key=key) as sender:
                sender.send_packet(receiver.public, b"hello again")
                assert receiver.read_packet() == (key.public_key, b"hello again")
            assert receiver.read_frame() == (GONE, key.public_key.raw + b"\0")


def test_disco_to_an_absent_peer_is_answered_not_here_three_times_at_once(relay: Relay) -> None:
    absent = NodePrivate.generate().public_key
    with relay.login() as peer:
        # In one write: another answer is due a second later.
        peer.send(frame(SEND, absent.raw + DISCO_PACKET) * 6)
        assert peer.sync() == [(GONE, absent.raw + b"\x01")] * 3


def test_another_not_here_is_due_a_second_later(start_relay: StartRelay) -> None:
    relay = start_relay()
    absent = NodePrivate.generate().public_key
    with relay.login() as peer:
        began = time.monotonic()
        answers: list[float] = []

        def is_answered(n_answers: int) -> bool:
            peer.send_packet(absent, DISCO_PACKET)
            answers.extend([time.monotonic() - began] * len(peer.sync()))
            return len(answers) >= n_answers

        eventually(lambda: is_answered(5))
        assert answers[3] >= 1 and answers[4] >= 2


@pytest.mark.parametrize(
    "data", [DISCO_PACKET[:-1], b"x" * 100, DISCO[:-1] + b"x" + bytes(60), b""]
)
def test_other_packets_to_an_absent_peer_are_not_answered(
    start_relay: StartRelay, data: bytes
) -> None:
    relay = start_relay()
    with relay.login() as peer:
        peer.send_packet(NodePrivate.generate().public_key, data)
        assert peer.sync() == []


# Several connections with one key


def test_second_login_with_the_same_key_takes_over(relay: Relay) -> None:
    key = NodePrivate.generate()
    with relay.login() as sender, relay.login(key=key) as first, relay.login(key=key) as second:
        sender.send_packet(key.public_key, b"for the newest")
        assert second.read_packet() == (sender.public, b"for the newest")
        assert second.sync() == []
        metrics = relay.metrics()
        assert metrics["derp_current_dup_client_keys"] == 1
        assert metrics["derp_current_dup_client_conns"] == 2
        assert metrics["derp_clients_local"] == 2
        assert first.sock.fileno() >= 0


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="Ping"),
        frame(PONG, b"x" * 8),
        frame(0x99, b"?"),
        frame(PREFERRED, b"\1"),
    ],
)
def test_the_last_sender_of_a_shared_key_gets_the_packets(relay: Relay, sent: bytes) -> None:
    key = NodePrivate.generate()
    with relay.login() as sender, relay.login(key=key) as first, relay.login(key=key) as second:
        for speaker in (first, second, first):
            speaker.send(sent)
            speaker.sync()  # a ping counts as speaking
            sender.send_packet(key.public_key, b"?")
            assert speaker.read_packet() == (sender.public, b"?")


def test_when_the_active_connection_leaves_the_previous_sender_takes_over_without_events(
    relay: Relay,
) -> None:
    key = NodePrivate.generate()
    with relay.login() as sender, relay.login(key=key) as first, relay.login(key=key) as second:
        with relay.login(key=key) as third:
            second.sync()
            first.sync()
            third.sync()
            third.send_packet(sender.public, b"I was here")
            assert sender.read_packet() == (key.public_key, b"I was here")
        eventually(lambda: relay.metrics()["derp_current_dup_client_conns"] == 2)
        sender.send_packet(key.public_key, b"who is left?")
        assert first.read_packet() == (sender.public, b"who is left?")
        first.close()
        eventually(lambda: relay.metrics()["derp_current_dup_client_conns"] == 0)
        sender.send_packet(key.public_key, b"and now?")
        assert second.read_packet() == (sender.public, b"and now?")
        assert sender.sync() == []
        assert relay.metrics()["derp_current_dup_client_keys"] == 0


def is_warned(peer: Peer) -> bool:
    """Return whether a client has got a Health frame, and nothing else."""
    return peer.sync() == [] and bool(peer.health)


def test_clients_that_share_a_key_get_health_frames_and_the_last_one_an_all_clear(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicate_keys, "SHARED_S", 0.05)
    key = NodePrivate.generate()
    with relay.login() as bystander, relay.login(key=key) as first:
        with relay.login(key=key) as second, relay.login(key=key) as third:
            for member in (first, second, third):
                eventually(partial(is_warned, member))
                [problem] = member.health
                assert "another connection uses the same node key" in problem
        eventually(lambda: relay.metrics()["derp_current_dup_client_conns"] == 0)
        eventually(lambda: first.sync() == [] and first.health[1:] == [""])
        bystander.sync()
        assert bystander.health == []


def test_a_client_whose_previous_connection_is_not_over_yet_gets_no_health_frame(
    relay: Relay,
) -> None:
    # It has changed its network, so the relay learns of the end a minute later.
    key = NodePrivate.generate()
    with relay.login(key=key), relay.login(key=key) as peer:
        peer.sync()
        peer.sync()
        assert peer.health == []


def test_a_client_that_reconnects_gets_no_health_frame(start_relay: StartRelay) -> None:
    relay = start_relay()
    key = NodePrivate.generate()
    for _ in range(5):
        with relay.login(key=key) as peer:
            peer.sync()
            assert peer.health == []
        relay.wait_connected(key.public_key, False)


def test_health_frames_for_shared_keys_can_be_switched_off(start_relay: StartRelay) -> None:
    relay = start_relay(duplicate_health=False)
    key = NodePrivate.generate()
    with relay.login(key=key) as first, relay.login(key=key) as second:
        assert first.sync() == second.sync() == []
        assert first.health == second.health == []


# Announcements of the relay


def test_a_restart_is_announced_to_every_client_spread_over_time(start_relay: StartRelay) -> None:
    relay = start_relay()
    with ExitStack() as stack:
        peers = [stack.enter_context(relay.login()) for _ in range(8)]
        assert relay.call(lambda: relay.server.announce_restart(2.0, 30.0, spread_s=5.0)) == 8
        announced = [
            struct.unpack(">II", payload)
            for peer in peers
            for kind, payload in peer.sync()
            if kind == RESTARTING
        ]
    assert len(announced) == 8
    assert {try_for_ms for _, try_for_ms in announced} == {30_000}
    waits_ms = [reconnect_in_ms for reconnect_in_ms, _ in announced]
    assert min(waits_ms) >= 2000 and max(waits_ms) <= 7000 and len(set(waits_ms)) > 1


# Mesh peers


def test_a_mesh_peer_may_close_every_connection_of_a_key_even_its_own(
    start_relay: StartRelay,
) -> None:
    secret = MeshKey.generate()
    relay = start_relay(mesh_key=secret)
    json = b'{"meshKey":"%s"}' % secret.text.encode()
    key = NodePrivate.generate()
    with (
        relay.login(json=json) as mesh,
        relay.login(key=key) as first,
        relay.login(key=key) as second,
    ):
        assert first.sync() == second.sync() == []
        mesh.send_frame(CLOSE_PEER, NodePrivate.generate().public_key.raw)
        mesh.send_frame(CLOSE_PEER, key.public_key.raw)
        assert first.is_closed() and second.is_closed()
        assert mesh.sync() == []
        mesh.send_frame(CLOSE_PEER, mesh.public.raw)
        assert mesh.is_closed()


# Slow readers


def _read_packets_until(peer: Peer, last: bytes) -> list[bytes]:
    """Read packets until one carries `last`; return the earlier ones without keep-alives."""
    packets: list[bytes] = []
    while True:
        frame_type, payload = peer.read_frame()
        if frame_type == KEEP_ALIVE:
            continue
        assert frame_type == RECV
        if payload[32:] == last:
            return packets
        packets.append(payload[32:])


def test_a_receiver_that_does_not_read_delays_no_other_and_loses_only_whole_packets(
    relay: Relay,
) -> None:
    with relay.login() as sender, relay.login() as frozen, relay.login() as reader:
        chunk = b"".join(frame(SEND, frozen.public.raw + bytes([i]) * 10_000) for i in range(100))
        for _ in range(10):
            sender.send(chunk)
        sender.send_packet(reader.public, b"unhindered")
        assert reader.read_packet() == (sender.public, b"unhindered")
        sender.sync()
        sender.send_packet(frozen.public, b"last")
        packets = _read_packets_until(frozen, b"last")
        assert all(len(set(data)) == 1 and len(data) == 10_000 for data in packets)


def _flood_until_closed(
    relay: Relay, when_connected: Callable[[], None] = lambda: None
) -> NodePublic:
    """Send to a client that does not read until the relay closes it; return its key."""
    with relay.login() as sender, relay.login() as frozen:
        when_connected()
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                sender.send_packet(frozen.public, bytes(60_000))

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            relay.wait_connected(frozen.public, False)
        finally:
            stop.set()
            flooder.join()
        sender.sync()
        return frozen.public


@pytest.mark.parametrize("setup", [Setup("plain"), Setup("TLS 1.3"), Setup("TLS 1.2")], ids=str)
def test_a_receiver_that_never_reads_is_closed_at_the_write_deadline(
    start_relay: StartRelay, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay(setup, write_timeout=0.3)
    frozen = _flood_until_closed(relay)
    assert relay.metrics()["derp_sclient_write_timeouts"] == 1
    eventually(
        lambda: any("write_timeout" in line and frozen.short in line for line in caplog.messages)
    )


def test_a_write_timeout_that_is_assigned_holds_for_connected_clients(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(write_timeout=0)

    def assign() -> None:
        relay.server.write_timeout = 0.3

    _flood_until_closed(relay, lambda: relay.call(assign))
    assert relay.metrics()["derp_sclient_write_timeouts"] == 1
