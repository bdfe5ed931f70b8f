"""Logins and every kind of malformed login. PROTOCOL §3."""

from __future__ import annotations

import gc
import logging
import os
import re
import resource
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from fastderp.server.accept.connection import Connection
from fastderp.server.accept.listener import LOGIN_BUDGET_S
from fastderp.server.net.stream import Stream
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo
from tests.kit.peer import (
    CLIENT_INFO,
    FAST_START,
    PING,
    PONG,
    SERVER_INFO,
    SERVER_KEY,
    Peer,
    client_info,
    frame,
    upgrade_request,
)
from tests.kit.relay import Relay, Setup, eventually, without_websocket

StartRelay = Callable[..., Relay]

N_SILENT = 2000

LOW_ORDER_KEY = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


def test_a_client_logs_in_as_the_protocol_says(relay: Relay) -> None:
    with relay.login() as peer:
        assert relay.server.is_client_connected(peer.public)
        assert relay.metrics()["derp_current_connections"] == 1
    relay.wait_connected(peer.public, False)
    eventually(lambda: relay.metrics()["derp_current_connections"] == 0)


def test_every_session_end_is_a_line_with_key_address_seconds_and_reason(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    with relay.login() as bystander:
        with relay.login() as leaving:
            leaving.send_packet(bystander.public, b"x" * 100)
            bystander.read_packet()
            bystander.send_packet(leaving.public, b"y")
            leaving.read_packet()
        line = rf"{re.escape(leaving.public.short)} 127\.0\.0\.1:\d+: closed after \d+\.\d s: eof; "
        eventually(
            lambda: re.search(
                line + "in 1 packets 100 bytes, out 1 packets 1 bytes, dropped 0$",
                caplog.text,
                re.MULTILINE,
            )
        )
        bystander.send(frame(PING, b"short"))
        eventually(lambda: f"{bystander.public.short} 127.0.0.1:" in caplog.text)
    assert "bad_frame_size; in 1 packets 1 bytes, out 1 packets 100 bytes" in caplog.messages[-1]


def test_when_thousands_leave_at_once_some_have_lines_and_the_rest_a_number(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    peers = [socket.socketpair() for _ in range(300)]
    for ours, theirs in peers:
        relay.call(relay.server._plane.promote, theirs.detach(), os.urandom(32))
        ours.close()
    eventually(lambda: relay.metrics()["fastderp_session_closed_total"] == {"eof": 300})
    relay.run(relay.server.close())
    assert sum(": closed after" in line for line in caplog.messages) == 100
    assert caplog.messages[-1] == "200 more sessions closed: eof"


def test_sessions_without_a_line_are_summed_up_soon_after(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    monkeypatch.setattr("fastderp.server.observe.maintenance.INTERVAL_S", 0.01)
    monkeypatch.setattr("fastderp.server.observe.connection_log.WINDOW_S", 0.05)
    monkeypatch.setattr("fastderp.server.observe.connection_log.SESSION_LINES", 1)
    relay = start_relay()
    with relay.login(), relay.login(), relay.login():
        pass
    eventually(lambda: sum("more sessions closed: eof" in line for line in caplog.messages))


@without_websocket
def test_a_fast_start_in_one_write_needs_no_answer_and_loses_no_frame(relay: Relay) -> None:
    relay_key = relay.server.public_key
    with relay.connect() as peer:
        login = client_info(peer.key, relay_key)
        peer.send(
            upgrade_request(FAST_START)
            + login
            + frame(PING, b"\0" * 7 + b"1")
            + frame(PING, b"\0" * 7 + b"2")[:9]
        )
        assert peer.read_frame()[0] == SERVER_KEY
        peer.read_server_info(relay_key)
        assert peer.read_frame() == (PONG, b"\0" * 7 + b"1")
        peer.send(b"\0\0\0" + b"2")
        assert peer.read_frame() == (PONG, b"\0" * 7 + b"2")


def test_frames_directly_after_the_login_are_served_after_server_info(relay: Relay) -> None:
    relay_key = relay.server.public_key
    with relay.login() as receiver, relay.connect() as peer:
        peer.upgrade(relay_key)
        packets = b"".join(frame(4, receiver.public.raw + b"%d" % i) for i in range(100))
        peer.send(client_info(peer.key, relay_key) + packets)
        peer.read_server_info(relay_key)
        assert [receiver.read_packet() for _ in range(100)] == [
            (peer.public, b"%d" % i) for i in range(100)
        ]


@without_websocket
def test_a_login_may_arrive_byte_by_byte(relay: Relay) -> None:
    relay_key = relay.server.public_key
    with relay.connect() as peer:
        for byte in upgrade_request(FAST_START) + client_info(peer.key, relay_key):
            peer.send(bytes([byte]))
        assert peer.read_frame()[0] == SERVER_KEY
        peer.read_server_info(relay_key)


def test_the_largest_login_is_accepted(relay: Relay) -> None:
    with relay.connect() as peer:
        json = b'{"version":2}'.ljust(256 * 1024 - 32 - 24 - 16)
        peer.login(relay.server.public_key, json=json)


@pytest.mark.parametrize(
    "json", [b"{}", b"null", b' {"VERSION":2,"future":[1]} ', b'{"meshKey":"' + b"0" * 64 + b'"}']
)
def test_client_infos_of_every_release_are_accepted(start_relay: StartRelay, json: bytes) -> None:
    relay = start_relay()
    with relay.connect() as peer:
        peer.login(relay.server.public_key, json=json)


def _bad_logins(key: NodePrivate, relay: NodePublic) -> dict[str, tuple[bytes, str]]:
    """Return bytes that a client sends after the upgrade, and the reason of their refusal."""
    good = client_info(key, relay)
    sealed = key.seal_to(relay, b"{}")
    flipped = bytearray(good)
    flipped[-1] ^= 1
    return {
        "another frame type": (frame(PING, b"x" * 60), "frame_type"),
        "one byte too short": (struct.pack(">BI", CLIENT_INFO, 55), "frame_size"),
        "one byte too long": (struct.pack(">BI", CLIENT_INFO, 262145), "frame_size"),
        "4 GiB long": (struct.pack(">BI", CLIENT_INFO, 0xFFFFFFFF), "frame_size"),
        "box for another relay": (client_info(key, NodePrivate.generate().public_key), "box"),
        "flipped bit": (bytes(flipped), "box"),
        "no box at all": (frame(CLIENT_INFO, key.public_key.raw + bytes(24)), "box"),
        "key of all zeros": (frame(CLIENT_INFO, bytes(32) + sealed), "client_key"),
        "key of low order": (frame(CLIENT_INFO, LOW_ORDER_KEY + sealed), "client_key"),
        "broken JSON": (client_info(key, relay, b"{"), "json"),
        "JSON array": (client_info(key, relay, b"[]"), "json"),
        "empty JSON": (client_info(key, relay, b""), "json"),
        "version of a wrong type": (client_info(key, relay, b'{"version":"2"}'), "json"),
        "empty mesh key": (client_info(key, relay, b'{"meshKey":""}'), "mesh_key"),
        "short mesh key": (client_info(key, relay, b'{"meshKey":"00"}'), "mesh_key"),
    }


@pytest.mark.parametrize(
    "what", _bad_logins(NodePrivate.generate(), NodePrivate.generate().public_key)
)
def test_a_bad_login_closes_that_connection_only_and_is_counted_and_logged(
    start_relay: StartRelay, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    with relay.login() as bystander, relay.connect() as peer:
        sent, reason = _bad_logins(peer.key, relay.server.public_key)[what]
        peer.upgrade(relay.server.public_key)
        peer.send(sent)
        assert peer.is_closed()
        assert bystander.sync() == []
        assert not relay.server.is_client_connected(peer.public)
        assert relay.refused() == {f"login_{reason}": 1}
        [line] = [
            record.getMessage() for record in caplog.records if "refused" in record.getMessage()
        ]
        assert line.startswith("127.0.0.1:") and "refused at login: " in line
        assert peer.key.raw.hex() not in caplog.text


def test_a_client_that_leaves_after_the_greeting_is_counted_without_an_alarm(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    with relay.connect() as peer:
        peer.upgrade(relay.server.public_key)
    eventually(lambda: relay.refused() == {"login_end": 1})
    assert caplog.text == ""


@pytest.mark.parametrize("n_sent", [3, 5, 60])
def test_a_truncated_login_is_counted_and_logged(
    start_relay: StartRelay, n_sent: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    with relay.connect() as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(client_info(peer.key, relay.server.public_key)[:n_sent])
    eventually(lambda: relay.refused() == {"login_end": 1})
    assert "the client left before its login was complete" in caplog.text


def test_a_repeated_refusal_is_logged_once_and_counted_every_time(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay()
    for _ in range(20):
        with relay.connect() as peer:
            peer.send(upgrade_request() + frame(PING, b"x" * 8))
            peer.read_to_end()
    assert relay.refused() == {"login_frame_type": 20}
    assert caplog.text.count("first frame has type") == 1


@pytest.mark.parametrize(
    "setup",
    [Setup("plain", "uvloop"), Setup("plain", "asyncio"), Setup("TLS 1.3", "uvloop")],
    ids=str,
)
def test_a_client_without_a_login_in_time_is_closed_even_if_bytes_trickle_in(
    start_relay: StartRelay, setup: Setup
) -> None:
    assert LOGIN_BUDGET_S == 10.0
    relay = start_relay(setup, login_timeout=2.0)
    with relay.connect_tcp() as silent, relay.connect_tcp() as slow, relay.connect() as waiting:
        waiting.upgrade(relay.server.public_key)
        stop = threading.Event()

        def trickle() -> None:
            head = b"GET / HTTP/1.1\r\nHost: " + b"x" * 1000
            hello = b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03" + bytes(245)
            for byte in head if setup.transport == "plain" else hello:
                if stop.wait(0.05):
                    return
                try:
                    slow.send(bytes([byte]))
                except OSError:
                    return

        trickler = threading.Thread(target=trickle)
        trickler.start()
        assert silent.is_closed() and waiting.is_closed()
        slow.read_to_end()
        stop.set()
        trickler.join()
    n_timeouts = sum(
        count for reason, count in relay.refused().items() if reason.endswith("timeout")
    )
    assert n_timeouts == 3
    with relay.login() as peer:
        assert peer.sync() == []


def test_clients_log_in_while_thousands_of_connections_are_silent(
    start_relay: StartRelay,
) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2
    )
    relay = start_relay(login_timeout=30.0)
    held = [relay.connect_tcp() for _ in range(N_SILENT)]
    with relay.login() as peer:
        assert peer.sync() == []
    assert relay.metrics()["fastderp_connections_not_logged_in"] == N_SILENT
    for silent in held:
        silent.close()
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)


def test_oversized_logins_share_a_bounded_memory_and_the_oldest_is_closed(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(login_memory_bytes=4 << 20)
    begun = struct.pack(">BI", CLIENT_INFO, 250_000) + bytes(240_000)
    held = []
    for _ in range(18):
        peer = relay.connect()
        peer.upgrade(relay.server.public_key)
        peer.send(begun)
        held.append(peer)
    eventually(lambda: "login_memory" in relay.refused())
    assert held[0].is_closed()
    assert relay.metrics()["fastderp_login_memory_bytes"] <= 4 << 20
    with relay.login() as small:
        assert small.sync() == []
    for peer in held:
        peer.close()
    eventually(lambda: relay.metrics()["fastderp_login_memory_bytes"] == 0)


def test_when_too_many_are_not_logged_in_the_oldest_is_closed(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.listener.PENDING_LIMIT", 3)
    relay = start_relay()
    held = [relay.connect_tcp() for _ in range(3)]
    eventually(lambda: relay.listener.n_pending == 3)
    with relay.login() as peer:
        assert peer.sync() == []
    assert held[0].is_closed()
    assert relay.refused()["http_crowded"] == 1
    for silent in held:
        silent.close()


# Admission


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_the_verifier_refuses_is_closed_and_others_are_admitted(
    start_relay: StartRelay, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    asked: list[tuple[NodePublic, str]] = []
    allowed: set[NodePublic] = set()

    async def verify(key: NodePublic, info: ClientInfo, ip: str) -> bool:
        asked.append((key, ip))
        return key in allowed

    relay = start_relay(Setup("plain", loop), verify=verify)
    friend = NodePrivate.generate()
    allowed.add(friend.public_key)
    with relay.login(key=friend) as peer, relay.connect() as stranger:
        stranger.upgrade(relay.server.public_key)
        stranger.send(client_info(stranger.key, relay.server.public_key))
        assert stranger.is_closed()
        assert peer.sync() == []
    assert asked == [(friend.public_key, "127.0.0.1"), (stranger.public, "127.0.0.1")]
    assert relay.refused()["admission_denied"] == 1
    assert f"{stranger.public.short} is not allowed" in caplog.text


def test_a_verifier_that_fails_refuses_every_client(start_relay: StartRelay) -> None:
    async def verify(key: NodePublic, info: ClientInfo, ip: str) -> bool:
        raise ConnectionError("no such service")

    relay = start_relay(verify=verify)
    with relay.connect() as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(client_info(peer.key, relay.server.public_key))
        assert peer.is_closed()
    assert relay.refused() == {"admission_denied": 1}


def test_a_client_with_the_mesh_key_bypasses_the_verifier(start_relay: StartRelay) -> None:
    async def verify(key: NodePublic, info: ClientInfo, ip: str) -> bool:
        return False

    secret = MeshKey.generate()
    relay = start_relay(verify=verify, mesh_key=secret)
    with relay.connect() as peer:
        peer.login(relay.server.public_key, json=b'{"meshKey":"%s"}' % secret.text.encode())
        assert peer.sync() == []
    with relay.connect() as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(
            client_info(peer.key, relay.server.public_key, b'{"meshKey":"%s"}' % (b"ab" * 32))
        )
        assert peer.is_closed()


def test_server_info_is_the_first_frame_even_with_busy_peers(start_relay: StartRelay) -> None:
    relay = start_relay()
    stop = threading.Event()
    key = NodePrivate.generate()
    with relay.login() as sender, relay.login(key=key):

        def shoot() -> None:
            while not stop.is_set():
                sender.send_packet(key.public_key, b"early")

        shooter = threading.Thread(target=shoot)
        shooter.start()
        try:
            for _ in range(50):
                with relay.connect() as again:
                    again.upgrade(relay.server.public_key)
                    again.send(client_info(key, relay.server.public_key))
                    assert again.read_frame()[0] == SERVER_INFO
        finally:
            stop.set()
            shooter.join()


def connection_objects() -> list[object]:
    return [thing for thing in gc.get_objects() if isinstance(thing, (Connection, Stream))]


def test_a_connection_is_freed_in_python_once_it_is_logged_in(start_relay: StartRelay) -> None:
    before = connection_objects()  # of other tests
    relay = start_relay(Setup("TLS 1.3", "uvloop"))
    peers: list[Peer] = [relay.login() for _ in range(5)]
    for peer in peers:
        peer.sync()

    def is_freed() -> bool:
        gc.collect()
        return all(thing in before for thing in connection_objects())

    eventually(is_freed)  # its last callback may still run
    for peer in peers:
        peer.close()


def test_clients_with_a_disallowed_or_malformed_app_name_are_closed_counted_and_logged(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    relay = start_relay(disallowed_app_names=["noisy"])
    for name in (b"noisy", b"x" * 33):
        with relay.connect() as peer:
            peer.upgrade(relay.server.public_key)
            json = b'{"version":2,"AppName":"' + name + b'"}'
            peer.send(client_info(peer.key, relay.server.public_key, json))
            assert peer.is_closed()
    with relay.login(json=b'{"version":2,"AppName":"noisy2"}') as peer:
        pass
    eventually(lambda: f"{peer.public.short} 127.0.0.1:" in caplog.text)
    [line] = (line for line in caplog.messages if line.startswith(peer.public.short))
    assert " (noisy2): closed after " in line
    assert relay.refused() == {"login_app_name_disallowed": 1, "login_app_name": 1}
    assert 'refused at login: the app name "noisy" is not allowed' in caplog.text
