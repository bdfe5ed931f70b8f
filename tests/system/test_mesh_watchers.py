"""The rights of a mesh peer: presence, ClosePeer. PROTOCOL §5, §6.2, §7.2."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from tests.kit.peer import CLOSE_PEER, GONE, PRESENT, WATCH, Peer, frame
from tests.kit.relay import PATIENCE_S, Relay, Setup, client_context, eventually

SECRET = MeshKey.generate()
REGULAR, MESH, PROBER, NOT_IDEAL = 1, 2, 4, 8
N_CROWD = 5000
CROWD_LIST_BYTES = N_CROWD * (5 + 52)
# the limit of the relay's own frames that wait for a mesh peer
MESH_CONTROL_BYTES = 16 << 20


def mesh_info(secret: MeshKey = SECRET, extra: str = "") -> bytes:
    return b'{"meshKey":"%s","version":2%s}' % (secret.text.encode(), extra.encode())


@pytest.fixture
def relay(start_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield start_relay(mesh_key=SECRET)


def mesh_peer(relay: Relay, **login: Any) -> Peer:
    return relay.login(**{"json": mesh_info(), **login})


def watcher(relay: Relay, **login: Any) -> Peer:
    """Log in and watch; the frames of the list, which includes the watcher, are unread."""
    n_watchers = relay.metrics()["derp_watchers"]
    peer = mesh_peer(relay, **login)
    peer.send_frame(WATCH)
    eventually(lambda: relay.metrics()["derp_watchers"] > n_watchers)
    return peer


def present(peer: Peer, flags: int = REGULAR, app_name: bytes = b"") -> tuple[int, bytes]:
    """Return the PeerPresent that announces this connection."""
    ip, port = peer.sock.getsockname()[:2]
    address = bytes(10) + b"\xff\xff" + socket.inet_aton(ip)
    told = struct.pack(">HBB", port, flags, len(app_name)) + app_name
    return PRESENT, peer.public.raw + address + told


def gone(key: NodePublic) -> tuple[int, bytes]:
    """Return the PeerGone that watchers get for a departure."""
    return GONE, key.raw + b"\0"


def test_a_watcher_gets_itself_then_arrivals_and_departures(relay: Relay) -> None:
    with watcher(relay) as w:
        assert w.read_frame() == present(w, MESH)
        with relay.login() as a:
            assert w.read_frame() == present(a)
        assert w.read_frame() == gone(a.public)


def test_a_watcher_gets_the_app_names_of_present_and_new_clients(
    relay: Relay,
) -> None:
    with relay.login(json=b'{"AppName":"tailscaled"}') as before, watcher(relay) as w:
        assert sorted(w.read_frames(2)) == sorted(
            [present(before, app_name=b"tailscaled"), present(w, MESH)]
        )
        with relay.login(json=b'{"AppName":"' + b"x" * 32 + b'"}') as after:
            assert w.read_frame() == present(after, app_name=b"x" * 32)


def test_a_second_watcher_gets_all_clients_and_the_first_gets_the_second(
    relay: Relay,
) -> None:
    with watcher(relay) as first, relay.login() as a, relay.login() as b:
        assert first.read_frames(3) == [present(first, MESH), present(a), present(b)]
        with watcher(relay) as second:
            listed = second.read_frames(4)
            assert sorted(listed) == sorted(
                [present(first, MESH), present(a), present(b), present(second, MESH)]
            )
            assert first.read_frame() == present(second, MESH)
            a.close()
            assert first.read_frame() == second.read_frame() == gone(a.public)


@pytest.mark.parametrize(
    ("login", "flags"),
    [
        ({}, REGULAR),
        ({"json": b'{"IsProber":true}'}, PROBER),
        ({"json": mesh_info()}, MESH),
        ({"headers": ["Ideal-Node: 1a"]}, NOT_IDEAL),
        (
            {"json": mesh_info(extra=',"IsProber":true'), "headers": ["Ideal-Node: 1a"]},
            PROBER | MESH | NOT_IDEAL,
        ),
    ],
    ids=["regular", "prober", "mesh peer", "not ideal", "all of it"],
)
def test_flags_show_the_kind_of_a_client(relay: Relay, login: dict[str, Any], flags: int) -> None:
    with watcher(relay) as w, relay.login(**login) as client:
        assert w.read_frames(2) == [present(w, MESH), present(client, flags)]
        with watcher(relay) as late:
            assert present(client, flags) in late.read_frames(3)


def test_an_ipv6_client_is_announced_with_its_address(relay: Relay) -> None:
    with watcher(relay) as w, relay.connect("::1") as client:
        client.login(relay.server.public_key)
        w.read_frame()
        _, payload = w.read_frame()
        assert payload[32:48] == socket.inet_pton(socket.AF_INET6, "::1")


def test_every_duplicate_is_announced_and_only_the_last_departure(relay: Relay) -> None:
    key = NodePrivate.generate()
    with watcher(relay) as w:
        w.read_frame()
        one, other = relay.login(key=key), relay.login(key=key)
        assert w.read_frames(2) == [present(one), present(other)]
        other.close()
        with relay.login() as later:
            assert w.read_frame() == present(later)
        assert w.read_frame() == gone(later.public)
        one.close()
        assert w.read_frame() == gone(key.public_key)


def test_a_duplicate_key_is_listed_once(relay: Relay) -> None:
    key = NodePrivate.generate()
    with relay.login(key=key), relay.login(key=key) as newest, watcher(relay) as w:
        assert sorted(w.read_frames(2)) == sorted([present(newest), present(w, MESH)])
        assert w.sync() == []


def test_a_watcher_that_shares_its_key_is_listed_itself(relay: Relay) -> None:
    key = NodePrivate.generate()
    with relay.login(key=key), watcher(relay, key=key) as w:
        assert w.read_frame() == present(w, MESH)
        assert PRESENT not in [frame_type for frame_type, _ in w.sync()]


def test_a_repeated_watch_request_lists_all_clients_again(relay: Relay) -> None:
    with relay.login() as a, watcher(relay) as w:
        once = w.read_frames(2)
        w.send_frame(WATCH)
        assert sorted(w.read_frames(2)) == sorted(once) == sorted([present(a), present(w, MESH)])


def test_a_thousand_watch_requests_are_not_answered_a_thousand_times(relay: Relay) -> None:
    with mesh_peer(relay) as w:
        w.send(frame(WATCH) * 1000)
        eventually(lambda: relay.metrics()["fastderp_mesh_ignored_total"][("watch",)] > 900)
        with relay.login() as a:
            lists = list(iter(w.read_frame, present(a)))
        # ten at once, and another each 100 ms
        assert set(lists) == {present(w, MESH)} and 10 <= len(lists) < 100


def test_a_relay_gets_no_presence_of_itself(relay: Relay) -> None:
    with mesh_peer(relay, key=relay.server.private_key) as itself:
        itself.send_frame(WATCH)
        with relay.login():
            assert itself.sync() == []
        assert relay.metrics()["derp_watchers"] == 0


def test_watchers_are_counted_while_they_watch(relay: Relay) -> None:
    with watcher(relay) as w, relay.login():
        w.read_frames(2)
        assert relay.metrics()["derp_watchers"] == 1
        sizes = dict(relay.metrics()["derp_mesh_update_batch_size"].samples())
        assert sizes["_count"] == sizes["_sum"] == 2
    eventually(lambda: relay.metrics()["derp_watchers"] == 0)


def test_departures_sent_to_watchers_are_counted(relay: Relay) -> None:
    with watcher(relay) as w, watcher(relay) as other:
        w.read_frames(2)
        other.read_frames(2)
        with relay.login() as a:
            w.read_frame()
        assert w.read_frame() == gone(a.public)
        assert relay.metrics()["derp_peer_gone_disconnected_frames"] == 2


def test_without_a_mesh_key_no_client_is_a_mesh_peer(start_relay: Callable[..., Relay]) -> None:
    relay = start_relay()
    with relay.login(json=mesh_info()) as peer:
        peer.send_frame(WATCH)
        assert peer.is_closed()


def test_while_the_secret_changes_both_keys_are_valid(start_relay: Callable[..., Relay]) -> None:
    new, old, other = (MeshKey.generate() for _ in range(3))
    relay = start_relay(mesh_key=[new, old])
    for secret, is_good in ((new, True), (old, True), (other, False)):
        with relay.login(json=mesh_info(secret)) as peer:
            peer.send_frame(WATCH)
            if is_good:
                assert peer.read_frame() == present(peer, MESH)
            else:
                assert peer.is_closed()
    relay.call(setattr, relay.server, "mesh_keys", [new])
    with relay.login(json=mesh_info(old)) as peer:
        peer.send_frame(WATCH)
        assert peer.is_closed()


def test_a_mesh_peer_closes_every_connection_of_a_key(relay: Relay) -> None:
    key = NodePrivate.generate()
    with (
        relay.login(key=key) as one,
        relay.login(key=key) as other,
        relay.login() as bystander,
        mesh_peer(relay) as peer,
    ):
        peer.send_frame(CLOSE_PEER, key.public_key.raw)
        one.read_to_end()
        other.read_to_end()
        assert bystander.sync() == [] and peer.sync() == []


def test_a_mesh_peer_may_close_itself(relay: Relay) -> None:
    with mesh_peer(relay) as peer:
        peer.send_frame(CLOSE_PEER, peer.public.raw)
        assert peer.is_closed()


def test_closing_an_unknown_key_does_nothing(relay: Relay) -> None:
    with mesh_peer(relay) as peer:
        peer.send_frame(CLOSE_PEER, NodePrivate.generate().public_key.raw)
        assert peer.sync() == []


@pytest.fixture
def crowded(start_relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Run a relay with 5,000 silent clients."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 11_000:
        pytest.skip("needs 11,000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 11_000), limits[1]))
    # A watcher that does not read is not closed for that.
    monkeypatch.setattr("fastderp.server.server.Plane", partial(Plane, mesh_write_timeout_s=0))
    relay = start_relay(Setup("TLS 1.3"), mesh_key=SECRET)
    peers = [socket.socketpair() for _ in range(N_CROWD)]

    def promote_all() -> None:
        for number, (_, theirs) in enumerate(peers):
            relay.server._plane.promote(theirs.detach(), number.to_bytes(32, "big"))

    relay.call(promote_all)
    try:
        yield relay
    finally:
        for ours, _ in peers:
            ours.close()


def deaf_watcher(relay: Relay) -> Peer:
    """Log in and watch with a receive window that is smaller than the list."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE_S)
    sock.connect(("127.0.0.1", relay.port))
    context = client_context(relay.setup)
    assert context is not None
    peer = Peer(context.wrap_socket(sock))
    peer.login(relay.server.public_key, json=mesh_info())
    peer.send_frame(WATCH)
    eventually(lambda: relay.metrics()["fastderp_backlog_bytes"] > CROWD_LIST_BYTES // 4)
    # Changes are sent between the parts of a list.
    eventually(lambda: not relay.server._region.presence._lists)
    return peer


def hear_of_each_other(relay: Relay, w: Peer) -> None:
    """Let clients log in, send and leave; the watcher, which has read the list, gets frames."""
    with relay.login() as a, relay.login() as b:
        assert w.read_frames(2) == [present(a), present(b)]
        a.send_packet(b.public, b"hello")
        assert b.read_packet() == (a.public, b"hello")
    assert sorted(w.read_frames(2)) == sorted([gone(a.public), gone(b.public)])


def test_five_thousand_clients_are_listed_at_once(crowded: Relay) -> None:
    with watcher(crowded) as w:
        keys = {payload[:32] for _, payload in w.read_frames(N_CROWD + 1)}
        assert keys == {number.to_bytes(32, "big") for number in range(N_CROWD)} | {w.public.raw}


def test_a_watcher_that_does_not_read_delays_no_other_and_misses_nothing(crowded: Relay) -> None:
    with watcher(crowded) as w:
        w.read_frames(N_CROWD + 1)
        with deaf_watcher(crowded) as deaf:
            assert w.read_frame() == present(deaf, MESH)
            hear_of_each_other(crowded, w)
            assert crowded.metrics()["fastderp_backlog_bytes"] > CROWD_LIST_BYTES // 4
            listed = {payload[:32] for _, payload in deaf.read_frames(N_CROWD + 2)}
            assert {w.public.raw, deaf.public.raw} < listed and len(listed) == N_CROWD + 2
            assert [frame_type for frame_type, _ in deaf.read_frames(4)] == [
                PRESENT,
                PRESENT,
                GONE,
                GONE,
            ]


def wait_for_backlog(relay: Relay, n_bytes: int) -> None:
    eventually(lambda: relay.metrics()["fastderp_backlog_bytes"] > n_bytes)


def overflowed(relay: Relay) -> bool:
    return "control_overflow" in relay.metrics()["fastderp_session_closed_total"]


def wait_for_backlog_or_overflow(relay: Relay, n_bytes: int) -> None:
    eventually(lambda: overflowed(relay) or relay.metrics()["fastderp_backlog_bytes"] >= n_bytes)


def test_a_list_under_way_neither_repeats_arrivals_nor_names_those_who_left(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.presence.CLIENTS_PER_TURN", 1)
    staying = [relay.login() for _ in range(20)]
    leaving = [relay.login() for _ in range(20)]
    with mesh_peer(relay) as w:
        w.send_frame(WATCH)
        for peer in leaving:
            peer.close()
        arriving = [relay.login() for _ in range(5)]
        here: list[bytes] = []
        eventually(lambda: relay.metrics()["derp_current_connections"] == 26)
        while sorted(here) != sorted(p.public.raw for p in (*staying, *arriving, w)):
            frame_type, payload = w.read_frame()
            if frame_type == PRESENT:
                here.append(payload[:32])
            elif payload[:32] in here:
                here.remove(payload[:32])
        assert w.sync() == []
    for peer in (*staying, *arriving):
        peer.close()


def test_a_watcher_with_a_full_backlog_is_closed_and_no_other_peer(
    crowded: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.presence.FLOODS_PER_S", 1000.0)
    with watcher(crowded) as w:
        w.read_frames(N_CROWD + 1)
        with deaf_watcher(crowded) as deaf:
            assert w.read_frame() == present(deaf, MESH)
            n_lists = MESH_CONTROL_BYTES // CROWD_LIST_BYTES
            for number in range(1, n_lists - 1):  # the kernel holds a part of the first list
                deaf.send_frame(WATCH)
                wait_for_backlog(crowded, number * CROWD_LIST_BYTES)
            hear_of_each_other(crowded, w)
            # After a write that fails, Python 3.14's ssl also fails the next read of `w`.
            while not overflowed(crowded):
                whole = crowded.metrics()["fastderp_backlog_bytes"] + CROWD_LIST_BYTES
                deaf.send_frame(WATCH)
                wait_for_backlog_or_overflow(crowded, whole)
            assert w.read_frame() == gone(deaf.public)
            assert crowded.metrics()["fastderp_session_closed_total"] == {
                "eof": 2,
                "control_overflow": 1,
            }
            assert crowded.metrics()["fastderp_backlog_bytes"] == 0
        hear_of_each_other(crowded, w)
