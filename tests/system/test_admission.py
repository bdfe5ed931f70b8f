"""Admission of `fastderp-relay`: an admission URL, a tailscaled, lists of keys, bad answers."""

from __future__ import annotations

import resource
import signal
import socket
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from fastderp.errors import EX_CONFIG, EX_USAGE
from fastderp.util.shortage import DESCRIPTOR_RESERVE
from fastderp.wire.keys import NodePrivate
from tests.kit.command import RunningRelay, refused, relay
from tests.kit.peer import Peer, client_info
from tests.kit.relay import eventually
from tests.kit.service import ok, response, serving

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


@pytest.fixture
def base(tmp_path: Path) -> tuple[str, ...]:
    return (*QUIET, "-c", str(tmp_path / "relay.key"))


def log_in(
    running: RunningRelay, key: NodePrivate | None = None, json: bytes = b'{"version":2}'
) -> Peer | None:
    """Log in; return None when the relay closes the connection."""
    peer = Peer.connect("127.0.0.1", running.port, None, 20)
    peer.key = key or peer.key
    public = running.public_key
    peer.upgrade(public)
    peer.send(client_info(peer.key, public, json))
    try:
        peer.read_server_info(public)
    except EOFError:
        peer.close()
        return None
    return peer


def test_the_admission_url_decides_and_its_answers_are_counted(base: tuple[str, ...]) -> None:
    friend, stranger = NodePrivate.generate(), NodePrivate.generate()

    def admit(request: bytes) -> bytes:
        return ok({"Allow": friend.public_key.text.encode() in request})

    with serving(admit) as service, relay(*base, "-verify-client-url", service.url) as running:
        peer = log_in(running, friend)
        assert peer is not None and peer.sync() == []
        assert log_in(running, stranger) is None
        assert peer.sync() == []
        peer.close()
        numbers = running.varz()
        assert 'fastderp_admission_verdicts_total{by="url",verdict="allowed"} 1\n' in numbers
        assert 'fastderp_admission_verdicts_total{by="url",verdict="denied"} 1\n' in numbers
        assert 'fastderp_closed_total{reason="admission_denied"} 1\n' in numbers
    assert {question["Source"] for question in service.questions()} == {"127.0.0.1"}


def test_a_disallowed_app_name_is_refused_without_a_query_to_the_admission_url(
    base: tuple[str, ...],
) -> None:
    with serving(ok({"Allow": True})) as service:
        flags = ("-verify-client-url", service.url, "-disallow-app-names", "noisy,loud one")
        with relay(*base, *flags) as running:
            assert 'refused app names: "noisy", "loud one"' in running.said
            for name in (b"noisy", b"loud one"):
                assert log_in(running, json=b'{"AppName":"' + name + b'"}') is None
            assert not service.questions()
            peer = log_in(running, json=b'{"AppName":"quiet"}')
            assert peer is not None
            peer.close()
            assert 'fastderp_closed_total{reason="login_app_name_disallowed"} 2\n' in running.varz()


def test_a_key_revoked_at_the_next_check_is_disconnected(base: tuple[str, ...]) -> None:
    with serving(ok({"Allow": True})) as service:
        with relay(
            *base, "-verify-client-url", service.url, "-verify-interval", "200ms"
        ) as running:
            peer = log_in(running)
            assert peer is not None
            service.answer = response(500)
            n_asked = len(service.requests)
            eventually(lambda: len(service.requests) > n_asked + 1)
            assert peer.sync() == []
            service.answer = ok({"Allow": False})
            assert peer.is_closed()
            assert 'fastderp_admission_revoked_total{by="url"} 1\n' in running.varz()


def test_a_silent_url_delays_no_other_client(base: tuple[str, ...]) -> None:
    friend = NodePrivate.generate()

    def admit(request: bytes) -> bytes:
        return ok({"Allow": True}) if friend.public_key.text.encode() in request else b""

    with serving(admit) as service, relay(*base, "-verify-client-url", service.url) as running:
        public = running.public_key
        waiting = [Peer.connect("127.0.0.1", running.port, None, 20) for _ in range(40)]
        for peer in waiting:
            peer.upgrade(public)
            peer.send(client_info(peer.key, public))
        eventually(lambda: len(service.requests) == 40)
        inside = log_in(running, friend)
        assert inside is not None and inside.sync() == []
        for peer in (inside, *waiting):
            peer.close()


