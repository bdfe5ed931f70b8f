"""Short runs of bench/soak.py: no loss at a rate limit, and clients survive restarts."""

from bench.soak import through_a_rate_limit, under_restarts
from tests.kit.memory import SANITIZED


async def test_every_packet_arrives_through_a_relay_with_a_rate_limit() -> None:
    result = await through_a_rate_limit(4_000_000, bytes_per_s=4_000_000)
    assert (result.n_arrived, result.in_order) == (result.n_sent, True)
    # All bytes above the burst have waited for their tokens.
    assert result.seconds > 0.9 * result.seconds_at_rate
    # A sanitizer keeps freed memory.
    assert SANITIZED or result.grown_kib < 16 << 10


async def test_every_client_reconnects_after_restarts_and_no_packet_comes_twice() -> None:
    result = await under_restarts(n_clients=10, n_restarts=4)
    assert result.problems == []
