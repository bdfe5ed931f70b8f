"""Streams that are always ready run one after another."""

from __future__ import annotations

import asyncio
import socket

import pytest

from fastderp.server.net import stream as stream_module
from fastderp.server.net.stream import Poller, Stream


async def test_ready_sockets_alternate_and_the_loop_does_other_work_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_module, "SLICE_S", -1.0)
    loop = asyncio.get_running_loop()
    poller = Poller(loop)
    happened: list[str] = []
    over = asyncio.Event()
    streams, peers = [], []

    def read(name: str) -> None:
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
                lambda data, name=name: read(name),  # type: ignore[misc]
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

    def close_the_other(me: int) -> None:
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
                lambda data, number=number: close_the_other(number),  # type: ignore[misc]
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
