"""Records that end a session, in the same read as packets before them (RFC 8446 §5, §6)."""

import os
import socket
from collections.abc import Callable

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.errors import DerpError
from fastderp.tls.record import RecordLayer
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, SealedPeer, closed, running_plane
from tests.kit.records import HANDSHAKE, KEY_UPDATE, Direction

# More receivers than one turn of a worker serves.
MANY = 300


def broken(peer: SealedPeer) -> bytes:
    assert peer.records is not None
    record = peer.records.seal(b"broken")
    return record[:-1] + bytes([record[-1] ^ 1])


def alert(peer: SealedPeer) -> bytes:
    assert peer.records is not None
    return peer.records.alert(40)


def close_notify(peer: SealedPeer) -> bytes:
    assert peer.records is not None
    return peer.records.close_notify()


ENDS: list[tuple[Callable[[SealedPeer], bytes], tuple[str, str]]] = [
    (broken, ("tls", "record does not authenticate")),
    (alert, ("tls", "alert from the peer")),
    (close_notify, ("eof", "")),
]
each_end = pytest.mark.parametrize(("end", "reason"), ENDS, ids=["broken", "alert", "close_notify"])


def packets(to: list[PlanePeer]) -> bytes:
    return b"".join(frame(FrameType.SEND_PACKET, peer.key, b"last words") for peer in to)


@each_end
@pytest.mark.parametrize("n_receivers", [1, MANY])
def test_packets_before_the_record_that_ends_a_session_arrive(
    end: Callable[[SealedPeer], bytes], reason: tuple[str, str], n_receivers: int
) -> None:
    with running_plane(workers=1) as plane:
        receivers = [PlanePeer(plane) for _ in range(n_receivers)]
        sender = SealedPeer(plane)
        sender.socket.sendall(sender.seal(packets(receivers)) + end(sender))
        for receiver in receivers:
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"last words")
        event = closed(plane)
        assert (event.handle, event.reason, event.detail) == (sender.handle, *reason)


@each_end
def test_packets_that_follow_a_login_arrive_before_the_record_that_ends_the_session(
    plane: Plane, end: Callable[[SealedPeer], bytes], reason: tuple[str, str]
) -> None:
    """They come with the login in one read: the control plane hands them over unopened."""
    receiver = PlanePeer(plane)
    sender = SealedPeer(plane, unread=packets([receiver]), unread_end=end)
    assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"last words")
    event = closed(plane)
    assert (event.handle, event.reason, event.detail) == (sender.handle, *reason)


@each_end
def test_packets_of_a_client_over_its_rate_arrive_before_the_record_that_ends_the_session(
    plane: Plane, end: Callable[[SealedPeer], bytes], reason: tuple[str, str]
) -> None:
    plane.set_rate_limits([(400_000, 66_000)])
    receiver, sender = PlanePeer(plane), SealedPeer(plane)
    data = [os.urandom(30_000) for _ in range(4)]
    frames = b"".join(frame(FrameType.SEND_PACKET, receiver.key, piece) for piece in data)
    sender.socket.sendall(sender.seal(frames) + end(sender))
    for piece in data:
        assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + piece)
    event = closed(plane)
    assert (event.handle, event.reason, event.detail) == (sender.handle, *reason)


def test_a_session_that_broke_the_protocol_behind_packets_gets_the_alert(plane: Plane) -> None:
    receiver, sender = PlanePeer(plane), SealedPeer(plane)
    sender.socket.sendall(sender.seal(packets([receiver])) + broken(sender))
    with pytest.raises(DerpError, match="alert from the peer: 20"):
        sender.receive()


def test_a_key_update_that_is_one_record_too_many_is_told_from_a_broken_record(
    plane: Plane,
) -> None:
    suite, up, down = "TLS_AES_128_GCM_SHA256", os.urandom(32), os.urandom(32)
    receiver, sender = PlanePeer(plane), Direction(suite, up)
    ours, theirs = socket.socketpair()
    with ours:
        handle = plane.promote(
            theirs.detach(), os.urandom(32), records=RecordLayer(suite, up, down)
        )
        records = [sender.seal(packets([receiver])), *(sender.seal(b"") for _ in range(32))]
        ours.sendall(b"".join(records) + sender.seal(KEY_UPDATE, HANDSHAKE))
        assert receiver.receive()[0] == FrameType.RECV_PACKET
        event = closed(plane)
    assert (event.handle, event.detail) == (handle, "too many KeyUpdates or empty records")
