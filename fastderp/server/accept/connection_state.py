"""The states of an accepted connection, and the moves between them. PROTOCOL §9."""

from enum import StrEnum


class State(StrEnum):
    """The state of a connection.

    accept ─┬─► PROXY_HEADER ─┬─┬─► TLS ─┐
            └─────────────────┘ └────────┴─► HTTP

    HTTP ─┬─► LOGIN ─┬──────────────┬─► PROMOTED
     ▲ │  │          └─► ADMISSION ─┘
     └─┘  ├─► PAGE (endless)
    next  └─► TUNNEL (dialling) ─► PROMOTED

    From all but PROMOTED: ─► CLOSED, or ─► LINGER ─► CLOSED after an answer.
    """

    PROXY_HEADER = "proxy"
    TLS = "tls"
    HTTP = "http"
    PAGE = "page"
    TUNNEL = "tunnel"
    LOGIN = "login"
    ADMISSION = "admission"
    PROMOTED = "promoted"
    LINGER = "linger"
    CLOSED = "closed"


# Python 3.11 takes 0.1 µs to look a member of an enumeration up.
PROXY_HEADER, TLS, HTTP, PAGE, TUNNEL, LOGIN, ADMISSION, PROMOTED, LINGER, CLOSED = State

_LEGAL_MOVES: dict[State, set[State]] = {
    PROXY_HEADER: {TLS, CLOSED},
    TLS: {HTTP, LINGER, CLOSED},
    HTTP: {LOGIN, PAGE, TUNNEL, LINGER, CLOSED},
    TUNNEL: {PROMOTED, LINGER, CLOSED},
    PAGE: {LINGER, CLOSED},
    LOGIN: {ADMISSION, PROMOTED, LINGER, CLOSED},
    ADMISSION: {PROMOTED, LINGER, CLOSED},
    LINGER: {CLOSED},
    PROMOTED: set(),
    CLOSED: set(),
}


def moved(before: State, after: State) -> State:
    """Return the state after a move. Raises RuntimeError for one that is not in the diagram."""
    if after not in _LEGAL_MOVES[before]:
        raise RuntimeError(f"a connection cannot go from {before.name} to {after.name}")
    return after
