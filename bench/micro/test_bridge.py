"""Micro benchmarks of the bridge for WebSockets: CPU time of fixed work.

The time is that of the bridge, the loop and the sockets. Divide by PACKETS for the cost of one.
"""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from websockets.frames import Frame, Opcode

from fastderp.server.accept.bridge import Bridges
from fastderp.server.accept.websocket import WebSocket
from fastderp.server.net.stream import Poller, Stream
from fastderp.tls.channel import Plain
from fastderp.wire.protocol import FrameType, frame

PACKETS = 64
SIZE = 1400
LAST = b"the end of the packets"

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)

Move = Callable[[socket.socket, bytes, socket.socket], int]


def packets(frame_type: FrameType) -> list[bytes]:
    key = os.urandom(32)
    others = [frame(frame_type, key, bytes(SIZE)) for _ in range(PACKETS - 1)]
    return [*others, frame(frame_type, key, bytes(SIZE - len(LAST)), LAST)]


@pytest.fixture
def ends() -> Iterator[tuple[Move, socket.socket, socket.socket]]:
    """A function that moves bytes over a bridge, the client's end and the data plane's."""
    loop = asyncio.new_event_loop()
    poller = Poller(loop)
    bridges = Bridges(poller)
    client, ours = socket.socketpair()

    async def join() -> int:
        outside = Stream(
            poller, ours, lambda data: None, lambda error: None, lambda: None
        )  # the bridge sets its own callbacks
        return bridges.join(outside, WebSocket(Plain(), outside, Counter()))[0]

    inside = socket.socket(fileno=loop.run_until_complete(join()))
    for end in (client, inside):
        end.setblocking(False)
    buffer = bytearray(1 << 20)

    def move(source: socket.socket, data: bytes, sink: socket.socket) -> int:
        """Write to one end and run the loop until the last packet arrives at the other."""
        left = memoryview(data)
        n_read = 0
        while True:
            if left:
                try:
                    left = left[source.send(left) :]
                except BlockingIOError:
                    pass
            loop.call_soon(loop.stop)
            loop.run_forever()
            try:
                n_read += sink.recv_into(memoryview(buffer)[n_read:])
            except BlockingIOError:
                continue
            if not left and buffer.endswith(LAST, 0, n_read):
                return n_read

    yield move, client, inside
    loop.run_until_complete(bridges.close())
    client.close()
    inside.close()
    poller.close()
    loop.close()


def test_64_packets_of_a_websocket_client(
    benchmark: BenchmarkFixture, ends: tuple[Move, socket.socket, socket.socket]
) -> None:
    """Open masked messages of one packet each, on their way to the data plane."""
    move, client, inside = ends
    frames = packets(FrameType.SEND_PACKET)
    wire = b"".join(Frame(Opcode.BINARY, data).serialize(mask=True) for data in frames)
    assert benchmark(move, client, wire, inside) == sum(map(len, frames))


def test_64_packets_to_a_websocket_client(
    benchmark: BenchmarkFixture, ends: tuple[Move, socket.socket, socket.socket]
) -> None:
    """Put what the data plane sends into messages."""
    move, client, inside = ends
    data = b"".join(packets(FrameType.RECV_PACKET))
    assert benchmark(move, inside, data, client) > len(data)
