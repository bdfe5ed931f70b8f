"""The packets that wait for a stalled reader, their age, and the drops (PROTOCOL §6.5)."""

from __future__ import annotations

import os
import socket
import struct
import time

import pytest

from fastderp.dataplane.plane import DropEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import (
    PlanePeer,
    accounted,
    closed,
    count,
    dropped,
    events,
    fill,
    packet_number,
    running_plane,
    stall,
)
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")


def test_a_reader_that_stalls_keeps_the_newest_packets_and_loses_none_in_between(
    plane: Plane,
) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 3000, 1400)
    n_lost = sum(dropped(plane).values())
    assert n_lost == dropped(plane)[("queue_head", "other")] > 0
    numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(3000 - n_lost)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2999
    assert numbers[0] == 0
    slow.sync()
    assert count(plane, "backlog_bytes") == 0
    assert count(plane, "packets_received") == count(plane, "packets_sent") + n_lost


def test_32_packets_of_the_largest_size_wait_for_a_stalled_reader(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fill(sender, slow.key, 32, 65536)
    assert not dropped(plane)
    for i in range(32):
        assert slow.receive()[1][32:36] == struct.pack(">I", i)


@pytest.mark.parametrize("depth", [1, 7, 3000])
def test_a_queue_depth_is_how_many_packets_wait_whatever_their_size(depth: int) -> None:
    with running_plane(workers=1, queue_packets=depth) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 6000, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(6000 - n_lost)]
        assert numbers[-depth:] == list(range(6000 - depth, 6000))
        assert numbers[-depth - 1] < 6000 - depth - 1, "no packet was displaced"


AGE_S = 0.1


