"""Members of the region that misbehave: excess frames are ignored and counted. RELIABILITY F17."""

from __future__ import annotations

import secrets
import select
import socket
import struct
from collections.abc import Callable

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.server.mesh.dial import CONNECT_TIMEOUT_S
from fastderp.server.mesh.links import LinkState, MeshLink
from fastderp.wire.keys import MeshKey, NodePublic
from tests.kit.memory import resident_bytes
from tests.kit.mesh_member import SECRET, member_of
from tests.kit.peer import (
    CLOSE_PEER,
    FORWARD,
    GONE,
    MAGIC,
    PRESENT,
    RESTARTING,
    SERVER_INFO,
    SERVER_KEY,
    frame,
)
from tests.kit.relay import PATIENCE_S, Relay, eventually


@pytest.fixture
def relay(start_relay: Callable[..., Relay]) -> Relay:
    return start_relay(mesh_key=SECRET)


def state_of(relay: Relay) -> str:
    links: dict[tuple[str, str], int] = relay.metrics()["fastderp_mesh_links"]
    return next(state for (_, state), value in links.items() if value)


def wait_state(relay: Relay, state: LinkState) -> None:
    eventually(lambda: state_of(relay) == state)


def remote_keys(relay: Relay) -> int:
    return int(relay.metrics()["derp_clients_remote"])


def test_ghost_keys_beyond_the_limit_are_ignored_and_counted(relay: Relay) -> None:
    relay.server._region.mesh.max_keys_per_link = 1000
    with member_of(relay) as member:
        member.welcome()
        ghosts = [secrets.token_bytes(32) for _ in range(1500)]
        member.sock.sendall(b"".join(member.present(ghost) for ghost in ghosts))
        eventually(lambda: relay.metrics()["fastderp_mesh_ignored_total"]["keys",] == 500)
        assert remote_keys(relay) == 1000
        member.sock.sendall(frame(GONE, ghosts[0] + b"\0") + member.present(ghosts[-1]))
        member.sock.sendall(frame(GONE, ghosts[1] + b"\0"))
        eventually(lambda: remote_keys(relay) == 999)
        assert relay.call(relay.server.consistency_check) == []
    eventually(lambda: remote_keys(relay) == 0)


def test_repeated_announcements_of_a_key_cost_nothing(relay: Relay) -> None:
    with member_of(relay) as member:
        member.welcome()
        member.sock.sendall(
            member.present(bytes(range(32))) * 10_000 + member.present(bytes(range(1, 33)))
        )
        eventually(lambda: remote_keys(relay) == 2)
        assert relay.metrics()["fastderp_mesh_keys"][member.url,] == 2
        assert relay.metrics()["fastderp_mesh_ignored_total"]["keys",] == 0
        member.sock.sendall(frame(GONE, bytes(range(32)) + b"\0"))
        eventually(lambda: remote_keys(relay) == 1)


def test_a_flood_of_ghosts_takes_bounded_memory_which_is_given_back(relay: Relay) -> None:
    n_keys = 20_000
    with member_of(relay) as member, relay.login() as a, relay.login() as b:
        member.welcome()
        before = resident_bytes()
        ghosts = b"".join(member.present(number.to_bytes(32)) for number in range(1, n_keys + 1))
        member.sock.sendall(ghosts)
        eventually(lambda: remote_keys(relay) == n_keys, 30)
        # bytes per key: the key, its route, and the free places of the tables
        assert resident_bytes() - before < n_keys * 1000
        a.send_packet(b.public, b"unharmed")
        assert b.read_packet() == (a.public, b"unharmed")
    eventually(lambda: remote_keys(relay) == 0, 30)
    assert relay.call(relay.server.consistency_check) == []


