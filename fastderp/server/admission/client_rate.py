"""Sets the rate limit in the data plane and tells it to clients. PROTOCOL §3.2, §6.8.

Loop thread only.
"""

from __future__ import annotations

import asyncio

from fastderp.dataplane.plane import Plane
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.server.observe.metrics import Value
from fastderp.server.observe.supervisor import supervisor
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import server_info_json
from fastderp.wire.protocol import FrameType, ServerInfo, frame

# Clients read the limit as a signed number.
_TOLD_MAX = (1 << 63) - 1
# Maximum of notices per iteration of the loop: each costs a key agreement.
TOLD_PER_TURN = 32


class ClientRate:
    """The limit in force; None until one is set."""

    def __init__(self, plane: Plane, private_key: NodePrivate) -> None:
        """Start without a limit; the key seals the notices."""
        self.limit: RateLimit | None = None
        self._plane = plane
        self._private_key = private_key
        self._announced = ServerInfo()
        self._telling: asyncio.Task[None] | None = None

    def set(self, limit: RateLimit, loop: asyncio.AbstractEventLoop | None) -> None:
        """Limit every client from now on, each with a full burst.

        Tells connected clients if `loop` is not None.
        """
        self.limit = limit
        self._announced = ServerInfo(
            token_bucket_bytes_per_second=min(limit.bytes_per_s, _TOLD_MAX),
            token_bucket_bytes_burst=min(limit.burst_bytes, _TOLD_MAX),
        )
        self._plane.set_rate_limit(limit.bytes_per_s, limit.burst_bytes)
        self.close()
        if loop is not None:
            self._telling = supervisor.start("rate limit notices", self._tell)

    def server_info(self) -> ServerInfo:
        """Return the ServerInfo for a login."""
        return self._announced

    def metrics(self) -> dict[str, Value]:
        """Return the limit, by the names of PROTOCOL §14; nothing before one is set."""
        if self.limit is None:
            return {}
        return {
            "derp_rate_limit_per_client_bytes_per_second": self.limit.bytes_per_s,
            "derp_rate_limit_per_client_burst_bytes": self.limit.burst_bytes,
        }

    def close(self) -> None:
        """Stop telling clients."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        """Send every client a new ServerInfo, a few at a time."""
        text = server_info_json(self.server_info())
        clients = [
            session for session in self._plane.sessions() if not session.mesh and not session.link
        ]
        for number, session in enumerate(clients, 1):
            sealed = self._private_key.seal_to(NodePublic(session.key), text)
            self._plane.send(session.handle, frame(FrameType.SERVER_INFO, sealed))
            if number % TOLD_PER_TURN == 0:
                await asyncio.sleep(0)
