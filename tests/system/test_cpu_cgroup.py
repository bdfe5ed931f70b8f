"""A relay in a cgroup with a CPU quota, as a container with --cpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cgroup import limited_by, within
from tests.kit.command import COMMAND, started

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core"),
]


@pytest.fixture
def limit() -> Iterator[Path]:
    with limited_by("cpu", "cpu.max", "cpu.cfs_quota_us") as limit:
        yield limit


@pytest.mark.parametrize(("milliseconds", "n_workers"), [(90, 1), (110, 2)])
def test_a_quota_limits_the_threads_that_move_packets(
    limit: Path, tmp_path: Path, milliseconds: int, n_workers: int
) -> None:
    # The period is 100 ms; of version 2 as well, if the file has one number only.
    limit.write_text(str(milliseconds * 1000))
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / "key"))
    with started(within(limit, str(COMMAND), *flags)) as running:
        assert f"\nfastderp_workers {n_workers}\n" in running.varz()
        assert running.stop()[0] == 0
