"""The modules of the micro benches compile and call the data plane's functions."""

import struct
from array import array

import pytest

from bench.micro.pieces import piece
from tests.kit.compiler import has_c_compiler

pytestmark = pytest.mark.skipif(not has_c_compiler(), reason="no C compiler")


def packet(frame_type: int, size: int) -> bytes:
    return struct.pack(">BI", frame_type, 32 + size) + bytes(32 + size)


def test_complete_frames_are_walked_and_a_partial_one_is_not() -> None:
    assert piece("frames").walk(packet(4, 100) * 3 + packet(4, 100)[:50]) == 3


def test_registered_keys_are_found() -> None:
    keys = [bytes([i]) * 32 for i in range(1, 6)]
    table = piece("routes").Table(b"".join(keys[:4]))
    table.leave_and_return()
    assert table.find(b"".join(keys)) == 4


def test_packets_that_a_backlog_does_not_drop_are_returned() -> None:
    frames = memoryview(packet(5, 1400) * 300).cast("B", shape=[300, 1437])
    popped, dropped = piece("backlog").pass_through(frames)
    assert popped + dropped == 300
    assert dropped > 0


def test_each_receiver_of_a_key_is_told_once_that_it_has_left() -> None:
    key = piece("gone_watchers").LeavingKey()
    assert [key.turn(bytes(range(32)), n_receivers) for n_receivers in (5, 0, 3)] == [5, 0, 3]


def test_stun_requests_are_answered_and_others_are_not() -> None:
    # PROTOCOL §20
    request = bytes.fromhex(
        "000100142112a44295b1f1b5eca41dcc023531e2802200087461696c6e6f6465802800045e26399e"
    )
    datagrams = memoryview(request * 2 + request[:-1] + b"\0").cast("B", shape=[3, len(request)])
    assert piece("stun").answer_all(datagrams) == 2 * 32


def test_timers_that_were_not_disarmed_are_due() -> None:
    wheel = piece("wheel").TimerWheel(8)
    assert [wheel.turn(now_ns, 1_000_000) for now_ns in (10**9, 10**11)] == [6, 6]


def test_equal_senders_count_once() -> None:
    hashes = array("Q", [1 << 60, 2 << 60, 1 << 60])
    assert round(piece("sketch").count(hashes)) == 2
