"""STUN of `fastderp-relay`: addresses of its own, and silence while TLS cannot be served."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.kit.certificates import self_signed
from tests.kit.command import RunningRelay, manual, relay
from tests.kit.relay import eventually
from tests.kit.stun import is_answered
from tests.system.test_certificates import NAME, put

BASE = ("-a", "127.0.0.1:0", "-http-port=-1")


def readiness(running: RunningRelay) -> tuple[int, str]:
    """Return status and text of `/readyz`."""
    context = ssl._create_unverified_context()
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock,
        context.wrap_socket(sock, server_hostname=NAME) as client,
    ):
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(65536):
            answer += data
    return int(answer.split()[1]), answer.decode()


def test_stun_may_have_an_address_of_its_own(tmp_path: Path) -> None:
    flags = (*BASE, "-c", str(tmp_path / "key"), "-stun-addr", "127.0.0.2:0", "-stun-port", "1")
    with relay(*flags) as running:
        assert is_answered("127.0.0.2", running.stun_port)
        assert not is_answered("127.0.0.1", running.stun_port, 0.2)
        assert "-stun-addr names the port of STUN: -stun-port has no effect\n" in running.said


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.2", "127.9.8.7", "::1"), ("::1",)])
def test_every_address_of_the_machine_answers_for_itself(
    tmp_path: Path, hosts: tuple[str, ...]
) -> None:
    where = "[::1]:0" if hosts == ("::1",) else ":0"
    with relay(*BASE, "-c", str(tmp_path / "key"), "-stun-addr", where) as running:
        for host in hosts:
            assert is_answered(host, running.stun_port), host


def test_stun_is_silent_while_clients_refuse_the_certificate(tmp_path: Path) -> None:
    put(tmp_path, self_signed(NAME, days=(-9, -1)))
    certificate = manual(tmp_path, NAME)
    with relay(*BASE, "-c", str(tmp_path / "key"), "-stun-port", "0", *certificate) as running:
        assert (
            "STUN is silent, clients choose other relays: certificate for relay.test expired on"
            in running.said
        )
        assert not is_answered("127.0.0.1", running.stun_port, 0.2)
        status, reason = readiness(running)
        assert status == 503 and "certificate for relay.test expired on" in reason
        put(tmp_path, self_signed(NAME))
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: is_answered("127.0.0.1", running.stun_port, 0.2), 20)
        assert readiness(running)[0] == 200
        _, said = running.stop()
    assert said.count("STUN answers again\n") == 1
