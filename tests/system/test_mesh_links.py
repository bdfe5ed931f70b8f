"""Relays of one region: packets, presence, links that break and return. PROTOCOL §7."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.server.mesh.links import LinkState
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.wire.keys import MeshKey, NodePrivate
from tests.kit.certificates import self_signed
from tests.kit.peer import DISCO, GONE, RECV
from tests.kit.ports import free_ports
from tests.kit.relay import Relay, Setup, eventually, running

SECRET = MeshKey.generate()
StartRelay = Callable[..., Relay]

EVERY_LINK = [
    Setup(transport, loop)
    for transport in ("plain", "TLS 1.2", "TLS 1.3")
    for loop in ("uvloop", "asyncio")
]


def start_member(start_relay: StartRelay, setup: Setup = Setup(), **server: object) -> Relay:
    """Start a relay for a region; it trusts any certificate."""
    return start_relay(
        setup, **{"mesh_key": SECRET, "mesh_tls": ClientContext(verify=False), **server}
    )


def url(relay: Relay) -> str:
    return (
        f"{'http' if relay.setup.transport == 'plain' else 'https'}://127.0.0.1:{relay.port}/derp"
    )


def link(relay: Relay, *others: Relay) -> None:
    """Add the others to a relay's region."""
    relay.call(relay.server.set_mesh_peers, [url(other) for other in others])


def state(relay: Relay, of: Relay) -> str:
    states = relay.metrics()["fastderp_mesh_links"]
    return next(
        (name for (host, name), value in states.items() if host == url(of) and value), "none"
    )


def wait_linked(relay: Relay, other: Relay) -> None:
    eventually(lambda: state(relay, other) == LinkState.UP)


def wait_knows(relay: Relay, n_clients: int) -> None:
    """Wait until a relay can reach `n` keys at other relays."""
    eventually(lambda: relay.metrics()["derp_clients_remote"] == n_clients)


@pytest.fixture(params=EVERY_LINK, ids=str)
def pair(request: pytest.FixtureRequest, start_relay: StartRelay) -> tuple[Relay, Relay]:
    """Two relays linked to each other, over each transport and on each event loop."""
    one, other = start_member(start_relay, request.param), start_member(start_relay, request.param)
    link(one, other)
    link(other, one)
    wait_linked(one, other)
    wait_linked(other, one)
    return one, other


def test_packets_cross_from_relay_to_relay(pair: tuple[Relay, Relay]) -> None:
    one, other = pair
    with one.login() as a, other.login() as b:
        wait_knows(one, 2)  # b, and the other relay, which is logged in there
        wait_knows(other, 2)
        for size in (0, 1, 1400, 65536):
            a.send_packet(b.public, b"x" * size)
            assert b.read_packet() == (a.public, b"x" * size)
            b.send_packet(a.public, b"y" * size)
            assert a.read_packet() == (b.public, b"y" * size)
        for relay in pair:
            assert (
                relay.metrics()["derp_packets_forwarded_out"]
                == relay.metrics()["derp_packets_forwarded_in"]
                == 4
            )
            assert relay.call(relay.server.consistency_check) == []


