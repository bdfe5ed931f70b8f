"""A relay in a cgroup with a limit of threads, as a container with --pids-limit. RELIABILITY F33."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cgroup import limited_by, within
from tests.kit.command import COMMAND
from tests.kit.memory import SANITIZED

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SANITIZED, reason="a sanitizer starts threads of its own"),
]


@pytest.fixture
def limit() -> Iterator[Path]:
    with limited_by("pids", "pids.max") as limit:
        yield limit


@pytest.mark.parametrize("n_threads", range(1, 9))
def test_too_few_threads_are_one_line_or_a_relay_that_ends_in_order(
    limit: Path, tmp_path: Path, n_threads: int
) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(f"nodekey:{'ab' * 32}\n")
    flags = [
        "-a", "127.0.0.1:0", "-stun-port", "0", "-workers", "2",
        "-c", str(tmp_path / "key"), "-allow-keys", str(allowed), "-drain-time", "1s",
    ]  # fmt: skip
    limit.write_text(str(n_threads))
    command = within(limit, str(COMMAND), *flags)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.endswith("ready\n"):
                process.send_signal(signal.SIGHUP)
            # after a reload, or after the first attempt at it
            if "reload: admission" in line or "in admission lists" in line:
                process.send_signal(signal.SIGTERM)
        code = process.wait()
    assert "Traceback" not in said, said
    if "ready\n" in said:
        assert code == 0, said
        assert said.endswith("stopping\n"), said
    else:
        assert code == 71, said
        assert said.count("\n") == 1, said