def test_packets_that_waited_too_long_are_dropped_when_their_sender_sends_again() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 300, 1400)
        time.sleep(1.5 * AGE_S)
        fill(sender, slow.key, 1, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        assert plane.sessions()[1].totals.dropped == n_lost
        arrived = [packet_number(slow) for _ in range(300 - n_lost + 1)]
        assert arrived == [*range(300 - n_lost), 0], (
            "all that waited is gone, from the oldest to the newest"
        )
        slow.sync()


def test_a_slow_reader_is_written_nothing_that_waited_too_long() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        senders, slow = [PlanePeer(plane), PlanePeer(plane)], PlanePeer(plane)
        rounds: list[int] = []  # the round in which each packet was sent, in the order of arrival
        n_written_before = []
        for round_ in range(6):
            time.sleep(1.5 * AGE_S)  # now all waiting packets are too old, from every sender
            n_written_before.append(n_written := count(plane, "packets_sent"))
            packet = struct.pack(">I", round_) + bytes(1400)
            for _ in range(300):
                senders[round_ % 2].send_packet(slow.key, packet)
            senders[round_ % 2].sync()
            while round_ and count(plane, "packets_sent") == n_written:
                rounds.append(packet_number(slow))
        rounds += [
            struct.unpack_from(">I", payload, 32)[0] for _, payload in slow.receive_until_pong()
        ]
        for round_, n_written in enumerate(n_written_before):
            assert set(rounds[n_written:]) <= set(range(round_, 6)), (
                f"older ones were written in round {round_}"
            )
        assert max(rounds) == 5
        assert accounted(plane)


def test_a_reader_that_takes_nothing_is_closed_although_all_that_waits_for_it_is_too_old() -> None:
    with running_plane(workers=1, write_timeout_s=3 * AGE_S, backlog_age_s=AGE_S) as plane:
        sender, stuck = PlanePeer(plane), PlanePeer(plane)
        fill(sender, stuck.key, 300, 1400)
        assert closed(plane).reason == "write_timeout"
        assert dropped(plane)[("write_error", "other")] == 1
        assert accounted(plane)


def test_packets_of_a_queue_depth_wait_as_long_as_it_takes() -> None:
    with running_plane(workers=1, queue_packets=7, backlog_age_s=AGE_S) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 6000, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        time.sleep(1.5 * AGE_S)
        numbers = [packet_number(slow) for _ in range(6000 - n_lost)]
        assert numbers[-7:] == list(range(6000 - 7, 6000))


def test_packets_too_old_for_a_mesh_link_are_lost_too() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        sender, link, far = PlanePeer(plane), PlanePeer(plane, link=True), os.urandom(32)
        plane.add_forwarder(far, link.handle)
        fill(sender, far, 300, 1400)
        time.sleep(1.5 * AGE_S)
        sender.send_packet(far, b"fresh")
        sender.sync()
        n_lost = count(plane, "packets_forwarded_lost")
        assert isinstance(n_lost, int) and n_lost > 0
        received = [link.receive()[1][64:] for _ in range(300 - n_lost + 1)]
        assert received[-1] == b"fresh"
        assert [struct.unpack_from(">I", data)[0] for data in received[:-1]] == list(
            range(300 - n_lost)
        )


def test_drops_are_reported_for_watched_keys_only() -> None:
    watched, absent = os.urandom(32), os.urandom(32)
    with running_plane(workers=1, watch_drops=[os.urandom(32), watched]) as plane:
        sender = PlanePeer(plane)
        sender.send_packet(absent, b"data")
        sender.send_packet(watched, b"data")
        sender.sync()
        assert events(plane) == [DropEvent(sender.key, watched, "unknown_dest", "other")]
        slow = PlanePeer(plane, watched)
        fill(sender, watched, 1000, 1400)
        told = events(plane)
        assert set(told) == {DropEvent(sender.key, watched, "queue_head", "other")}
        assert len(told) < 200 < sum(dropped(plane).values()), "a flood is told of by its beginning"
        slow.close()


def test_a_watched_drop_of_a_forwarded_packet_names_its_first_sender() -> None:
    watched, source = os.urandom(32), os.urandom(32)
    with running_plane(workers=1, watch_drops=[watched]) as plane:
        mesh = PlanePeer(plane, mesh=True)
        mesh.send(FrameType.FORWARD_PACKET, source, watched, b"data")
        mesh.sync()
        assert events(plane) == [DropEvent(source, watched, "unknown_dest_on_fwd", "other")]


def test_backlogs_share_a_global_cap() -> None:
    with running_plane(workers=1, backlog_cap_bytes=100_000) as plane:
        sender, slow, slower = (PlanePeer(plane) for _ in range(3))
        for peer in (slow, slower):
            stall(plane, sender, peer)
            fill(sender, peer.key, 1000, 1400)
        assert count(plane, "backlog_bytes") < 120_000
        assert dropped(plane)


def test_all_backlogs_together_stay_under_the_global_cap() -> None:
    cap = 2_000_000
    with running_plane(workers=1, backlog_cap_bytes=cap) as plane:
        stalled = [PlanePeer(plane) for _ in range(20)]
        sender = PlanePeer(plane)
        for peer in stalled:
            stall(plane, sender, peer)
            for size in (65536, 1400, 4):
                fill(sender, peer.key, 40, size)
            assert count(plane, "backlog_bytes") <= cap
        assert dropped(plane)
        assert sender.receive_until_pong() == []
        for peer in [*stalled, sender]:
            peer.close()
        eventually(lambda: count(plane, "backlog_bytes") == 0)


def test_readers_that_fill_the_global_cap_close_no_session_and_leave_each_a_reserve() -> None:
    cap = 4 << 20
    with running_plane(workers=1, backlog_cap_bytes=cap) as plane:
        hostile = [PlanePeer(plane) for _ in range(60)]
        sender, polite, slow = (PlanePeer(plane) for _ in range(3))
        for size, n in ((65536, 8), (16000, 20), (1000, 60), (40, 100)):
            for peer in hostile:
                fill(sender, peer.key, n, size)
        assert count(plane, "backlog_bytes") > cap * 7 // 8
        n_lost = sum(dropped(plane).values())
        polite.write(frame(FrameType.SEND_PACKET, slow.key, bytes(60_000)) * 8)
        little = [b"%d" % i + bytes(1400) for i in range(2)]
        for data in little:
            polite.send_packet(slow.key, data)
        polite.sync()
        n_lost = sum(dropped(plane).values()) - n_lost
        received = [slow.receive() for _ in range(10 - n_lost)]
        assert received[-2:] == [(FrameType.RECV_PACKET, polite.key + data) for data in little]
        assert not plane.events()


def test_a_few_readers_cannot_take_what_all_backlogs_may_hold() -> None:
    with running_plane(workers=1, backlog_cap_bytes=4 << 20) as plane:
        greedy, sender, slow = (
            [PlanePeer(plane) for _ in range(5)],
            PlanePeer(plane),
            PlanePeer(plane),
        )
        for peer in greedy:
            fill(sender, peer.key, 40, 65536)
        n_lost = sum(dropped(plane).values())
        fill(sender, slow.key, 250, 1400)
        assert sum(dropped(plane).values()) == n_lost
        numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(250)]
        assert numbers == list(range(250))


def test_tiny_packets_of_thousands_of_senders_take_no_more_memory_than_others() -> None:
    with running_plane(workers=1) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        fill(mesh, slow.key, 300, 1400)
        for _ in range(7000):
            mesh.send(FrameType.FORWARD_PACKET, os.urandom(32), slow.key)
        mesh.sync()
        assert count(plane, "backlog_bytes") < 3 * 262_144


def test_many_senders_of_tiny_packets_are_bounded_too() -> None:
    cap = 200_000
    with running_plane(workers=1, backlog_cap_bytes=cap) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        for _ in range(3000):
            mesh.send(FrameType.FORWARD_PACKET, os.urandom(32), slow.key, bytes(60))
        mesh.sync()
        assert count(plane, "backlog_bytes") <= cap
        slow.close()
        mesh.close()
        eventually(lambda: count(plane, "backlog_bytes") == 0)


def test_packets_lost_with_a_broken_connection_are_counted(plane: Plane) -> None:
    sender = PlanePeer(plane)
    for _ in range(100):
        receiver = PlanePeer(plane)
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, bytes(1400)) * 150)
        receiver.close()
        sender.receive_until_pong()
    events(plane, 100)
    assert accounted(plane)
