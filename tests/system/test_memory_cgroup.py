"""A relay in a cgroup with little memory, as a small container, is not killed.

RELIABILITY F14, F31.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.loadgen.connect import Crowd, Target
from tests.kit.cgroup import limited_by, within
from tests.kit.command import COMMAND, manual, started
from tests.kit.memory import SANITIZED
from tests.kit.peer import Peer

LIMIT_BYTES = 256_000_000
N_STRANGERS = 9000
QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port", "-1")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SANITIZED, reason="a sanitizer pads allocations"),
]


@pytest.fixture
def limit() -> Iterator[Path]:
    with limited_by("memory", "memory.max", "memory.limit_in_bytes") as limit:
        limit.write_text(str(LIMIT_BYTES))
        yield limit


@pytest.mark.parametrize("n_bytes", [100, 16_000], ids=["100 bytes", "16 kB"])
def test_9000_begun_client_hellos_do_not_get_the_relay_killed(
    limit: Path, tmp_path: Path, n_bytes: int
) -> None:
    begun = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + bytes(16_384)
    flags = (*QUIET, "-c", str(tmp_path / "key"), *manual(tmp_path, "127.0.0.1"))
    with started(within(limit, str(COMMAND), *flags)) as running:
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


def test_packets_for_clients_that_do_not_read_do_not_get_the_relay_killed(
    limit: Path, tmp_path: Path
) -> None:
    limit.write_text(str(LIMIT_BYTES // 2))
    flags = (*QUIET, "-c", str(tmp_path / "key"), "-tcp-write-timeout", "60s")
    with (
        contextlib.ExitStack() as stack,
        started(within(limit, str(COMMAND), *flags)) as running,
    ):
        sender, *readers = (
            stack.enter_context(Peer.connect("127.0.0.1", running.port, None, 30))
            for _ in range(101)
        )
        for peer in (sender, *readers):
            peer.login(running.public_key)
        for _ in range(40):
            for peer in readers:
                sender.send_packet(peer.public, bytes(65_000))
        assert sender.sync() == []
        assert running.process.poll() is None
