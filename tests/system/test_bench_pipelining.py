"""Short runs of bench/storm.py and bench/pipelining.py."""

import os
from collections.abc import Iterator

import pytest

from bench.pipelining import show
from bench.relays import fastderp
from bench.storm import storm
from tests.kit.memory import SANITIZED

pytestmark = pytest.mark.skipif(
    not {0, 1} <= os.sched_getaffinity(0), reason="the benches use cores 0 and 1"
)


@pytest.fixture(autouse=True)
def own_affinity() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_no_client_of_a_storm_is_refused_and_the_memory_stays_in_its_budget(tls: bool) -> None:
    # Fewer than handshakes have memory: while one waits, a client that a busy machine delays is ended.
    found = storm(fastderp(), 400, tls)
    assert found.refused == {}
    # A sanitizer pads allocations and keeps freed memory.
    assert SANITIZED or found.mib_peak - found.mib_before < 64


def test_clients_log_in_and_stun_answers_while_others_pipeline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(fastderp(), n=5, mbit_per_s=4.0, seconds=0.5)
    printed = capsys.readouterr().out
    assert [line.split()[2] for line in printed.splitlines()] == ["login", "STUN"]
