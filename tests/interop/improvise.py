"""Random conversations for the comparison with derper, determined by seeds."""

from __future__ import annotations

import random
from collections.abc import Callable

from fastderp.wire.protocol import FrameType, frame

from .conversation import MESH, ORDINARY, Conversation
from .oracle import Script
from .scripts import WATCH, close_peer, disco, forward_packet, send_packet

KEYS = ("k0", "k1", "k2", "k3")
NOT_HERE_BURST = 3


class Improviser:
    """Writes a random conversation with a deterministic answer.

    It avoids frames whose answer depends on chance or a clock: a second ping while a pong is
    due (derper's writer thread may or may not have taken that pong: it answers 500 pings in
    one write with about two pongs), a fourth answer of the not-here limiter, and a key that
    leaves the relay twice (see DEVIATIONS).
    """

    def __init__(self, c: Conversation, seed: str, mesh_share: float) -> None:
        self._c = c
        self._mesh_share = mesh_share
        self._random = random.Random(seed)
        self._present: dict[str, str] = {}  # actor → key
        self._mesh: set[str] = set()
        self._answers_left: dict[str, int] = {}
        self._spent: set[str] = set()  # keys that have left
        self._n_logins = 0

    def improvise(self, n_steps: int) -> None:
        """Add a few logins, then n_steps random steps."""
        for _ in range(3):
            self._login()
        for _ in range(n_steps):
            self._random.choices((self._login, self._leave, self._talk), (2, 1, 6))[0]()

    def _login(self) -> None:
        keys = [key for key in KEYS if key not in self._spent]
        if not keys or len(self._present) == 6:
            return
        key, is_mesh = self._random.choice(keys), self._random.random() < self._mesh_share
        self._n_logins += 1
        actor = f"{key}.{self._n_logins}"
        self._c.login(actor, MESH if is_mesh else ORDINARY, key=key)
        self._present[actor] = key
        self._answers_left[actor] = NOT_HERE_BURST
        if is_mesh:
            self._mesh.add(actor)

    def _leave(self) -> None:
        if len(self._present) > 1:
            actor = self._random.choice(list(self._present))
            self._c.leave(actor)
            self._gone({actor})

    def _gone(self, actors: set[str]) -> None:
        keys = {self._present.pop(actor) for actor in actors if actor in self._present}
        self._spent |= keys - set(self._present.values())

    def _talk(self) -> None:
        if not self._present:
            return
        actor = self._random.choice(list(self._present))
        kinds: list[Callable[[str], bytes]] = [*[self._packet] * 4, self._home, self._junk]
        if actor in self._mesh:
            kinds += [self._forwarded, self._forwarded, self._watch]
        frames = [self._random.choice(kinds)(actor) for _ in range(self._random.randint(1, 5))]
        if self._random.random() < 0.3:
            frames.append(
                frame(FrameType.PING, self._random.randbytes(self._random.choice((8, 9, 1000))))
            )
        self._c.send(actor, *frames)
        if self._random.random() < 0.1:
            self._end_badly(actor)

    def _end_badly(self, actor: str) -> None:
        """Send a frame that closes the connection: an error, or ClosePeer from a mesh peer."""
        if actor in self._mesh:
            key = self._random.choice(list(self._present.values()))
            self._c.send(actor, close_peer(self._c, key))
            self._closed({other for other, its_key in self._present.items() if its_key == key})
        else:
            short_ping = frame(FrameType.PING, b"short")
            mistakes = (
                WATCH,
                close_peer(self._c, "k0"),
                frame(FrameType.NOTE_PREFERRED),
                short_ping,
            )
            self._c.send(actor, self._random.choice(mistakes))
            self._closed({actor})

    def _closed(self, actors: set[str]) -> None:
        for actor in actors:
            self._c.leave(actor)
        self._gone(actors)

    def _data(self, actor: str, to: str) -> bytes:
        size = self._random.choice((0, 1, 61, 62, 100, 1400, self._random.randint(0, 20_000)))
        if size < 62 or self._random.random() < 0.5:
            return self._random.randbytes(size)
        if to not in self._present.values():
            if not self._answers_left[actor]:
                return self._random.randbytes(size)
            self._answers_left[actor] -= 1
        return disco(size)

    def _packet(self, actor: str) -> bytes:
        to = self._random.choice(KEYS)
        return send_packet(self._c, to, self._data(actor, to))

    def _forwarded(self, actor: str) -> bytes:
        to = self._random.choice(KEYS)
        return forward_packet(self._c, self._random.choice(("r0", "r1")), to, self._data(actor, to))

    def _home(self, actor: str) -> bytes:
        return frame(FrameType.NOTE_PREFERRED, self._random.randbytes(1))

    def _watch(self, actor: str) -> bytes:
        return WATCH

    def _junk(self, actor: str) -> bytes:
        drained = self._random.choice((0x00, 0x05, 0x09, 0x13, 0x7F, 0xFF))
        return frame(drained, self._random.randbytes(self._random.randint(0, 300)))


def improvised(seed: str, mesh_share: float) -> Script:
    """Return a script that writes the random conversation of a seed."""
    return lambda c: Improviser(c, seed, mesh_share).improvise(12)


def improvisations(n: int, first_seed: int = 0, mesh_share: float = 0.3) -> dict[str, Script]:
    """Return n random conversations; `mesh_share` of the logins are with the mesh key."""
    return {
        f"improvisation {seed}": improvised(str(seed), mesh_share)
        for seed in range(first_seed, first_seed + n)
    }
