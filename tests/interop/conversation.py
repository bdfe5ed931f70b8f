"""Scripted conversations with a relay: logins, sent bytes, departures.

A conversation is plain data; oracle.py plays it. Its keys are derived from its name, so the
bytes are the same for each relay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self

from fastderp.wire.keys import NodePrivate, NodePublic

MESH_KEY_TEXT = hashlib.sha256(b"mesh key of the oracle's relays").hexdigest()

ORDINARY = b'{"version":2,"CanAckPings":true}'
MESH = b'{"meshKey":"%s","version":2,"CanAckPings":true}' % MESH_KEY_TEXT.encode()

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Login:
    """Connect, upgrade and log in."""

    actor: str
    key: NodePrivate
    head: bytes
    info: bytes  # JSON, sealed for the relay once its key is known
    first: bytes | None  # sent instead of the ClientInfo frame
    then: bytes  # follows it in the same segment
    at_once: bool  # whether that segment has the request, too


@dataclass(frozen=True, slots=True)
class Send:
    """Send bytes, usually whole frames."""

    actor: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """Close the connection."""

    actor: str


Step = Login | Send | Leave


def describe(step: Step) -> str:
    """Return one line that describes the step."""
    match step:
        case Login():
            return f"{step.actor} logs in with {step.info.decode(errors='replace')!s}"
        case Send():
            return f"{step.actor} sends {len(step.data)} bytes {step.data[:48].hex(' ', 4)}"
        case Leave():
            return f"{step.actor} leaves"


@dataclass(slots=True)
class Conversation:
    """A script under construction; each method that adds a step returns the script.

    `attempt` gives a repetition other keys, so that state of an earlier one cannot affect it.
    """

    name: str
    attempt: int = 0
    steps: list[Step] = field(default_factory=list)
    names: dict[bytes, str] = field(default_factory=dict)  # public key → actor
    silent: set[str] = field(default_factory=set)  # actors that the player never pings

    def key(self, who: str) -> NodePrivate:
        """Return the private key called `who`; a login with it is optional."""
        private = NodePrivate(hashlib.sha256(f"{self.name}/{self.attempt}/{who}".encode()).digest())
        self.names[private.public_key.raw] = who
        return private

    def public(self, who: str) -> NodePublic:
        """Return the public half of `key(who)`."""
        return self.key(who).public_key

    def login(
        self,
        actor: str,
        info: bytes = ORDINARY,
        *,
        key: str = "",
        head: bytes = UPGRADE,
        first: bytes | None = None,
        then: bytes = b"",
        at_once: bool = False,
        silent: bool = False,
    ) -> Self:
        """Add a login; `key` names the key when it is not the actor's own.

        `first` replaces the ClientInfo frame, `then` follows it in the same segment, and with
        `at_once` that segment carries the request too. The player pings to know when a step is
        over, except actors with `silent`, for conversations in which a frame changes the active
        connection.
        """
        if silent:
            self.silent.add(actor)
        self.steps.append(Login(actor, self.key(key or actor), head, info, first, then, at_once))
        return self

    def send(self, actor: str, *frames: bytes) -> Self:
        """Add bytes to send, all in one write."""
        self.steps.append(Send(actor, b"".join(frames)))
        return self

    def leave(self, actor: str) -> Self:
        """Add a departure."""
        self.steps.append(Leave(actor))
        return self
