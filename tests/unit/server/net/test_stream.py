"""Streams that are always ready run one after another."""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from pathlib import Path

import pytest

from fastderp.server.net import stream as stream_module
from fastderp.server.net.stream import Poller, Stream, accept, has_waiting
from tests.kit.relay import eventually


async def test_ready_sockets_alternate_and_the_loop_does_other_work_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "SLICE_S", -1.0)
    loop = asyncio.get_running_loop()
    poller = Poller(loop)
    happened: list[str] = []
    over = asyncio.Event()
    streams, peers = [], []

    def read(name: str, _data: bytes) -> None:
        happened.append(name)
        if len(happened) >= 30:
            over.set()

    for name in ("a", "b", "c"):
        ours, theirs = socket.socketpair()
        theirs.sendall(bytes(100))
        peers.append(theirs)
        streams.append(
            Stream(
                poller,
                ours,
                partial(read, name),
                lambda error: None,
                lambda: None,
            )
        )
        streams[-1].read_bytes = 1

    def tick() -> None:
        happened.append("loop")
        if not over.is_set():
            loop.call_soon(tick)

    loop.call_soon(tick)
    for stream in streams:
        stream.resume()
    await over.wait()
    for stream, peer in zip(streams, peers, strict=True):
        stream.close()
        peer.close()
    poller.close()
    reads = [name for name in happened if name != "loop"]
    assert sorted(reads[:3]) == ["a", "b", "c"]
    assert all(reads[at] == reads[at - 3] for at in range(3, len(reads)))
    assert all(
        "loop" in happened[at : at + 2] for at in range(happened.index("loop"), len(happened) - 1)
    )


async def test_a_stream_that_another_has_closed_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poller = Poller(asyncio.get_running_loop())
    called: list[int] = []
    pairs = [socket.socketpair() for _ in range(2)]
    streams: list[Stream] = []
    over = asyncio.Event()

    def close_the_other(me: int, _data: bytes) -> None:
        called.append(me)
        streams[1 - me].close()
        streams[me].close()
        over.set()

    for number, (ours, theirs) in enumerate(pairs):
        theirs.sendall(b"x")
        streams.append(
            Stream(
                poller,
                ours,
                partial(close_the_other, number),
                lambda error: None,
                lambda: None,
            )
        )
    for stream in streams:
        stream.resume()
    await over.wait()
    await asyncio.sleep(0)
    assert len(called) == 1
    poller.close()
    for _, theirs in pairs:
        theirs.close()


async def test_a_started_stream_reads_what_has_arrived_before_it_returns() -> None:
    poller = Poller(asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    theirs.sendall(b"early")
    came: list[bytes] = []
    later = asyncio.Event()

    def on_bytes(data: bytes) -> None:
        came.append(data)
        if len(came) == 2:
            later.set()

    stream = Stream(poller, ours, on_bytes, lambda error: None, lambda: None)
    stream.start()
    assert came == [b"early"]
    theirs.sendall(b"late")
    await later.wait()
    assert came == [b"early", b"late"]
    stream.close()
    theirs.close()
    poller.close()


async def test_a_stream_may_be_detached_in_its_first_callback() -> None:
    poller = Poller(asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    theirs.sendall(b"all")
    taken: list[int] = []
    stream = Stream(
        poller, ours, lambda data: taken.append(stream.detach()), lambda error: None, lambda: None
    )
    stream.start()
    assert stream.closed
    with socket.socket(fileno=taken[0]) as again, theirs:
        again.sendall(b"still open")
        assert theirs.recv(100) == b"still open"
    poller.close()


async def test_output_that_the_socket_does_not_take_follows_when_the_peer_reads() -> None:
    poller = Poller(asyncio.get_running_loop())
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    drained = asyncio.Event()
    stream = Stream(poller, ours, lambda data: None, lambda error: None, drained.set)
    data = bytes(range(256)) * 8192
    assert not stream.send(data)
    assert stream.n_unsent > 0 and not stream.flushed
    assert not stream.send(b"tail")
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < len(data) + 4:
        received += await loop.sock_recv(theirs, 65536)
    await drained.wait()
    assert received == data + b"tail"
    assert stream.flushed and stream.send(b"more")
    stream.close()
    theirs.close()
    poller.close()


async def test_the_end_and_a_reset_of_the_peer_are_told_apart() -> None:
    poller = Poller(asyncio.get_running_loop())
    ended: list[OSError | None] = []
    over = asyncio.Event()

    def on_end(error: OSError | None) -> None:
        ended.append(error)
        over.set()

    for linger in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            assert accept(listening.fileno()) is None and not has_waiting(listening.fileno())
            theirs = socket.create_connection(listening.getsockname())
            eventually(lambda: has_waiting(listening.fileno()))
            found = accept(listening.fileno())
        assert found is not None and found[1] == theirs.getsockname()
        over.clear()
        stream = Stream(poller, found[0], lambda data: None, on_end, lambda: None)
        stream.resume()
        assert stream.local_ip == "127.0.0.1" and stream.round_trip_us() is not None
        if linger:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await over.wait()
        stream.close()
        assert stream.local_ip == "" and stream.round_trip_us() is None
    assert ended[0] is None
    assert isinstance(ended[1], ConnectionResetError)
    poller.close()


async def test_a_unix_peer_has_no_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as theirs:
        listening.bind(str(tmp_path / "relay"))
        listening.listen()
        theirs.connect(str(tmp_path / "relay"))
        found = accept(listening.fileno())
        assert found is not None and found[1] == ("", 0)
        socket.socket(fileno=found[0]).close()


async def test_a_peer_over_ipv6_is_named_without_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        with socket.create_connection(listening.getsockname()[:2]) as theirs:
            eventually(lambda: has_waiting(listening.fileno()))
            found = accept(listening.fileno())
            assert found is not None and found[1] == theirs.getsockname()[:2]
            socket.socket(fileno=found[0]).close()


async def test_a_peer_over_ipv4_of_a_socket_for_both_families_is_an_ipv4_peer() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        address = ("127.0.0.1", listening.getsockname()[1])
        with socket.create_connection(address) as theirs:
            eventually(lambda: has_waiting(listening.fileno()))
            found = accept(listening.fileno())
            assert found is not None and found[1] == theirs.getsockname()
            socket.socket(fileno=found[0]).close()
