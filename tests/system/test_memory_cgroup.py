"""A relay in a cgroup of 256 MB, as a small container, survives 9,000 unfinished logins.
RELIABILITY F31.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.loadgen.connect import Crowd, Target
from tests.kit.command import COMMAND, started
from tests.kit.memory import SANITIZED

LIMIT_BYTES = 256_000_000
N_STRANGERS = 9000
ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SANITIZED, reason="a sanitizer pads allocations"),
]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a cgroup with the limit, of version 2 or 1."""
    for root in ROOTS:
        group = root / f"fastderp-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (group / name).exists():
                    (group / name).write_text(str(LIMIT_BYTES))
                    yield group
                    return
        finally:
            group.rmdir()
    pytest.skip("a cgroup with a memory limit cannot be made")


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("n_bytes", [100, 16_000], ids=["100 bytes", "16 kB"])
def test_9000_begun_client_hellos_do_not_get_the_relay_killed(
    cgroup: Path, tmp_path: Path, n_bytes: int
) -> None:
    begun = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(16_384)
    command = [
        "sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh",
        str(COMMAND), "-a", "127.0.0.1:0", "-stun=false", "-http-port", "-1", "-c",
        str(tmp_path / "key"), "-certmode", "manual", "-hostname", "127.0.0.1", "-certdir",
        str(tmp_path),
    ]  # fmt: skip
    with started(command) as running:
        made = []
        for _ in range(N_STRANGERS):
            made.append(socket.create_connection(("127.0.0.1", running.port), 30))
            try:
                made[-1].sendall(begun[:n_bytes])
            except ConnectionError:
                pass  # closed for others
        target = Target.parse(f"https://127.0.0.1:{running.port}", insecure=True)
        for client in Crowd(target, 1).log_in():
            client.close()
        assert running.process.poll() is None
        for sock in made:
            sock.close()
        assert running.stop()[0] == 0
