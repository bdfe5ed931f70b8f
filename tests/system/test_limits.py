"""`fastderp-relay` with limits: rates of clients, their reload, and the rate of connections."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest

from fastderp.errors import EX_CONFIG
from tests.kit.command import RunningRelay, manual, refused, relay
from tests.kit.peer import Peer, client_info
from tests.kit.relay import eventually

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


def log_in(running: RunningRelay) -> tuple[Peer, dict[str, int]]:
    """Log in; return the client and the relay's ServerInfo."""
    peer = Peer.connect("127.0.0.1", running.port, None, 20)
    public = running.public_key
    peer.upgrade(public)
    peer.send(client_info(peer.key, public))
    info: dict[str, int] = json.loads(peer.key.open_from(public, peer.read_frame()[1]))
    return peer, info


def test_the_rate_file_is_read_at_the_start_and_on_a_signal_and_a_bad_one_changes_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rate.json"
    file.write_text('{"PerClientRateLimitBytesPerSec": 1000000}')
    with relay(*QUIET, "-c", str(tmp_path / "key"), "-rate-config", str(file)) as running:
        assert "each client: 1000000 bytes/s with bursts of 65568 bytes" in running.said
        peer, info = log_in(running)
        assert info == {
            "version": 2,
            "TokenBucketBytesPerSecond": 1_000_000,
            "TokenBucketBytesBurst": 65_568,
        }
        assert "\nderp_rate_limit_per_client_bytes_per_second 1000000\n" in running.varz()
        file.write_text(
            '{"PerClientRateLimitBytesPerSec": 500000, "PerClientRateBurstBytes": 100000}'
        )
        running.process.send_signal(signal.SIGHUP)
        public = running.public_key
        told = json.loads(peer.key.open_from(public, peer.read_frame()[1]))
        assert told == {
            "version": 2,
            "TokenBucketBytesPerSecond": 500_000,
            "TokenBucketBytesBurst": 100_000,
        }
        assert "\nderp_rate_limit_per_client_burst_bytes 100000\n" in running.varz()
        file.write_text('{"PerClientRateLimitBytesPerSec": -1}')
        running.process.send_signal(signal.SIGHUP)
        running.hears("is not a number of bytes; the previous one stays in force")
        other, info = log_in(running)
        assert info["TokenBucketBytesPerSecond"] == 500_000
        for client in (peer, other):
            client.close()
        assert running.stop()[0] == 0


def test_classes_and_limits_of_addresses_change_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rate.json"
    office = {"Name": "loopback", "CIDRs": ["127.0.0.0/8"], "PerClientRateBurstBytes": 90_000}
    limits = {"PerClientRateLimitBytesPerSec": 500_000, "Classes": [office]}
    file.write_text(json.dumps(limits))
    flags = ("-rate-config", str(file), "-connections-per-address", "2")
    with relay(*QUIET, "-c", str(tmp_path / "key"), *flags) as running:
        assert "each address: 2 connections\n" in running.said
        assert "class loopback: 500000 bytes/s with bursts of 90000 bytes; " in running.said
        first, info = log_in(running)
        assert info["TokenBucketBytesBurst"] == 90_000
        second, _ = log_in(running)
        assert Peer.connect("127.0.0.1", running.port, None, 20).is_closed()
        limits["Classes"] = [{"Apps": ["ci"], "PerClientRateBurstBytes": 80_000}]
        limits["PerAddressConnections"] = 0
        file.write_text(json.dumps(limits))
        running.process.send_signal(signal.SIGHUP)
        public = running.public_key
        for peer in (first, second):
            told = json.loads(peer.key.open_from(public, peer.read_frame()[1]))
            assert told["TokenBucketBytesBurst"] == 65_568
        metrics = running.varz()
        assert '\nfastderp_closed_total{reason="accept_address"} 1\n' in metrics
        assert "\nfastderp_clients_held_back 0\n" in metrics
        for peer in (first, second):
            peer.close()
        _, said = running.stop()
        assert ": refused at accept: limit of its address reached: 2 connections\n" in said
        assert "class 1: 500000 bytes/s with bursts of 80000 bytes\n" in said


def test_without_a_rate_file_server_info_has_no_rates(tmp_path: Path) -> None:
    with relay(*QUIET, "-c", str(tmp_path / "key")) as running:
        peer, info = log_in(running)
        assert info == {"version": 2}
        assert "rate_limit" not in running.varz()
        peer.close()


@pytest.mark.parametrize("text", [None, "", '{"PerClientRateLimitBytesPerSec": -1}'])
def test_a_rate_file_that_cannot_be_used_is_one_line_at_the_start(
    tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "rate.json"
    if text is not None:
        file.write_text(text)
    code, said = refused(*QUIET, "-c", str(tmp_path / "key"), "-rate-config", str(file))
    assert (code, said.count("\n")) == (EX_CONFIG, 1)
    assert f"rate configuration {file}: " in said


def test_connections_over_the_accept_limit_are_closed_and_the_relay_continues(
    tmp_path: Path,
) -> None:
    flags = manual(tmp_path, "127.0.0.1")
    limits = ("-accept-connection-limit", "5", "-accept-connection-burst", "3")
    with relay(*QUIET, "-c", str(tmp_path / "key"), *flags, *limits) as running:
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
        closed = 0
        for connection in held:
            connection.settimeout(0.2)
            try:
                closed += connection.recv(1) == b""
            except TimeoutError:
                pass
            connection.close()
        assert 5 <= closed <= 17
        eventually(
            lambda: re.search(
                r"\ntls_listener_rejected_connections [1-9]", _varz_or_nothing(running)
            )
        )
        assert running.process.poll() is None


def _varz_or_nothing(running: RunningRelay) -> str:
    try:
        return running.varz("https")
    except OSError:
        return ""
