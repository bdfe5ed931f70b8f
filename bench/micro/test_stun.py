"""Micro benchmarks of STUN: CPU time of fixed work. Divide by REQUESTS for the cost of one."""

import os
import socket
import time
import zlib
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.pieces import piece
from fastderp.server.stun.responder import StunResponder

REQUESTS = 32

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


def request() -> bytes:
    """Return a binding request as tailscale's clients send it (PROTOCOL §11)."""
    head = bytes.fromhex("000100142112a442") + os.urandom(12)
    text = head + bytes.fromhex("802200087461696c6e6f6465")
    return text + bytes.fromhex("80280004") + (zlib.crc32(text) ^ 0x5354554E).to_bytes(4)


def rows(datagrams: list[bytes]) -> memoryview:
    return memoryview(b"".join(datagrams)).cast("B", shape=[len(datagrams), len(datagrams[0])])


def test_judge_and_answer_32_requests(benchmark: BenchmarkFixture) -> None:
    datagrams = rows([request() for _ in range(REQUESTS)])
    assert benchmark(piece("stun").answer_all, datagrams) == 32 * REQUESTS


def test_refuse_32_requests_with_a_wrong_fingerprint(benchmark: BenchmarkFixture) -> None:
    datagrams = rows([request()[:-1] + b"\0" for _ in range(REQUESTS)])
    assert benchmark(piece("stun").answer_all, datagrams) < 32 * REQUESTS


@pytest.fixture
def responder() -> Iterator[socket.socket]:
    """A client's socket, connected to a responder's."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as served,
        socket.socket(type=socket.SOCK_DGRAM) as asking,
    ):
        served.bind(("127.0.0.1", 0))
        asking.connect(served.getsockname())
        asking.settimeout(10)
        running = StunResponder([served.fileno()])
        running.start()
        yield asking
        running.stop()


def test_32_requests_through_the_sockets(
    benchmark: BenchmarkFixture, responder: socket.socket
) -> None:
    """Time the responder's thread, the kernel and the asking client."""
    datagrams = [request() for _ in range(REQUESTS)]

    def ask() -> int:
        for datagram in datagrams:
            responder.send(datagram)
        return sum(len(responder.recv(64)) for _ in datagrams)

    assert benchmark(ask) == 32 * REQUESTS