def test_a_link_is_logged_with_the_number_of_clients_behind_it(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    one, other = start_member(start_relay), start_member(start_relay)
    with other.login(), other.login():
        link(one, other)
        # the relay's own login is one of the three
        told = f"mesh: linked to {url(other)} {other.server.public_key.short}; 3 peers"
        eventually(lambda: told in caplog.messages)


def test_receivers_at_another_relay_get_peer_gone(pair: tuple[Relay, Relay]) -> None:
    one, other = pair
    with one.login() as a, other.login() as b:
        wait_knows(one, 2)
        wait_knows(other, 2)  # a sender must be known before its departure can be announced
        a.send_packet(b.public, b"x")
        assert b.read_packet() == (a.public, b"x")
        a.close()
        assert b.read_frame() == (GONE, a.public.raw + b"\0")


def test_a_large_burst_crosses_whole_and_in_order(start_relay: StartRelay) -> None:
    one, other = (
        start_member(start_relay, Setup("TLS 1.3")),
        start_member(start_relay, Setup("TLS 1.3")),
    )
    link(one, other)
    with one.login() as a, other.login() as b:
        wait_knows(one, 2)
        for number in range(500):
            a.send_packet(b.public, number.to_bytes(2, "big") * 50)
        for number in range(500):
            assert b.read_packet() == (a.public, number.to_bytes(2, "big") * 50)


def test_a_local_client_is_reached_without_the_mesh(start_relay: StartRelay) -> None:
    one, other = start_member(start_relay), start_member(start_relay)
    link(one, other)
    key = NodePrivate.generate()
    with one.login() as a, other.login(key=key) as elsewhere:
        wait_knows(one, 2)
        with one.login(key=key) as here:
            a.send_packet(key.public_key, b"to the local one")
            assert here.read_packet() == (a.public, b"to the local one")
        assert a.sync() == []
        one.wait_connected(key.public_key, False)
        a.send_packet(key.public_key, b"to the other")
        assert elsewhere.read_packet() == (a.public, b"to the other")


def test_a_relay_recognises_itself_among_the_members(start_relay: StartRelay) -> None:
    relay = start_member(start_relay)
    link(relay, relay)
    eventually(lambda: state(relay, relay) == LinkState.ITSELF)
    assert relay.metrics()["derp_current_connections"] == 0


def test_a_member_may_be_dialled_elsewhere_than_its_name_says(
    start_relay: StartRelay, tmp_path: Path
) -> None:
    certificate = self_signed("relay.example")
    trusted = tmp_path / "relay.example.pem"
    trusted.write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    one, other = (
        start_member(start_relay, mesh_tls=ClientContext(cafile=str(trusted))),
        start_member(start_relay),
    )
    tls = ServerContext([certificate.der], certificate.key_der, required_sni="relay.example")
    port = other.call(lambda: other.server.listen("127.0.0.1", 0, tls=tls).port)
    member = f"relay.example:{port}/127.0.0.1"
    one.call(one.server.set_mesh_peers, [member])
    eventually(lambda: one.metrics()["fastderp_mesh_links"][member, "up"])
    with other.login() as b, one.login() as a:
        wait_knows(one, 2)
        a.send_packet(b.public, b"hello")
        assert b.read_packet() == (a.public, b"hello")


def test_members_keep_their_links_when_others_are_added_and_removed(
    start_relay: StartRelay,
) -> None:
    one, stays, goes, comes = (start_member(start_relay) for _ in range(4))
    link(one, stays, goes)
    wait_linked(one, stays)
    wait_linked(one, goes)
    link(one, comes, stays)
    wait_linked(one, comes)
    eventually(lambda: goes.metrics()["derp_current_connections"] == 0)
    metrics = one.metrics()
    assert metrics["fastderp_mesh_connects_total"] == {(url(comes),): 1, (url(stays),): 1}
    assert metrics["fastderp_mesh_failures_total"] == {(url(comes),): 0, (url(stays),): 0}
    # The relay's own login at each member counts as a client.
    assert metrics["fastderp_mesh_keys"] == {(url(comes),): 1, (url(stays),): 1}
    assert {state for (_, state), value in metrics["fastderp_mesh_links"].items() if value} == {
        "up"
    }
    assert len(metrics["fastderp_mesh_links"]) == 2 * len(LinkState)


def test_a_relay_with_another_secret_is_not_linked_to(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = start_member(start_relay), start_member(start_relay, mesh_key=MeshKey.generate())
    link(one, other)
    eventually(lambda: "check that both have the same mesh key" in caplog.text)
    eventually(lambda: state(one, other) == LinkState.WAITING)
    assert one.metrics()["derp_clients_remote"] == 0


def test_a_certificate_that_is_not_trusted_makes_no_link(
    start_relay: StartRelay, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (
        start_member(start_relay, mesh_tls=ClientContext()),
        start_member(start_relay, Setup("TLS 1.3")),
    )
    link(one, other)
    eventually(lambda: "no link to https://127.0.0.1" in caplog.text)
    assert "certificate" in caplog.text


def test_an_absent_member_is_linked_when_it_starts(
    start_relay: StartRelay, certificates: Path
) -> None:
    one = start_member(start_relay)
    key = NodePrivate.generate()
    [port] = free_ports(1)
    with running(Setup(), certificates, mesh_key=SECRET, private_key=key, port=port) as first:
        first_url = url(first)
        one.call(one.server.set_mesh_peers, [first_url])
        wait_linked(one, first)
        with first.login():
            wait_knows(one, 2)
    eventually(lambda: state(one, first) != LinkState.UP)
    wait_knows(one, 0)
    with (
        running(Setup(), certificates, mesh_key=SECRET, private_key=key, port=port) as again,
        again.login(),
    ):
        wait_linked(one, first)
        wait_knows(one, 2)
    connects, failures = (
        one.metrics()[f"fastderp_mesh_{name}_total"] for name in ("connects", "failures")
    )
    assert connects[first_url,] == 2 and failures[first_url,] >= 1


def test_a_member_that_logs_in_is_dialled_at_once(
    start_relay: StartRelay, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.links.FIRST_RETRY_S", 3600.0)
    one, key = start_member(start_relay), NodePrivate.generate()
    [port] = free_ports(1)
    with running(Setup(), certificates, mesh_key=SECRET, private_key=key, port=port) as first:
        link(one, first)
        wait_linked(one, first)
    eventually(lambda: state(one, first) == LinkState.WAITING)
    with running(Setup(), certificates, mesh_key=SECRET, private_key=key, port=port) as again:
        link(again, one)
        wait_linked(one, again)


def test_keys_of_a_broken_link_are_withdrawn_and_receivers_get_peer_gone(
    start_relay: StartRelay,
) -> None:
    one, other = start_member(start_relay), start_member(start_relay)
    link(one, other)
    link(other, one)
    with one.login() as a, other.login() as b:
        wait_knows(one, 2)
        wait_knows(other, 2)
        b.send_packet(a.public, b"x")
        assert a.read_packet() == (b.public, b"x")
        link(one)
        assert a.read_frame() == (GONE, b.public.raw + b"\0")
        a.send_packet(b.public, b"unknown key")
        assert a.sync() == b.sync() == []
        assert one.metrics()["derp_packets_dropped"]["unknown_dest", "other"] == 1
        assert one.metrics()["fastderp_mesh_links"] == {}


def test_disco_to_a_client_that_left_the_other_relay_is_answered_not_here(
    start_relay: StartRelay,
) -> None:
    one, other = start_member(start_relay), start_member(start_relay)
    ghost = NodePrivate.generate().public_key
    with other.login(json=b'{"meshKey":"%s"}' % SECRET.text.encode()) as peer:
        disco = DISCO + bytes(56)
        peer.send_frame(0x0A, one.server.public_key.raw + ghost.raw + disco)
        assert peer.read_frame() == (GONE, ghost.raw + b"\1")


def test_clients_behind_the_second_relay_are_not_announced_to_a_third(
    start_relay: StartRelay,
) -> None:
    one, two, three = (start_member(start_relay) for _ in range(3))
    link(one, two)
    link(two, three)
    with three.login() as c:
        wait_knows(two, 2)
        wait_linked(one, two)
        assert (
            one.metrics()["derp_clients_remote"] == 1
        )  # the second relay's login: our own key, at a remote relay
        with one.login() as a:
            a.send_packet(c.public, b"two hops")
            assert c.sync() == []


def test_without_a_secret_members_are_refused(start_relay: StartRelay) -> None:
    relay = start_relay()
    with pytest.raises(ValueError, match="without a mesh key"):
        relay.call(relay.server.set_mesh_peers, ["relay.example.com"])


def test_mesh_peers_are_not_slowed_down_by_the_rate_limit(start_relay: StartRelay) -> None:
    one, other = start_member(start_relay), start_member(start_relay)
    link(one, other)
    other.call(other.server._plane.set_rate_limits, [(1, 0)])
    with one.login() as a, other.login() as b:
        wait_knows(one, 2)
        for _ in range(20):
            a.send_packet(b.public, bytes(10_000))
        assert [b.read_frame()[0] for _ in range(20)] == [RECV] * 20
