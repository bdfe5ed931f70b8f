"""The effects of derper's environment variables on `fastderp-relay`. PROTOCOL §19."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from fastderp.wire.keys import NodePrivate
from tests.kit.command import RunningRelay, command_with_upkeep_every, log_in, relay, started
from tests.kit.peer import SEND, Peer, frame
from tests.kit.relay import eventually

FLAGS = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


def varz(running: RunningRelay, name: str) -> int:
    """Return the sum of a metric's samples."""
    values = re.findall(rf"^{name}(?:{{.*}})? (\d+)$", running.varz(), re.MULTILINE)
    return sum(map(int, values))


def test_drops_of_packets_for_a_watched_key_are_logged_and_no_others(tmp_path: object) -> None:
    watched, other = NodePrivate.generate().public_key, NodePrivate.generate().public_key
    with relay(
        *FLAGS, "-c", f"{tmp_path}/k", env={"TS_DEBUG_VERBOSE_DROPS": watched.hex}
    ) as running:
        with log_in(running) as peer:
            peer.send(frame(SEND, watched.raw + b"data") * 20)
            peer.send_packet(other, b"data")
            peer.sync()
            sender = peer.key.public_key.short
            eventually(lambda: varz(running, "derp_packets_dropped") == 21)
        _, said = running.stop()
    lines = [line for line in said.splitlines() if line.startswith("drop: ")]
    assert lines == [f"drop: other packet from {sender} to {watched.short}: unknown_dest"] * 5


def test_logins_and_departures_of_probers_are_logged_and_no_others(tmp_path: object) -> None:
    with relay(*FLAGS, "-c", f"{tmp_path}/k", env={"DERP_PROBER_DEBUG_LOGS": "1"}) as running:
        with log_in(running, IsProber=True) as prober, log_in(running) as other:
            keys = prober.key.public_key.short, other.key.public_key.short
        eventually(lambda: varz(running, "derp_current_connections") == 0)
        _, said = running.stop()
    assert re.findall(r"^(\S+) \S+: a prober logged in$", said, re.MULTILINE) == [keys[0]]


@pytest.mark.parametrize(
    ("value", "is_logged"), [("", False), ("true", True)], ids=["without", "with debug logs"]
)
def test_connections_that_leave_early_are_logged_on_request(
    tmp_path: object, value: str, is_logged: bool
) -> None:
    with relay(*FLAGS, "-c", f"{tmp_path}/k", env={"DERP_DEBUG_LOGS": value}) as running:
        for _ in range(3):
            Peer.connect("127.0.0.1", running.port, None, 20).close()
        eventually(lambda: varz(running, "fastderp_closed_total") == 3)
        _, said = running.stop()
    assert (
        len(re.findall(r"^127\.0\.0\.1:\d+: closed at \w+: end$", said, re.MULTILINE))
        == 3 * is_logged
    )


def test_round_trips_are_measured_unless_switched_off(tmp_path: object) -> None:
    flags = [*command_with_upkeep_every(0.02), *FLAGS, "-c"]
    with (
        started([*flags, f"{tmp_path}/k"]) as looking,
        started([*flags, f"{tmp_path}/other"], {"TS_DERP_DISABLE_RTT_STATS": "1"}) as not_looking,
        log_in(not_looking),
        log_in(looking),
    ):
        eventually(lambda: varz(looking, "derp_tcp_rtt") > 5)
        assert varz(not_looking, "derp_tcp_rtt") == 0


@pytest.mark.parametrize(("depth", "at_least"), [(5, 0), (2000, 500)])
def test_a_queue_depth_limits_the_packets_that_wait_for_a_client(
    tmp_path: object, depth: int, at_least: int
) -> None:
    # Without it 32 packets of this size would wait. On a slow machine the reader may be later than
    # the write deadline.
    n_sent, size = 4000, 8192
    flags = (*FLAGS, "-c", f"{tmp_path}/k", "-tcp-write-timeout=0")
    with relay(*flags, env={"TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH": str(depth)}) as running:
        assert f"up to {depth} packets of a kind wait for a client" in running.said
        with log_in(running) as sender, log_in(running) as slow:
            for number in range(n_sent):
                sender.send_packet(slow.key.public_key, number.to_bytes(4, "big") + bytes(size - 4))
            sender.sync()
            n_lost = varz(running, "derp_packets_dropped")
            n_waiting = varz(running, "fastderp_backlog_bytes") / (5 + 32 + size)
            numbers = [
                int.from_bytes(slow.read_packet()[1][:4], "big") for _ in range(n_sent - n_lost)
            ]
    assert n_lost > 0 and numbers == sorted(numbers) and numbers[-1] == n_sent - 1
    # The count includes a packet being written, each packet's overhead, and the reader's stash.
    assert at_least <= n_waiting <= 1.1 * depth + 2


def clients_of(running: RunningRelay) -> list[dict[str, object]]:
    """Return the clients that `/debug/clients/` lists."""
    url = f"http://127.0.0.1:{running.port}/debug/clients/?all=1&format=json&sort=conn"
    with urllib.request.urlopen(url, timeout=10) as page:
        found: list[dict[str, object]] = json.load(page)["clients"]
    return found


@pytest.mark.parametrize(("switch", "n_senders"), [("1", 2), ("", 0)])
def test_connected_clients_are_listed_with_their_senders_if_estimates_are_on(
    tmp_path: object, switch: str, n_senders: int
) -> None:
    env = {"TS_DERP_SENDER_CARDINALITY": switch}
    with (
        relay(*FLAGS, "-c", f"{tmp_path}/k", env=env) as running,
        log_in(running, AppName="ann", version=1) as ann,
        log_in(running) as bob,
        log_in(running) as cid,
    ):
        for sender in (bob, cid):
            sender.send_packet(ann.public, b"hello")
            ann.read_packet()
            assert sender.sync() == ann.sync() == []  # a packet is counted after it was written
        listed = {client["key"]: client for client in clients_of(running)}
        assert listed.keys() == {peer.public.text for peer in (ann, bob, cid)}
        of_ann = listed[ann.public.text]
        assert (of_ann["appName"], of_ann["version"]) == ("ann", 1)
        assert (of_ann["txPkts"], of_ann["txBytes"], of_ann["senders"]) == (2, 10, n_senders)
        assert listed[bob.public.text]["rxPkts"] == 1
