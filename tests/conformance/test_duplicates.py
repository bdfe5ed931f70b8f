"""Several connections with one key under both policies. PROTOCOL §6.3, §16 lines 25–30."""

from __future__ import annotations

import os
import select

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from tests.kit.plane import PlanePeer, dropped, events, running_plane

# steps: an event, and the active connection after it; "-" for none
Story = list[tuple[str, str]]

LAST_WRITER: dict[str, Story] = {
    "one comes and goes": [("a joins", "a"), ("a leaves", "-"), ("b joins", "b")],
    "the newest is active": [("a joins", "a"), ("b joins", "b"), ("c joins", "c")],
    "the active role goes back and forth": [
        ("a joins", "a"), ("b joins", "b"), ("a speaks", "a"), ("b speaks", "b"), ("b speaks",
        "b"), ("a speaks", "a"),
    ],
    "the active one leaves": [
        ("a joins", "a"), ("b joins", "b"), ("b leaves", "a"), ("a speaks", "a"), ("a leaves", "-"),
    ],
    "the old one leaves": [("a joins", "a"), ("b joins", "b"), ("a leaves", "b")],
    "of three, the latest speaker left takes over": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("b speaks", "b"), ("a speaks",
        "a"), ("a leaves", "b"),
        ("b leaves", "c"),
    ],
    "of three that never spoke, the first follows the newest": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("c leaves", "a"), ("a leaves", "b"),
    ],
    "of many that never spoke, the second comes last": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("d joins", "d"), ("e joins", "e"),
        ("e leaves", "d"),
        ("c leaves", "d"), ("d leaves", "a"), ("f joins", "f"), ("f leaves", "a"), ("a leaves",
        "b"),
        ("g joins", "g"), ("h joins", "h"), ("h leaves", "b"),
    ],
    "the second follows once it has spoken": [
        ("a joins", "a"), ("b joins", "b"), ("b speaks", "b"), ("c joins", "c"), ("c leaves",
        "b"), ("b leaves", "a"),
    ],
    "an inactive one leaves": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("b leaves", "c"), ("a leaves", "c"),
    ],
    "none is disabled": [
        ("a joins", "a"), ("b joins", "b"), *[("a speaks", "a"), ("b speaks", "b")] * 20,
    ],
}  # fmt: skip

DISABLE_FIGHTERS: dict[str, Story] = {
    "one comes and goes": LAST_WRITER["one comes and goes"],
    "the newest is active": LAST_WRITER["the newest is active"],
    "a replacement is no fight": [
        ("a joins", "a"), ("b joins", "b"), ("b speaks", "b"), ("b speaks", "b"), ("a leaves",
        "b"), ("b speaks", "b"),
    ],
    "two that alternate are both disabled": [
        ("a joins", "a"), ("b joins", "b"), ("b speaks", "b"), ("a speaks", "-"), ("b speaks",
        "-"), ("a speaks", "-"),
    ],
    "a newcomer is not part of the fight": [
        ("a joins", "a"), ("b joins", "b"), ("b speaks", "b"), ("a speaks", "-"), ("c joins",
        "c"), ("a speaks", "c"),
        ("c leaves", "-"), ("a leaves", "b"), ("b speaks", "b"),
    ],
    "the last of three to speak again disables all": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("b speaks", "b"), ("a speaks",
        "-"), ("c speaks", "-"),
    ],
    "the first of three to speak again disables all": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("a speaks", "-"), ("b speaks", "-"),
    ],
    "when the last speaker leaves, the previous one is active": [
        ("a joins", "a"), ("b joins", "b"), ("c joins", "c"), ("b speaks", "b"), ("b leaves",
        "c"), ("c leaves", "a"),
    ],
}  # fmt: skip


class Cast:
    """The connections of a story, all with one key, and a sender to it."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._key = os.urandom(32)
        self._sender = PlanePeer(plane)
        self._peers: dict[str, PlanePeer] = {}

    def act(self, what: str) -> None:
        """Do one step; return when the plane has seen it."""
        name, does = what.split()
        if does == "joins":
            self._peers[name] = PlanePeer(self._plane, self._key)
        elif does == "speaks":
            self._peers[name].sync()
        else:
            self._peers.pop(name).close()
            assert isinstance(events(self._plane)[0], ClosedEvent)

    def active(self) -> str:
        """Send a packet to the key; return its receiver."""
        self._sender.send_packet(self._key, b"?")
        self._sender.sync()
        ready, _, _ = select.select([peer.socket for peer in self._peers.values()], [], [], 0)
        receivers = [name for name, peer in self._peers.items() if peer.socket in ready]
        for name in receivers:
            assert self._peers[name].receive()[1] == self._sender.key + b"?"
        return "".join(receivers) or "-"

    def check_gauges(self) -> None:
        """Compare the gauges of duplicates with the open connections."""
        n = len(self._peers) if len(self._peers) > 1 else 0
        counters = self._plane.counters()
        assert (counters["current_dup_client_keys"], counters["current_dup_client_conns"]) == (
            n > 0,
            n,
        )


def play(story: Story, *, disable_fighters: bool) -> None:
    """Play the story and compare after every step; packets without a receiver must be counted."""
    n_absent = n_disabled = 0
    with running_plane(workers=1, disable_fighters=disable_fighters) as plane:
        cast = Cast(plane)
        here: set[str] = set()
        for step, (what, active) in enumerate(story):
            cast.act(what)
            here = here - {what[0]} if what.endswith("leaves") else here | {what[0]}
            assert cast.active() == active, f"step {step}: {what}"
            cast.check_gauges()
            n_absent += not here
            n_disabled += bool(here) and active == "-"
        counts = {("unknown_dest", "other"): n_absent, ("dup_client", "other"): n_disabled}
        assert dropped(plane) == {label: n for label, n in counts.items() if n}


@pytest.mark.parametrize("what", LAST_WRITER)
def test_the_last_writer_is_active(what: str) -> None:
    play(LAST_WRITER[what], disable_fighters=False)


@pytest.mark.parametrize("what", DISABLE_FIGHTERS)
def test_clients_that_fight_over_a_key_are_disabled_under_that_policy(what: str) -> None:
    play(DISABLE_FIGHTERS[what], disable_fighters=True)
