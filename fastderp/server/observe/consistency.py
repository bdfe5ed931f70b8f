"""Compares the tables: routes, sessions, counters, announced keys. PROTOCOL §6.9.

Loop thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastderp.dataplane.plane import Plane
from fastderp.wire.keys import NodePublic

LOOKS = 5


def inconsistencies(plane: Plane, announced: Callable[[], set[bytes]]) -> list[str]:
    """Return a text for each contradiction; `announced` returns the keys of mesh links."""
    problems: list[str] = []
    # The workers run meanwhile: a mismatch caused by a login or a close disappears in the next
    # comparison.
    for _ in range(LOOKS):
        problems = _look(plane, announced())
        if not problems:
            break
    return problems


def _look(plane: Plane, announced: set[bytes]) -> list[str]:
    keys = [session.key for session in plane.sessions() if not session.link]
    local = set(keys)
    counters: dict[str, Any] = plane.counters()
    # derper compares connections with keys, and reports every duplicate.
    n_surplus = counters["current_dup_client_conns"] - counters["current_dup_client_keys"]
    expected = {
        "connections": (counters["current_connections"], len(keys)),
        "connections beyond the first of their key": (n_surplus, len(keys) - len(local)),
        "local keys": (counters["clients_local"], len(local)),
        "remote keys": (counters["clients_remote"], len(announced - local)),
    }
    return [
        *(
            f"session of {NodePublic(key).short} has no route"
            for key in local
            if not plane.is_connected(key)
        ),
        *(
            f"{counted} {what} counted, {found} found"
            for what, (counted, found) in expected.items()
            if counted != found
        ),
    ]
