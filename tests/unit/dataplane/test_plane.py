"""The Python interface of the data plane: sessions, events, counters and options."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

import pytest

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane, PlaneError
from fastderp.util import machine
from fastderp.wire.protocol import FrameType, frame
from tests.kit.memory import resident_bytes
from tests.kit.plane import DISCO, PlanePeer, SealedPeer, closed, count, events, fill, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")


def wait_for_writes(plane: Plane, counts: list[int], total: int) -> None:
    eventually(lambda: plane.counters()["buffered_write_frames"] == (counts, total))


def test_frames_are_counted_by_how_many_go_out_at_once(plane: Plane) -> None:
    sender, receiver = PlanePeer(plane), PlanePeer(plane)
    counts, total = [0] * 17, 0
    for n, bucket in [(1, 1), (3, 3), (10, 10), (12, 11), (60, 15), (200, 16)]:
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, b"data") * n)
        for _ in range(n):
            receiver.receive()
        counts[bucket] += 1
        total += n
        wait_for_writes(plane, counts, total)


def test_a_worker_without_sessions_takes_less_than_64_kib() -> None:
    n_workers = 64
    before = resident_bytes()
    plane = Plane(workers=n_workers)
    per_worker = (resident_bytes() - before) / n_workers
    plane.close()
    assert per_worker < 64 * 1024


def test_preferred_moves_the_home_gauge_on_transitions_only(plane: Plane) -> None:
    a = PlanePeer(plane)
    for value, homes in ((b"\1", 1), (b"\2", 1), (b"\0", 0), (b"\0", 0), (b"\1", 1)):
        a.send(FrameType.NOTE_PREFERRED, value)
        a.sync()
        assert plane.counters()["current_home_connections"] == homes
    assert plane.counters()["home_moves_in"] == 0, "within 5 s of the login it is no move"
    a.close()
    closed(plane)
    assert plane.counters()["current_home_connections"] == 0


def test_changes_of_home_are_moves_once_the_client_has_settled() -> None:
    def moves(plane: Plane) -> tuple[object, object]:
        a = PlanePeer(plane)
        for value in (b"\1", b"\1", b"\0", b"\1"):
            a.send(FrameType.NOTE_PREFERRED, value)
            a.sync()
        return plane.counters()["home_moves_in"], plane.counters()["home_moves_out"]

    with running_plane(workers=1, home_settled_s=0) as plane:
        assert moves(plane) == (2, 1)
    with running_plane(workers=1, home_settled_s=600) as plane:
        assert moves(plane) == (0, 0)


def test_a_session_without_tcp_is_distinguished_from_a_failure_of_the_kernel() -> None:
    plane = Plane(workers=1)
    PlanePeer(plane)
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    plane.promote(fd, os.urandom(32))
    with contextlib.closing(plane), ours, open(os.devnull) as no_socket:
        os.dup2(no_socket.fileno(), fd)  # it belongs to the plane, which closes it
        assert plane.round_trips([1000]) == ([0, 0], 1, 1)
        assert plane.round_trips([1000]) == ([0, 0], 0, 0)


def test_closing_by_handle_and_by_key_names_the_cause(plane: Plane) -> None:
    key = os.urandom(32)
    a, b, c = PlanePeer(plane), PlanePeer(plane, key), PlanePeer(plane, key)
    assert plane.close_session(a.handle)
    assert closed(plane).reason == "server"
    assert not plane.close_session(a.handle)
    assert plane.close_key(key) == 2
    assert {event.reason for event in events(plane, 2) if isinstance(event, ClosedEvent)} == {
        "close_peer"
    }
    for peer in (a, b, c):
        with pytest.raises((EOFError, ConnectionError)):
            peer.receive()


def test_a_late_handle_is_harmless(plane: Plane) -> None:
    a = PlanePeer(plane)
    a.close()
    closed(plane)
    b = PlanePeer(plane)
    assert not plane.send(a.handle, frame(FrameType.HEALTH, b"?"))
    assert (
        not plane.send(2**63, b"") and not plane.send(0, b"") and not plane.close_session(2**40 + 7)
    )
    b.sync()


def test_frames_for_a_session_that_is_being_closed_are_not_sent() -> None:
    plane = Plane(workers=1)  # not started: nothing that is closed ends yet
    with contextlib.closing(plane):
        a, broken = PlanePeer(plane), PlanePeer(plane)
        assert plane.send(a.handle, frame(FrameType.HEALTH, b"!"))
        plane.close_session(a.handle)
        assert not plane.send(a.handle, frame(FrameType.HEALTH, b"?"))
        broken.socket.shutdown(socket.SHUT_RD)
        assert not plane.send(broken.handle, frame(FrameType.HEALTH, b"?"))


def test_answers_that_a_closing_session_does_not_get_do_not_count_as_sent(plane: Plane) -> None:
    sender, slow, nobody = PlanePeer(plane), PlanePeer(plane), os.urandom(32)
    fill(sender, slow.key, 1000, 1400)
    slow.send(FrameType.PING, b"12345678")
    slow.send_packet(nobody, DISCO)
    slow.send_packet(sender.key, b"done")
    assert sender.receive() == (FrameType.RECV_PACKET, slow.key + b"done")
    assert plane.counters()["peer_gone_not_here_frames"] == 1
    n_pongs = count(plane, "got_ping")
    assert plane.counters()["sent_pong"] == n_pongs
    slow.close()
    closed(plane)
    assert plane.counters()["sent_pong"] == n_pongs - 1
    assert plane.counters()["peer_gone_not_here_frames"] == 0


def test_part_of_a_frame_cannot_be_sent(plane: Plane) -> None:
    a = PlanePeer(plane)
    for part in (
        b"\x14",
        frame(FrameType.HEALTH, b"half")[:-1],
        frame(FrameType.KEEP_ALIVE) + b"\x14\0\0\0",
    ):
        with pytest.raises(ValueError, match="whole"):
            plane.send(a.handle, part)
    a.sync()


def test_a_session_closed_by_the_relay_gets_a_tls_alert(plane: Plane) -> None:
    a, b = SealedPeer(plane), SealedPeer(plane)
    plane.close_session(a.handle)
    plane.close_key(b.key)
    for peer in (a, b):
        with pytest.raises(EOFError):
            peer.receive()
        assert peer.records is not None and peer.records.eof, "close_notify"


def test_the_closed_event_has_reason_and_counters(plane: Plane) -> None:
    a = PlanePeer(plane, addr=bytes(10) + b"\xff\xff\x7f\0\0\1", port=4711)
    b = PlanePeer(plane)
    a.send_packet(b.key, b"12345")
    b.send_packet(a.key, b"123")
    assert a.receive()[0] == FrameType.RECV_PACKET
    a.close()
    event = closed(plane)
    assert (event.key, event.reason, event.addr[-4:], event.port) == (
        a.key,
        "eof",
        b"\x7f\0\0\1",
        4711,
    )
    assert event.totals[1:] == (1, 5, 1, 3, 0)
    assert 0 < event.totals.seconds < 60


def test_a_plane_with_impossible_options_touches_no_other_plane() -> None:
    before = os.fstat(0)
    negative = ("write_timeout_s", "mesh_write_timeout_s", "home_settled_s", "backlog_age_s")
    for options in ({"workers": 300}, {"keep_alive_s": 0}, *({name: -1} for name in negative)):
        with pytest.raises(ValueError):
            Plane(**options)  # type: ignore[arg-type]
    assert os.path.samestat(before, os.fstat(0)), "descriptor 0 was closed"


def test_a_machine_with_more_cores_than_threads_are_allowed_gets_all_allowed_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(384)))
    monkeypatch.setattr(machine, "cpu_quotas", lambda _: [])
    plane = Plane()
    assert plane.n_workers == 256
    plane.close()


def test_events_can_be_taken_a_few_at_a_time(plane: Plane) -> None:
    mesh = PlanePeer(plane, mesh=True)
    for i in range(10):
        mesh.send(FrameType.CLOSE_PEER, bytes([i]) * 32)
    mesh.sync()
    taken: list[bytes] = []
    sizes = []
    while select.select([plane.fileno()], [], [], 0)[0]:
        batch = plane.events(4)
        sizes.append(len(batch))
        taken += [event.payload for event in batch if isinstance(event, FrameEvent)]
    assert taken == [bytes([i]) * 32 for i in range(10)]
    assert sizes == [4, 4, 2]
    assert plane.events(4) == []


def test_the_name_of_a_clients_program_is_reported_with_its_session(plane: Plane) -> None:
    named, unnamed = PlanePeer(plane, app_name=b"tailscale" * 3), PlanePeer(plane)
    names = {session.handle: session.app_name for session in plane.sessions()}
    assert names == {named.handle: b"tailscale" * 3, unnamed.handle: b""}
    named.close()
    assert closed(plane).app_name == b"tailscale" * 3
    unnamed.close()
    assert closed(plane).app_name == b""
    with pytest.raises(ValueError, match="app_name"):
        PlanePeer(plane, app_name=bytes(33))


@pytest.mark.parametrize("n_senders", [1, 10, 1000])
def test_the_number_of_peers_that_sent_to_a_session_is_estimated(n_senders: int) -> None:
    with running_plane(workers=1, sender_cardinality=True) as plane:
        mesh, receiver = PlanePeer(plane, mesh=True), PlanePeer(plane)
        other = PlanePeer(plane)
        sources = [os.urandom(32) for _ in range(n_senders)]
        for source in sources * 2:
            mesh.send(FrameType.FORWARD_PACKET, source, receiver.key, b"")
            receiver.receive()
        senders = {session.handle: session.senders for session in plane.sessions()}
        assert abs(senders[receiver.handle] - n_senders) <= 0.3 * n_senders
        assert senders[other.handle] == senders[mesh.handle] == 0
        other.send_packet(mesh.key, b"")
        mesh.receive()
        assert {s.handle: s.senders for s in plane.sessions()}[mesh.handle] == 1


def test_senders_are_not_counted_without_the_option(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    a.send_packet(b.key, b"x")
    b.receive()
    assert [session.senders for session in plane.sessions()] == [0, 0]


@pytest.mark.threads
def test_a_closed_plane_refuses_calls_and_returns_the_remaining_events() -> None:
    plane = Plane(workers=2)
    plane.start()
    peers = [PlanePeer(plane) for _ in range(5)]
    plane.close()
    assert {event.reason for event in plane.events() if isinstance(event, ClosedEvent)} == {
        "shutdown"
    }
    for peer in peers:
        with pytest.raises((EOFError, ConnectionError)):
            peer.receive()
    with pytest.raises(PlaneError, match="closed"):
        PlanePeer(plane)
    with pytest.raises(PlaneError, match="closed"):
        plane.start()


# A child process: the interpreter frees its copy of the plane at the end.
FORKED = """
import os, socket, sys
from fastderp.dataplane.plane import Plane, PlaneError

plane = Plane(workers=1)
plane.start()
ours, theirs = socket.socketpair()
plane.promote(theirs.detach(), b"k" * 32)
ours.settimeout(10)

def ping():
    ours.send(bytes.fromhex("1200000008") + b"stillon?")
    assert ours.recv(100)[5:] == b"stillon?"

# The thread then waits, and holds no lock of a sanitizer's allocator in the child.
ping()
if not (child := os.fork()):
    try:
        plane.promote(os.dup(0), b"c" * 32)
    except PlaneError:
        if "close" in sys.argv:
            plane.close()
        sys.exit()
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
ping()
"""


@pytest.mark.parametrize("how", ["free", "close"])
def test_a_forked_child_that_ends_leaves_the_sessions_of_its_parent_alone(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, how], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
