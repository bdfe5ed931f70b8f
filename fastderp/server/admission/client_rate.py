"""Sets the rate limits in the data plane and announces them to clients. PROTOCOL §3.2, §6.8.

Loop thread only.
"""

from __future__ import annotations

import asyncio

from fastderp.dataplane.plane import Plane, SessionInfo
from fastderp.server.admission.limits import Limits
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.util.arguments import check_type
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo, server_info_json
from fastderp.wire.protocol import FrameType, frame

# Clients read the limit as a signed number.
_ANNOUNCED_MAX = (1 << 63) - 1
# Maximum of notices per iteration of the loop: each costs a key agreement.
NOTICES_PER_TURN = 32


class ClientRate:
    """The rate limits in force."""

    def __init__(self, plane: Plane, private_key: NodePrivate) -> None:
        """Start without a limit; the key seals the notices."""
        # None until limits are set
        self.limit: RateLimit | None = None
        self._limits = Limits()
        self._announced = [ServerInfo()]
        self._plane = plane
        self._private_key = private_key
        self._telling: asyncio.Task[None] | None = None

    def set(self, limits: Limits, loop: asyncio.AbstractEventLoop | None) -> None:
        """Limit every client from now on, each with a full burst.

        Notifies connected clients if `loop` is not None. Raises TypeError for anything but limits.
        """
        check_type("limits", limits, Limits)
        had_classes = bool(self._limits.classes)
        self.limit = limits.rate
        self._limits = limits
        self._announced = [_server_info(rate) for rate in limits.rates]
        if had_classes or limits.classes:
            for session in self._plane.sessions():
                self._plane.set_rate_class(session.handle, self._class_of(session))
        self._plane.set_rate_limits([(rate.bytes_per_s, rate.burst_bytes) for rate in limits.rates])
        self.close()
        if loop is not None:
            self._telling = supervisor.start("rate limit notices", self._tell)

    def class_of(self, key: bytes, app_name: str, addr: bytes) -> int:
        """Return the number of a client's class for the data plane; `addr` has 16 bytes."""
        return self._limits.class_of(key, app_name, addr)

    def server_info(self, key: bytes, app_name: str, addr: bytes) -> ServerInfo:
        """Return the ServerInfo for the login of a client; `addr` has 16 bytes."""
        return self._announced[self.class_of(key, app_name, addr)]

    def metrics(self) -> dict[str, Value]:
        """Return the limit, by the names of PROTOCOL §14; nothing before one is set."""
        if self.limit is None:
            return {}
        return {
            "derp_rate_limit_per_client_bytes_per_second": self.limit.bytes_per_s,
            "derp_rate_limit_per_client_burst_bytes": self.limit.burst_bytes,
        }

    def close(self) -> None:
        """Stop the notices to clients."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        """Send every client a new ServerInfo, a few at a time."""
        texts = [server_info_json(info) for info in self._announced]
        clients = [
            session for session in self._plane.sessions() if not session.mesh and not session.link
        ]
        for number, session in enumerate(clients, 1):
            sealed = self._private_key.seal_to(
                NodePublic(session.key), texts[self._class_of(session)]
            )
            self._plane.send(session.handle, frame(FrameType.SERVER_INFO, sealed))
            if number % NOTICES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _class_of(self, session: SessionInfo) -> int:
        return self.class_of(session.key, session.app_name.decode(), session.addr)


def _server_info(limit: RateLimit) -> ServerInfo:
    return ServerInfo(
        token_bucket_bytes_per_second=min(limit.bytes_per_s, _ANNOUNCED_MAX),
        token_bucket_bytes_burst=min(limit.burst_bytes, _ANNOUNCED_MAX),
    )