def test_presence_from_a_mesh_peer_that_was_not_dialled_is_ignored(relay: Relay) -> None:
    with (
        relay.login(json=b'{"meshKey":"%s"}' % SECRET.text.encode()) as peer,
        relay.login() as a,
    ):
        peer.send(frame(PRESENT, bytes(range(32)) + bytes(19)) + frame(GONE, a.public.raw + b"\0"))
        assert peer.sync() == []
        assert remote_keys(relay) == 0
        peer.send_packet(a.public, b"still here")
        assert a.read_packet() == (peer.public, b"still here")


@pytest.mark.parametrize("size", [0, 63, 64 + 65537, 2**32 - 1])
def test_a_mesh_peer_that_forwards_a_frame_of_a_wrong_size_is_the_only_one_closed(
    relay: Relay, size: int
) -> None:
    with (
        relay.login(json=b'{"meshKey":"%s"}' % SECRET.text.encode()) as peer,
        relay.login() as a,
    ):
        peer.send(struct.pack(">BI", FORWARD, size) + bytes(min(size, 64)))
        assert peer.is_closed()
        assert a.sync() == []
        eventually(
            lambda: relay.metrics()["fastderp_session_closed_total"] == {"bad_frame_size": 1}
        )


def test_a_link_that_breaks_repeatedly_keeps_the_tables_correct(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.links.FIRST_RETRY_S", 0.001)
    monkeypatch.setattr("fastderp.server.mesh.links.LAST_RETRY_S", 0.001)
    with member_of(relay) as member, relay.login() as a:
        for number in range(30):
            member.welcome()
            member.sock.sendall(
                b"".join(member.present(bytes([number, ghost]) + bytes(30)) for ghost in range(50))
            )
            if number % 2:
                eventually(lambda: remote_keys(relay) == 50)
            member.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 3 == 0, 0)
            )
            member.sock.close()
        member.welcome()
        member.sock.sendall(member.present(bytes(range(32))))
        eventually(lambda: remote_keys(relay) == 1 and state_of(relay) == LinkState.UP)
        assert relay.call(relay.server.consistency_check) == []
        assert relay.metrics()["fastderp_mesh_failures_total"][member.url,] == 30
        a.send_packet(NodePublic(bytes(range(32))), b"to the one that is there")
        assert member.read_frame() == (
            FORWARD,
            a.public.raw + bytes(range(32)) + b"to the one that is there",
        )


def test_links_use_a_new_secret(relay: Relay) -> None:
    new = MeshKey.generate()
    with member_of(relay) as member:
        member.welcome()
        relay.call(setattr, relay.server, "mesh_keys", [new, SECRET])
        member.sock.sendall(member.present(bytes(range(32))))
        wait_state(relay, LinkState.UP)
        member.sock.close()
        member.welcome(secret=new)


def test_a_departure_of_a_key_that_was_never_announced_does_nothing(relay: Relay) -> None:
    with member_of(relay) as member, relay.login() as a, relay.login() as b:
        member.welcome()
        a.send_packet(b.public, b"x")
        b.read_packet()
        member.sock.sendall(
            frame(GONE, a.public.raw + b"\0") + frame(GONE, bytes(32)) + member.present(bytes(32))
        )
        wait_state(relay, LinkState.UP)
        assert b.sync() == []
        a.send_packet(b.public, b"y")
        assert b.read_packet() == (a.public, b"y")


def test_announcing_our_own_clients_takes_none_over(relay: Relay) -> None:
    with member_of(relay) as member, relay.login() as a, relay.login() as b:
        member.welcome()
        member.sock.sendall(member.present(b.public.raw))
        wait_state(relay, LinkState.UP)
        a.send_packet(b.public, b"still here")
        assert b.read_packet() == (a.public, b"still here")
        assert remote_keys(relay) == 0
        assert relay.call(relay.server.consistency_check) == []


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(
            frame(PRESENT, b"short") + frame(GONE, b"short") + frame(RESTARTING, b"x"),
            id="too short",
        ),
        pytest.param(frame(0x77, bytes(100_000)), id="of no known type"),
        pytest.param(frame(SERVER_INFO, bytes(60)), id="a second ServerInfo"),
    ],
)
def test_malformed_frames_are_skipped(relay: Relay, garbage: bytes) -> None:
    with member_of(relay) as member:
        member.welcome()
        member.sock.sendall(garbage + member.present(bytes(range(32))))
        eventually(lambda: remote_keys(relay) == 1)


