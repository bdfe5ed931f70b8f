"""A client of STUN over the loopback."""

from __future__ import annotations

import os
import socket

from fastderp.client.stun import binding_request, parse_response


def is_answered(host: str, port: int, timeout_s: float = 10.0) -> bool:
    """Return whether a request to an address is answered from it with the client's address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((host, port))  # drops answers from other addresses
        asked = os.urandom(12)
        client.send(binding_request(asked))
        try:
            return parse_response(client.recv(100)) == (asked, *client.getsockname()[:2])
        except (TimeoutError, ConnectionRefusedError):
            return False
