"""Runs an order, which blocks for seconds, in a dedicated thread (PROTOCOL §10).

Loop thread; only `work` runs in the other one. The thread is a daemon: the relay may end meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.errors import IssuanceError
from fastderp.server.certificates.acme.challenges import DNS_01, HTTP_01, TLS_ALPN_01, Challenges
from fastderp.server.certificates.acme.dns_hook import TIME_LIMIT_S
from fastderp.server.certificates.acme.managed import ManagedCertificate
from fastderp.server.certificates.acme.settings import AcmeSettings
from fastderp.server.certificates.acme.store import PrivateKey
from fastderp.util.threads import in_thread

# Seconds per order, as in derper.
ORDER_BUDGET_S = 180.0
# A hook for DNS may take as long again, to set a record and to remove it.
HOOK_BUDGET_S = 2 * TIME_LIMIT_S
# The library checks its deadline only between requests.
THREAD_GRACE_S = 30.0

# Let's Encrypt issues certificates for addresses in this profile only.
IP_PROFILE = "shortlived"

Obtain = Callable[[AcmeSettings, ManagedCertificate, PrivateKey, Challenges], bytes]
"""Gets a chain in PEM from the CA; blocks, and raises IssuanceError."""


class OrderThread:
    """Runs one order at a time; `run` is called when the previous one has returned."""

    def __init__(self) -> None:
        self._hung: asyncio.Future[bytes] | None = None

    async def run(self, work: Callable[[], bytes]) -> bytes:
        """Return the result of `work`, or raise its exception; IssuanceError after too long."""
        if self._hung is not None and not self._hung.done():
            raise IssuanceError("the previous order has not ended yet")
        outcome = in_thread("fastderp-acme", work)
        # The result of an order that was given up is of no use.
        outcome.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        limit_s = ORDER_BUDGET_S + HOOK_BUDGET_S + THREAD_GRACE_S
        if (await asyncio.wait({outcome}, timeout=limit_s))[0]:
            return outcome.result()
        self._hung = outcome
        raise IssuanceError(f"not done after {limit_s:.0f} s")


def obtain_from_ca(
    settings: AcmeSettings,
    managed: ManagedCertificate,
    account_key: PrivateKey,
    challenges: Challenges,
) -> bytes:
    """Order a certificate and return its chain in PEM. Blocks. Raises IssuanceError."""
    from fastderp.server.certificates.acme.order import Order, obtain  # slow to import

    order = Order(
        settings=settings,
        account_key=account_key,
        name=managed.name,
        key=managed.key,
        methods=_methods(settings, managed),
        profile=IP_PROFILE if managed.is_ip else "",
        budget_s=ORDER_BUDGET_S + (HOOK_BUDGET_S if settings.dns_hook else 0),
    )
    return obtain(order, challenges)


def _methods(settings: AcmeSettings, managed: ManagedCertificate) -> tuple[str, ...]:
    if managed.is_ip:
        return (HTTP_01,)
    if settings.dns_hook:
        return (DNS_01,)
    return (TLS_ALPN_01, HTTP_01) if settings.http else (TLS_ALPN_01,)
