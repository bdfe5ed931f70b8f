"""The limits of one client address, on every transport and behind proxies. PROTOCOL §9.9."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fastderp.errors import LoginError
from fastderp.server.admission.limits import AddressLimit, ClientClass, Limits
from fastderp.server.http.client_address import TrustedProxies
from fastderp.server.settings import ProxySettings
from fastderp.util.token_bucket import TokenBucket
from tests.kit.peer import Peer, client_info, upgrade_request
from tests.kit.relay import PATIENCE_S, Relay, Setup, eventually, running
from tests.kit.websocket import WebSocketPeer, opening_request

BEHIND = ProxySettings(TrustedProxies.parse("127.0.0.1"))
SLOW = 0.001


@pytest.fixture
def behind(certificates: Path) -> Iterator[Relay]:
    with running(Setup(), certificates, proxies=BEHIND) as relay:
        yield relay


def limit(relay: Relay, **limits: Any) -> None:
    relay.call(relay.server.set_limits, Limits(address=AddressLimit(**limits)))


def wait_ended(relay: Relay, n_sessions: int) -> None:
    eventually(lambda: sum(relay.metrics()["fastderp_session_closed_total"].values()) == n_sessions)


class FailingPlane:
    """A data plane that takes no session because of an internal error."""

    def promote(self, descriptor: int, *_: object, **__: object) -> int:
        os.close(descriptor)
        raise ZeroDivisionError


def test_a_login_that_ends_in_an_internal_error_leaves_its_place(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(relay, connections=1)
    with monkeypatch.context() as broken, relay.connect() as failing:
        broken.setattr(relay.server._registrar, "_plane", FailingPlane())
        failing.upgrade(relay.server.public_key)
        failing.send(client_info(failing.key, relay.server.public_key))
        failing.read_to_end()
    with relay.login() as peer:
        peer.sync()


def login_from(relay: Relay, ip: str) -> Peer:
    peer = relay.connect()
    peer.login(relay.server.public_key, headers=[f"X-Forwarded-For: {ip}"])
    return peer


def answer_to_login_from(relay: Relay, ip: str) -> bytes:
    with relay.connect() as peer:
        peer.send(upgrade_request(f"X-Forwarded-For: {ip}"))
        return peer.read_head()


def test_connections_over_the_limit_are_closed_and_a_place_is_free_again_after_an_end(
    relay: Relay,
) -> None:
    limit(relay, connections=3)
    clients = [relay.login() for _ in range(2)]
    with relay.connect_tcp():
        with relay.connect_tcp() as refused:
            assert refused.is_closed()
        assert relay.refused() == {"accept_address": 1}
        for client in clients:
            client.sync()
        other = Peer.connect("::1", relay.port, None, 10)
        other.send(b"x")
        other.close()
    while clients:
        clients.pop().close()
    wait_ended(relay, 2)
    for _ in range(2):
        clients.append(relay.login())


def test_logins_over_the_rate_get_429_and_pages_are_served(relay: Relay) -> None:
    limit(relay, logins_per_s=SLOW, login_burst=2)
    for _ in range(2):
        relay.login().close()
    with relay.connect() as refused:
        request = upgrade_request()
        if isinstance(refused, WebSocketPeer):
            request = opening_request("dGhlIHNhbXBsZSBub25jZQ==")
        refused.send(request)
        answer = refused.read_to_end()
    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"Too many connections or logins from this IP address.\n"
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert relay.refused()["http_429"] == 1
    with relay.connect() as visitor:
        visitor.send(b"GET /derp/probe HTTP/1.0\r\n\r\n")
        assert visitor.read_to_end().startswith(b"HTTP/1.0 200 ")
    limit(relay)
    relay.login().sync()


def test_a_limit_that_is_set_later_counts_the_sessions_there_are(relay: Relay) -> None:
    first = relay.login()
    limit(relay, connections=1)
    with relay.connect_tcp() as refused:
        assert refused.is_closed()
    first.close()
    wait_ended(relay, 1)
    relay.login().sync()


def test_a_network_may_have_limits_of_its_own(certificates: Path) -> None:
    office = ClientClass("office", networks=(ip_network("127.0.0.0/8"),))
    with running(Setup(), certificates) as relay:
        limits = Limits(address=AddressLimit(connections=1), classes=(office,))
        relay.call(relay.server.set_limits, limits)
        for _ in range(3):
            relay.login().sync()


def test_clients_behind_a_proxy_count_by_their_own_address(behind: Relay) -> None:
    limit(behind, connections=2)
    near = [login_from(behind, "203.0.113.7") for _ in range(2)]
    assert answer_to_login_from(behind, "203.0.113.7").startswith(b"HTTP/1.1 429 ")
    assert behind.refused() == {"http_429": 1}
    spoofed = login_from(behind, "203.0.113.7, 198.51.100.9")
    six = [login_from(behind, f"2001:db8::{i}") for i in range(2)]
    assert answer_to_login_from(behind, "2001:db8::99").startswith(b"HTTP/1.1 429 ")
    login_from(behind, "2001:db8:0:1::99").sync()
    for client in (*near, spoofed, *six):
        client.sync()


def test_a_proxy_that_does_not_tell_its_clients_is_not_limited(behind: Relay) -> None:
    limit(behind, connections=1, logins_per_s=SLOW, login_burst=1)
    for _ in range(3):
        behind.login().sync()


def test_an_address_over_its_limit_takes_nothing_from_the_limiter_of_all(
    certificates: Path,
) -> None:
    limiter = TokenBucket(SLOW, 3)
    with running(Setup("TLS 1.3"), certificates, accept_limiter=limiter) as relay:
        limit(relay, connections=1)
        first = relay.login()
        for _ in range(5):
            with relay.connect_tcp() as refused:
                assert refused.is_closed()
        other = relay.connect("::1")
        other.login(relay.server.public_key)
        assert relay.refused() == {"accept_address": 5}
        limit(relay)
        third = relay.connect()
        with relay.connect_tcp() as refused:
            assert refused.is_closed()
        assert relay.metrics()["tls_listener_rejected_connections"] == 1
        for peer in (first, other, third):
            peer.close()


def test_an_address_in_a_proxy_header_is_limited_before_the_tls_handshake(
    certificates: Path,
) -> None:
    proxies = ProxySettings(TrustedProxies.parse("127.0.0.1"), proxy_protocol=True)
    with running(Setup("TLS 1.3"), certificates, proxies=proxies) as relay:
        limit(relay, connections=2)
        held = [relay.connect_tcp() for _ in range(3)]
        for peer in held:
            peer.send(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n")
        # Any of them: they are read in no order.
        sockets = [peer.sock for peer in held]
        [ended], _, _ = select.select(sockets, [], [], PATIENCE_S)
        assert held.pop(sockets.index(ended)).is_closed()
        assert relay.refused() == {"proxy_address": 1}
        other = relay.connect_tcp()
        other.send(b"PROXY TCP4 203.0.113.8 127.0.0.1 4711 443\r\n")
        held.pop(0).close()
        again = relay.connect_tcp()
        again.send(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n\x16")
        for peer in (*held, other, again):
            peer.close()


def test_connections_that_a_program_hands_over_are_limited_alike(certificates: Path) -> None:
    async def serve(relay: Relay, ip: str) -> None:
        reader = asyncio.StreamReader()
        reader.feed_eof()
        _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        await relay.server.accept(reader, writer, (ip, 1))

    with running(Setup(), certificates) as relay:
        limit(relay, logins_per_s=SLOW, login_burst=1)
        with pytest.raises(asyncio.IncompleteReadError):
            relay.run(serve(relay, "203.0.113.7"))
        with pytest.raises(LoginError, match="limit of its address reached: 0.001 logins/s"):
            relay.run(serve(relay, "203.0.113.7"))
        assert relay.refused()["login_address"] == 1
