"""Short runs of bench/life.py and bench/upgrade.py: reloads, drains and upgrades under load."""

from __future__ import annotations

import asyncio

from bench.life import under_drains, under_reloads
from bench.region_drain import drain_to_a_region
from bench.upgrade import fastderp
from tests.kit.memory import SANITIZED


async def test_no_packet_and_no_descriptor_is_lost_in_reloads_under_load() -> None:
    result = await under_reloads(12, n_pairs=2)
    assert result.n_sent > 0
    assert (result.n_lost, result.n_twice, result.n_errors) == (0, 0, 0)
    assert result.files_grown <= 0
    # A sanitizer keeps freed memory.
    assert SANITIZED or result.grown_kib < 8 << 10


async def test_every_client_is_told_and_gets_what_waits_in_drains_under_load() -> None:
    result = await under_drains(2, n_clients=10, drain_s=1.0)
    assert (result.n_untold, result.n_unwritten, result.exit_codes) == (0, 0, [0])


def test_clients_of_a_drained_relay_log_in_at_the_other_one_of_the_region() -> None:
    result = drain_to_a_region(100, 2.0)
    assert (result.n_untold, result.n_refused, result.exit_code) == (0, 0, 0)
    assert result.n_back == 100


async def test_clients_return_to_a_successor_on_the_same_port() -> None:
    result = await asyncio.wait_for(fastderp(20, 1.0), 90)
    assert result.n_failed == 0
