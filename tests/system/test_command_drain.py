"""`fastderp-relay` drains on SIGTERM: every client is notified, the process ends in time with 0."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.client.stun import binding_request
from fastderp.wire.keys import NodePublic
from tests.kit.command import RunningRelay, refused, relay
from tests.kit.peer import RESTARTING, Peer
from tests.kit.service_manager import service_manager

QUIET = ("-a", "127.0.0.1:0", "-http-port=-1")


def status(running: RunningRelay, path: str) -> int:
    """Return the status of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}{path}", timeout=10) as page:
            code: int = page.status
            return code
    except urllib.error.HTTPError as error:
        return error.code


@contextlib.contextmanager
def clients(running: RunningRelay, n: int) -> Iterator[list[Peer]]:
    """Log in `n` clients."""
    public = NodePublic.from_text(running.find(r"public key (\S+),"))
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer.connect("127.0.0.1", running.port, None, 20)) for _ in range(n)
        ]
        for peer in peers:
            peer.login(public)
        yield peers


def announced_ms(peer: Peer) -> int:
    """Read the announcement; return the time after which to come back."""
    frame_type, payload = peer.read_frame()
    assert frame_type == RESTARTING
    wait_ms: int = struct.unpack(">II", payload)[0]
    return wait_ms


def test_sigterm_sends_the_clients_away_within_the_drain_time(tmp_path: Path) -> None:
    flags = (*QUIET, "-stun=false", "-drain-time", "500ms", "-c", str(tmp_path / "k"))
    with relay(*flags) as running, clients(running, 4) as peers:
        running.process.send_signal(signal.SIGTERM)
        for peer in peers:
            assert 0 <= announced_ms(peer) <= 400
            with pytest.raises(EOFError):
                peer.read_frame()
            peer.close()
        assert running.process.wait(20) == 0
        _, said = running.stop()
        assert "draining for up to 0.5 s" in said and said.splitlines()[-1] == "stopping"


def test_a_relay_that_drains_tells_so_to_those_who_probe_it(tmp_path: Path) -> None:
    flags = (*QUIET, "-stun=false", "-drain-time", "1h", "-c", str(tmp_path / "k"))
    with relay(*flags) as running, clients(running, 4) as peers:
        running.process.send_signal(signal.SIGTERM)
        minutes = [announced_ms(peer) / 60_000 for peer in peers]
        assert sorted(minutes) == pytest.approx([12, 24, 36, 48], abs=0.5), "spread over the period"
        assert status(running, "/derp/probe") == status(running, "/readyz") == 503
        assert status(running, "/healthz") == 200
        for peer in peers:
            peer.close()
        assert running.process.wait(20) == 0, "all are gone"


def test_stun_is_silent_while_the_relay_drains(tmp_path: Path) -> None:
    flags = (*QUIET, "-stun-port", "0", "-drain-time", "1h", "-c", str(tmp_path / "k"))
    with relay(*flags) as running, clients(running, 1) as [peer]:
        asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asker:
            asker.settimeout(0.3)
            asker.connect(("127.0.0.1", running.stun_port))
            running.process.send_signal(signal.SIGTERM)
            announced_ms(peer)
            asker.send(binding_request(os.urandom(12)))
            with pytest.raises(TimeoutError):
                asker.recv(100)
        peer.close()
        assert running.process.wait(20) == 0, "the client has left: the drain ends early"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain_at_once_with_code_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    flags = (*QUIET, "-stun=false", "-drain-time", "1h", "-c", str(tmp_path / "k"))
    with relay(*flags) as running, clients(running, 2) as peers:
        running.process.send_signal(signal.SIGTERM)
        for peer in peers:
            announced_ms(peer)
        running.process.send_signal(signal.SIGHUP)
        assert status(running, "/healthz") == 200, "a hangup changes nothing"
        running.process.send_signal(number)
        assert all(peer.is_closed() for peer in peers)
        assert running.process.wait(20) == 0


def test_sigint_does_not_drain(tmp_path: Path) -> None:
    flags = (*QUIET, "-stun=false", "-drain-time", "1h", "-c", str(tmp_path / "k"))
    with relay(*flags) as running, clients(running, 1) as [peer]:
        running.process.send_signal(signal.SIGINT)
        assert peer.is_closed()
        assert running.process.wait(20) == 0


def test_a_service_manager_is_told_of_the_drain(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    flags = (*QUIET, "-stun=false", "-drain-time", "1h", "-c", str(tmp_path / "k"))
    with service_manager(path) as told:
        with relay(*flags, env={"NOTIFY_SOCKET": path}) as running, clients(running, 1) as [peer]:
            assert told()["READY"] == "1"
            running.process.send_signal(signal.SIGTERM)
            stopping = told()
            assert stopping["STOPPING"] == "1"
            assert stopping["EXTEND_TIMEOUT_USEC"] == str(3620 * 10**6), "more than the drain time"
            while told()["STATUS"] != "draining: 1 clients left":
                pass
            peer.close()
            while told()["STATUS"] != "stopping":
                pass
            assert running.process.wait(20) == 0


@pytest.mark.parametrize("text", ["2h", "-1s", "soon"])
def test_a_drain_time_out_of_bounds_is_one_line(text: str) -> None:
    code, said = refused(f"-drain-time={text}")
    assert code == 2
    assert "-drain-time" in said and said.count("\n") == 1
