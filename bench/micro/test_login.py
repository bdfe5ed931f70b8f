"""Micro benchmarks of a login's steps in Python: CPU time of fixed work."""

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import ClientInfo, client_info_frame, open_client_info
from fastderp.wire.protocol import HEADER_SIZE, ServerInfo

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.2, warmup=False
)


def test_answer_a_client_info(benchmark: BenchmarkFixture) -> None:
    """Agree on a key, open the box of a ClientInfo, and seal the ServerInfo."""
    relay, client = NodePrivate.generate(), NodePrivate.generate()
    frame = client_info_frame(
        client.public_key, client.box(relay.public_key), ClientInfo(can_ack_pings=True)
    )
    payload = frame[HEADER_SIZE:]

    def answered() -> bytes:
        return open_client_info(relay, payload).server_info_frame(ServerInfo())

    assert benchmark(answered)