def test_an_endless_frame_breaks_the_link(relay: Relay) -> None:
    with member_of(relay) as member:
        member.welcome()
        member.sock.sendall(member.present(bytes(range(32))) + b"\x09\xff\xff\xff\xff")
        assert member.is_left()
        eventually(lambda: remote_keys(relay) == 0)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", id="another status"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="no HTTP"),
        pytest.param(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, b"not magic" * 5), id="no magic"
        ),
        pytest.param(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, MAGIC + bytes(32)), id="a zero key"
        ),
        pytest.param(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, MAGIC + b"\1" + bytes(31)),
            id="a low-order key",
        ),
        pytest.param(b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, bytes(2000)), id="a long key"),
        pytest.param(b"", id="silence, then nothing"),
    ],
)
def test_a_malformed_greeting_is_a_failure_and_the_link_is_retried(
    relay: Relay, greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.links.FIRST_RETRY_S", 0.01)
    with member_of(relay) as member:
        member.accept()
        member.sock.sendall(greeting)
        member.sock.shutdown(socket.SHUT_WR)
        assert member.is_left()
        eventually(lambda: relay.metrics()["fastderp_mesh_failures_total"][member.url,] == 1)
        member.sock.close()
        member.welcome()
        member.sock.sendall(member.present(bytes(range(32))))
        wait_state(relay, LinkState.UP)


def test_a_server_info_sealed_for_another_key_breaks_the_link(relay: Relay) -> None:
    with member_of(relay) as member:
        member.accept()
        member.sock.sendall(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, MAGIC + member.key.public_key.raw)
        )
        member.sock.sendall(frame(SERVER_INFO, bytes(60)))
        assert member.is_left()


def test_a_login_that_a_member_never_answers_is_abandoned(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.links.CONNECT_TIMEOUT_S", 1.0)
    assert CONNECT_TIMEOUT_S == 10.0
    with member_of(relay) as member:
        member.accept()
        member.sock.sendall(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, MAGIC + member.key.public_key.raw)
        )
        assert member.is_left()


def test_a_member_that_restarts_is_not_dialled_before_the_time_it_gives(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def noted(link: MeshLink, wait_s: float) -> None:
        waits.append(wait_s)

    monkeypatch.setattr(MeshLink, "_pause", noted)
    with member_of(relay) as member:
        member.welcome()
        member.sock.sendall(
            member.present(bytes(range(32))) + frame(RESTARTING, struct.pack(">II", 7000, 1000))
        )
        wait_state(relay, LinkState.UP)
        member.sock.close()
        member.welcome()
        assert waits[0] == 7.0


def test_frames_faster_than_they_can_be_processed_close_only_their_sender() -> None:
    plane = Plane(workers=1)
    plane.start()
    try:
        flood, theirs = socket.socketpair()
        calm, other = socket.socketpair()
        plane.promote(theirs.detach(), b"f" * 32, mesh=True)
        plane.promote(other.detach(), b"c" * 32)
        flood.settimeout(PATIENCE_S)
        frames = frame(CLOSE_PEER, bytes(32)) * 1000
        with pytest.raises(OSError):
            for _ in range(1000):
                flood.sendall(frames)
        calm.sendall(frame(0x12, bytes(8)))
        assert calm.recv(100) == frame(0x13, bytes(8))
        events = plane.events()
        assert len(events) < 300_000
        while not isinstance(events[-1], ClosedEvent):
            assert select.select([plane.fileno()], [], [], PATIENCE_S)[0]
            events += plane.events()
        assert [event.reason for event in events if isinstance(event, ClosedEvent)] == [
            "control_overflow"
        ]
    finally:
        plane.close()
