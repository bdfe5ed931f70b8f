"""Notices of `fastderp-relay` to a service manager, read at a socket in place of systemd's."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.kit.command import relay
from tests.kit.service_manager import service_manager

QUIET = ("-a", "127.0.0.1:0", "-stun=false")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_manager_is_notified_of_readiness_reload_and_the_end(
    tmp_path: Path, kind: str
) -> None:
    name = f"fastderp-test-{os.getpid()}-{time.monotonic_ns()}"
    address = str(tmp_path / "notify") if kind == "path" else f"@{name}"
    with service_manager(address) as told:
        env = {"NOTIFY_SOCKET": address}
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
