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


LEGAL_MOVES: dict[State, set[State]] = {
    State.PROXY_HEADER: {State.TLS, State.CLOSED},
    State.TLS: {State.HTTP, State.LINGER, State.CLOSED},
    State.HTTP: {State.LOGIN, State.PAGE, State.TUNNEL, State.LINGER, State.CLOSED},
    State.TUNNEL: {State.PROMOTED, State.LINGER, State.CLOSED},
    State.PAGE: {State.LINGER, State.CLOSED},
    State.LOGIN: {State.ADMISSION, State.PROMOTED, State.LINGER, State.CLOSED},
    State.ADMISSION: {State.PROMOTED, State.LINGER, State.CLOSED},
    State.LINGER: {State.CLOSED},
    State.PROMOTED: set(),
    State.CLOSED: set(),
}