@pytest.mark.parametrize("fail_open", ["true", "false"])
def test_admission_while_the_url_is_down_follows_the_operators_choice(
    base: tuple[str, ...], fail_open: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        taken.close()
        with relay(
            *base, "-verify-client-url", url, f"-verify-client-url-fail-open={fail_open}"
        ) as running:
            peer = log_in(running)
            assert (peer is not None) is (fail_open == "true")
            if peer is not None:
                peer.close()


def test_tailscaled_decides_and_another_service_at_its_socket_lets_no_client_in(
    base: tuple[str, ...], tmp_path: Path
) -> None:
    friend = NodePrivate.generate()

    def tailscaled(request: bytes) -> bytes:
        if b"status?peers=false" in request:
            return ok({"BackendState": "Running", "Self": {"PublicKey": friend.public_key.text}})
        return ok({"Node": {}}) if friend.public_key.hex.encode() in request else response(404)

    path = tmp_path / "tailscaled.sock"
    with (
        serving(tailscaled, path) as service,
        relay(*base, "-verify-clients", "-socket", str(path)) as running,
    ):
        peer = log_in(running, friend)
        assert peer is not None
        assert log_in(running) is None
        service.answer = b"220 mail.example.com ESMTP\r\n"
        assert log_in(running) is None
        assert peer.sync() == []
        peer.close()


def test_the_check_page_queries_tailscaled_each_time(base: tuple[str, ...], tmp_path: Path) -> None:
    own, path = NodePrivate.generate().public_key, tmp_path / "tailscaled.sock"

    def check(running: RunningRelay) -> str:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{running.port}/debug/check", timeout=10
            ) as page:
                return str(page.read().decode())
        except urllib.error.HTTPError as error:
            assert error.code == 500
            return error.read().decode()

    def tailscaled(request: bytes) -> bytes:
        return (
            ok({"BackendState": "Running", "Self": {"PublicKey": own.text}})
            if b"status?peers=false" in request
            else ok({"Node": {}})
        )

    with relay(*base, "-verify-clients", "-socket", str(path), "-verify-interval=0") as running:
        assert f"tailscaled at {path}" in check(running)
        with serving(tailscaled, path) as service:
            assert check(running) == "derp.Server ConsistencyCheck okay"
            service.answer = response(404)
            assert "does not say who it is" in check(running) or "status 404" in check(running)


def test_a_key_on_a_changed_deny_list_is_disconnected_and_a_signal_makes_it_quick(
    base: tuple[str, ...], tmp_path: Path
) -> None:
    deny = tmp_path / "deny"
    deny.write_text("# none yet\n")
    with relay(*base, "--deny-keys", str(deny)) as running:
        friend, foe = log_in(running), log_in(running)
        assert friend is not None and foe is not None
        deny.write_text(f"{foe.public.text}\n")
        running.process.send_signal(signal.SIGHUP)
        assert foe.is_closed()
        assert friend.sync() == []
        assert log_in(running, foe.key) is None
        friend.close()


def test_an_unusable_setting_is_one_line_at_the_start(
    base: tuple[str, ...], tmp_path: Path
) -> None:
    code, said = refused(*base, "--allow-keys", str(tmp_path / "absent"))
    assert (code, said.count("\n")) == (EX_CONFIG, 1) and "key list" in said
    code, said = refused(*base, "-verify-client-url", "admission.example.com")
    assert (code, said.count("\n")) == (EX_USAGE, 1) and "-verify-client-url" in said


def test_no_unknown_key_is_admitted_without_descriptors_although_the_url_fails_open(
    base: tuple[str, ...],
) -> None:
    with (
        serving(ok({"Allow": False})) as service,
        relay(*base, "-verify-client-url", service.url) as running,
    ):
        address = ("127.0.0.1", running.port)
        process = psutil.Process(running.process.pid)
        # The command has raised its limit; lower it again below what the crowd takes.
        limit = process.num_fds() + 60
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        public = running.public_key
        stranger = Peer.connect(*address, None, 20)
        stranger.upgrade(public)
        crowd = [socket.create_connection(address, 10) for _ in range(120)]
        full = limit - min(DESCRIPTOR_RESERVE, limit // 4)
        eventually(lambda: process.num_fds() >= full)
        stranger.send(client_info(stranger.key, public))
        assert stranger.is_closed()
        assert len(service.requests) == 1, "the stranger was asked about"
        for sock in crowd:
            sock.close()
        assert 'fastderp_admission_verdicts_total{by="url",verdict="denied"} 1\n' in running.varz()


def has_more_than(requests: list[bytes], n: int) -> bool:
    return len(requests) > n


def test_a_tailscaled_without_its_network_map_refuses_new_clients_and_disconnects_none(
    base: tuple[str, ...], tmp_path: Path
) -> None:
    friend, own, path = NodePrivate.generate(), NodePrivate.generate(), tmp_path / "tailscaled.sock"
    state, known = ["Running"], [friend.public_key.hex.encode()]

    def tailscaled(request: bytes) -> bytes:
        if b"/status?" in request:
            return ok({"BackendState": state[0], "Self": {"PublicKey": own.public_key.text}})
        found = state[0] == "Running" and any(key in request for key in known)
        return ok({"Node": {}}) if found else response(404)

    with (
        serving(tailscaled, path) as service,
        relay(
            *base, "-verify-clients", "-socket", str(path), "-verify-interval", "200ms"
        ) as running,
    ):
        peer = log_in(running, friend)
        assert peer is not None
        for state[0] in ("NoState", "NeedsLogin", "Starting"):
            n_asked = len(service.requests)
            eventually(partial(has_more_than, service.requests, n_asked + 4))
            assert log_in(running) is None
            assert peer.sync() == []
        state[0] = "Running"
        n_asked = len(service.requests)
        eventually(lambda: len(service.requests) > n_asked + 2)
        assert peer.sync() == []
        known.clear()
        assert peer.is_closed()
        _, said = running.stop()
        assert (
            said.count("its state is NoState, not Running: see tailscale status; new clients") == 1
        )
