"""What clients and the relay share of the `websockets` library, which takes 5 MiB and 40 ms."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event, Protocol

from fastderp.util.log_lines import logger

# The library logs every connection at INFO and every payload at DEBUG; only its errors are of use.
library_log: logging.Logger = logger("fastderp.websocket")
library_log.setLevel(logging.ERROR)


def payload_of(events: Iterable[Event], protocol: Protocol) -> bytes:
    """Return the payload of binary messages; close the WebSocket at a text message."""
    pieces = []
    for event in events:
        if not isinstance(event, Frame):
            continue  # an opening handshake
        if event.opcode is Opcode.TEXT:
            protocol.fail(CloseCode.UNSUPPORTED_DATA, "DERP needs binary messages")
            break
        if event.opcode in (Opcode.BINARY, Opcode.CONT):
            pieces.append(bytes(event.data))
    return b"".join(pieces)
