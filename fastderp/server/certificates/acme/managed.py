"""One name or address whose certificate a CA issues (PROTOCOL §10). Loop thread only."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from fastderp.server.certificates.acme.store import PrivateKey
from fastderp.server.certificates.certificate import Certificate
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from fastderp.util import utc


@dataclass(eq=False, slots=True)
class ManagedCertificate:
    """A name or an address, its certificate if it has one, and the handshakes that wait for it."""

    name: str
    is_ip: bool
    key: PrivateKey
    certificate: Certificate | None = None
    context: ServerContext | None = None  # of the certificate
    order: asyncio.Task[None] | None = None
    retry_after: float = 0.0  # no new order before this time of the loop's clock
    waiting: set[asyncio.Future[ServerContext]] = field(default_factory=set)

    @property
    def valid(self) -> bool:
        """Whether it has a certificate that has not expired."""
        return self.certificate is not None and time.time() < self.certificate.not_after

    @property
    def due_in_s(self) -> float:
        """Seconds until renewal, which is due with a third of the validity left.

        0 without a certificate.
        """
        if self.certificate is None:
            return 0.0
        life_s = self.certificate.not_after - self.certificate.not_before
        return self.certificate.not_after - life_s / 3 - time.time()

    @property
    def validity(self) -> str:
        """The end of its validity, for log lines; "" without a certificate."""
        if self.certificate is None:
            return ""
        return f"valid until {utc.minute(self.certificate.not_after)}"

    def wait(self) -> asyncio.Future[ServerContext]:
        """Return a future that the end of an order settles."""
        future: asyncio.Future[ServerContext] = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        future.add_done_callback(self.waiting.discard)
        return future

    def settle(self, outcome: ServerContext | TlsError) -> None:
        """Give every waiting handshake its certificate, or the error that refuses it."""
        for future in list(self.waiting):
            if future.done():
                continue
            if isinstance(outcome, TlsError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def close(self) -> None:
        """Abandon the order and the waiting handshakes."""
        if self.order is not None:
            self.order.cancel()
        for future in list(self.waiting):
            future.cancel()
