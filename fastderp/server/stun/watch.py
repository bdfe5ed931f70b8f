"""Keeps STUN silent while TLS cannot be served, and warns about a gateway that hides the clients.

Clients choose a relay by its STUN answers (PROTOCOL §11). Loop thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fastderp.server.observe.supervisor import supervisor
from fastderp.server.stun.server import StunServer

log: logging.Logger = logging.getLogger("fastderp")

INTERVAL_S = 5.0
# Fewer requests may be those of one client behind the gateway.
GATEWAY_MIN_REQUESTS = 100


class StunWatch:
    """Checks every INTERVAL_S, from `start` to `close`.

    Args:
        stun: the server, running.
        faults: returns why TLS cannot be served; nothing while it can.
    """

    def __init__(self, stun: StunServer, faults: Callable[[], list[str]]) -> None:
        self._stun = stun
        self._faults = faults
        self._warned = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Check now and from now on."""
        # Scheduled first, so that a failing check does not end the checks.
        self._timer = asyncio.get_running_loop().call_later(
            INTERVAL_S, supervisor.guarded("STUN", self.start)
        )
        self.check()

    def close(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()

    def check(self) -> None:
        """Silence the server or let it answer, and warn about the gateway once."""
        faults = self._faults()
        if bool(faults) != self._stun.is_silent:
            self._stun.is_silent = bool(faults)
            if faults:
                log.warning("STUN is silent, clients choose other relays: %s", "; ".join(faults))
            else:
                log.info("STUN answers again")
        n_requests, n_from_gateway = self._stun.request_counts
        if (
            not self._warned
            and n_requests >= GATEWAY_MIN_REQUESTS
            and 2 * n_from_gateway > n_requests
        ):
            self._warned = True
            log.warning(
                "most STUN requests come from %s, the gateway of this machine or container: clients "
                "learn its address instead of their own; give the container the host's network "
                "(docker run --network host)",
                self._stun.gateway,
            )
