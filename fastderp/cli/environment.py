"""Reads derper's environment variables (PROTOCOL §19).

An empty variable counts as unset. `server.http.debug` reads those of the debug pages, such as
`TS_ALLOW_DEBUG_IP`, `cli.config` reads `TAILSCALE_DERPER_MESH_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastderp.cli.flags import boolean, integer
from fastderp.errors import ConfigError
from fastderp.util.text import printable
from fastderp.wire.keys import NodePublic

DEBUG_LOGS = "DERP_DEBUG_LOGS"
PROBER_LOGS = "DERP_PROBER_DEBUG_LOGS"
NO_RTT_STATS = "TS_DERP_DISABLE_RTT_STATS"
QUEUE_DEPTH = "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH"
SENDER_CARDINALITY = "TS_DERP_SENDER_CARDINALITY"
VERBOSE_DROPS = "TS_DEBUG_VERBOSE_DROPS"

MAX_QUEUE_DEPTH = 1 << 20
MAX_WATCHED = 64


class Environment(NamedTuple):
    """The values of the variables.

    Args:
        debug_logs: log more about every client.
        prober_logs: log more about clients whose ClientInfo marks them as probers.
        rtt_stats: sample round-trip times.
        queue_packets: limit of waiting packets per kind and client; 0 when unset or not positive.
        sender_cardinality: estimate the number of peers that send to each client.
        watched_drops: keys; dropped packets to them are logged.
    """

    debug_logs: bool = False
    prober_logs: bool = False
    rtt_stats: bool = True
    queue_packets: int = 0
    watched_drops: tuple[NodePublic, ...] = ()
    sender_cardinality: bool = False

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Environment:
        """Read the variables. Raises ConfigError that names the invalid one."""
        return cls(
            debug_logs=_switch(variables, DEBUG_LOGS),
            prober_logs=_switch(variables, PROBER_LOGS),
            rtt_stats=not _switch(variables, NO_RTT_STATS),
            queue_packets=_queue_packets(variables),
            watched_drops=_watched_drops(variables),
            sender_cardinality=_switch(variables, SENDER_CARDINALITY),
        )


def _switch(variables: Mapping[str, str], name: str) -> bool:
    try:
        return boolean(variables.get(name) or "false")
    except ValueError as error:
        raise ConfigError(f"${name}: {error}") from None


def _queue_packets(variables: Mapping[str, str]) -> int:
    try:
        depth = integer(variables.get(QUEUE_DEPTH) or "0")
        if depth > MAX_QUEUE_DEPTH:
            raise ValueError(f"want 1 to {MAX_QUEUE_DEPTH} packets")
    except ValueError as error:
        raise ConfigError(f"${QUEUE_DEPTH}: {error}") from None
    return max(0, depth)


def _watched_drops(variables: Mapping[str, str]) -> tuple[NodePublic, ...]:
    texts = [text.strip() for text in variables.get(VERBOSE_DROPS, "").split(",")]
    if len(texts) > MAX_WATCHED:
        raise ConfigError(f"${VERBOSE_DROPS}: want up to {MAX_WATCHED} keys")
    return tuple(_public_key(text) for text in texts if text)


def _public_key(text: str) -> NodePublic:
    try:
        return NodePublic.from_text("nodekey:" + text.removeprefix("nodekey:"))
    except ValueError:
        raise ConfigError(
            f'${VERBOSE_DROPS}: "{printable(text)}" is no public key of 64 hex digits'
        ) from None
