"""Notices of `fastderp-relay` to a service manager, read at a socket in place of systemd's."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.kit.command import relay

QUIET = ("-a", "127.0.0.1:0", "-stun=false")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_manager_is_notified_of_readiness_reload_and_the_end(
    tmp_path: Path, kind: str
) -> None:
    name = f"fastderp-test-{os.getpid()}-{time.monotonic_ns()}"
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(path if kind == "path" else f"\0{name}")
        env = {"NOTIFY_SOCKET": path if kind == "path" else f"@{name}"}

        def told() -> dict[str, str]:
            lines = manager.recv(4096).decode().split("\n")
            return dict(line.split("=", 1) for line in lines)

        with relay(*QUIET, "-c", str(tmp_path / "k"), env=env) as running:
            ready = told()
            assert ready["READY"] == "1"
            assert f"serves http on 127.0.0.1:{running.port}" in ready["STATUS"]
            before_us = time.monotonic_ns() // 1000
            running.process.send_signal(signal.SIGHUP)
            reloading = told()
            assert reloading["RELOADING"] == "1"
            assert int(reloading["MONOTONIC_USEC"]) >= before_us
            assert told()["READY"] == "1"
            running.process.send_signal(signal.SIGTERM)
            assert told()["STOPPING"] == "1"
            assert running.process.wait(20) == 0


@pytest.mark.parametrize("address", ["/nowhere/notify", "relative", "@" + "x" * 300])
def test_an_unreachable_service_manager_does_not_stop_the_relay(
    tmp_path: Path, address: str
) -> None:
    with relay(*QUIET, "-c", str(tmp_path / "k"), env={"NOTIFY_SOCKET": address}) as running:
        assert running.stop()[0] == 0
