"""Certificates that a CA issues when the first client asks for them, and renews before they end (PROTOCOL §10).

Loop thread; talking to the CA blocks for seconds and is done in a thread. Handshakes of a name without a certificate wait for it,
a bounded number and within their own time; clients come back, and find it the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from fastderp.errors import CertificateError, IssuanceError
from fastderp.server.certificates.acme.challenges import (
    ALPN_PROTOCOL,
    HTTP_01,
    TLS_ALPN_01,
    Challenges,
)
from fastderp.server.certificates.acme.settings import LETS_ENCRYPT, AcmeSettings
from fastderp.server.certificates.acme.store import (
    ACCOUNT_KEY,
    FAILURES,
    IP_ACCOUNT_KEY,
    Failures,
    PrivateKey,
    Store,
    private_key,
    private_pem,
)
from fastderp.server.certificates.certificate import Certificate, certificate_from_pem, ip_literal
from fastderp.server.http import message as http
from fastderp.server.http.message import Request, Response
from fastderp.server.observe.metrics import Value
from fastderp.tls.context import DeferredContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello

log = logging.getLogger("fastderp")

T = TypeVar("T")

# One order; derper gives as much.
ORDER_BUDGET_S = 180.0
# The library checks its deadline between requests only.
THREAD_GRACE_S = 30.0
SCAN_S = 3600.0
SCAN_MIN_S = 1.0
# A CA whose certificates are born old is not asked for another at once.
REST_S = 60.0
# Each waiting handshake holds an OpenSSL object of tens of KiB.
WAITING_LIMIT = 256
# With Tailscale's own name for -hostname anybody can think of more such names.
NAMES_LIMIT = 32

# Let's Encrypt signs addresses in this profile only.
IP_PROFILE = "shortlived"


@dataclass(eq=False, slots=True)
class Managed:
    """A name or an address, its certificate as far as there is one, and the handshakes that wait for it."""

    name: str
    is_ip: bool
    key: PrivateKey
    certificate: Certificate | None = None
    context: ServerContext | None = None
    order: asyncio.Task[None] | None = None
    rest_until: float = 0.0  # by the loop's clock
    waiting: set[asyncio.Future[ServerContext]] = field(default_factory=set)

    @property
    def valid(self) -> bool:
        """Whether its certificate has not expired."""
        return self.certificate is not None and _now() < self.certificate.not_after

    @property
    def due_in_s(self) -> float:
        """Seconds until it is to be renewed, when a third of its life is left."""
        if self.certificate is None:
            return 0.0
        life = self.certificate.not_after - self.certificate.not_before
        return (self.certificate.not_after - life / 3 - _now()).total_seconds()


class AcmeCertificates:
    """The certificates of a listener, ordered as they are needed; a `certs.CertificateSource`.

    Args:
        settings: what may be ordered, and from whom.
        meta_cert: appended to each chain.
        obtain: gets a chain from the CA, blocking; None for `acme_order.obtain`.

    Raises CertificateError when certificates cannot be kept, or those kept not be used.
    """

    def __init__(
        self,
        settings: AcmeSettings,
        meta_cert: bytes,
        *,
        obtain: Callable[[AcmeSettings, Managed, PrivateKey, Challenges], bytes] | None = None,
    ) -> None:
        self.context = DeferredContext()
        self._settings = settings
        self._meta_cert = meta_cert
        self._obtain = obtain or _obtain
        self._ca = urlsplit(settings.directory_url).hostname or settings.directory_url
        self._store = Store(settings.cert_dir)
        self._account_key = self._store.account_key(ACCOUNT_KEY)
        self._ip_account_key = (
            self._store.account_key(IP_ACCOUNT_KEY) if settings.ip_certs else self._account_key
        )
        self._failures = Failures(settings.cert_dir / FAILURES)
        self._challenges = Challenges()
        self._managed: dict[str, Managed] = {}
        # One order at a time is plenty; addresses, which strangers cannot choose, do not wait for names.
        self._turns = {is_ip: asyncio.Lock() for is_ip in (False, True)}
        self._hung: dict[bool, threading.Thread] = {}
        self._n_orders = {"failed": 0, "issued": 0}
        self._scan_timer: asyncio.TimerHandle | None = None
        if settings.hostname and settings.allows(settings.hostname):
            self._get(settings.hostname)

    # Life

    def start(self) -> None:
        """Renew from now on what is due."""
        self._scan()

    def close(self) -> None:
        """Stop; an order under way is abandoned."""
        if self._scan_timer is not None:
            self._scan_timer.cancel()
        for managed in self._managed.values():
            if managed.order is not None:
                managed.order.cancel()
            for future in managed.waiting:
                future.cancel()

    def retry(self) -> None:
        """Order at once what has to wait, after failures or because it was ordered a moment ago."""
        failed = self._failures.forgive()
        for managed in self._managed.values():
            managed.rest_until = 0.0
            if managed.name in failed:
                self._order(managed)
        self._scan()

    # For handshakes

    def choose(
        self, hello: ClientHello, local_ip: str
    ) -> ServerContext | asyncio.Future[ServerContext]:
        """Return the certificate for a client, or a future that brings it; an order is begun where one may be.

        Raises TlsError: `server_name` for a name that is not served, `no_certificate` when there is none and will not be
        in a moment.
        """
        name = (hello.server_name or "").lower().removesuffix(".")
        if hello.alpn == (ALPN_PROTOCOL,):
            return self._challenge(name)
        managed = self._get(self._wanted(name, local_ip))
        if managed.valid and managed.context is not None:
            return managed.context
        if self._order(managed):
            return self._wait(managed)
        if managed.context is not None:
            # Expired: the client says so better than we could.
            return managed.context
        wait_s = self._failures.wait_s(managed.name)
        raise TlsError(
            "no_certificate",
            f"no certificate for {managed.name}: the CA is left alone for another {wait_s:.0f} s",
        )

    def _challenge(self, name: str) -> ServerContext:
        context = self._challenges.tls_context(name)
        if context is None:
            raise TlsError(
                "server_name", "a CA's question about a name that is not being validated"
            )
        return context

    def _wanted(self, name: str, local_ip: str) -> str:
        """Return the name or address to have a certificate for. Raises TlsError when there is to be none."""
        address = ip_literal(name)
        if self._settings.ip_certs and (not name or address is not None):
            local = ip_address(local_ip)
            if address not in (None, local):
                raise TlsError(
                    "server_name", "the client asked for another address than it has connected to"
                )
            if self._settings.directory_url == LETS_ENCRYPT and not local.is_global:
                raise TlsError(
                    "no_certificate", f"{local} is no public address: the CA would refuse it"
                )
            return str(local)
        if not self._settings.allows(name):
            raise TlsError(
                "server_name", "the client asked for a name that is not served, or for none"
            )
        return name

    def _wait(self, managed: Managed) -> asyncio.Future[ServerContext]:
        if sum(len(each.waiting) for each in self._managed.values()) >= WAITING_LIMIT:
            raise TlsError(
                "no_certificate", f"{WAITING_LIMIT} handshakes wait for a certificate already"
            )
        future: asyncio.Future[ServerContext] = asyncio.get_running_loop().create_future()
        managed.waiting.add(future)
        future.add_done_callback(managed.waiting.discard)
        return future

    # For the plain port

    def respond(self, request: Request) -> Response:
        """Answer the CA's question below `acme_challenges.HTTP_PREFIX` (PROTOCOL §9.5)."""
        host = _host(request)
        if not self._settings.allows(host) and not (
            self._settings.ip_certs and ip_literal(host) is not None
        ):
            return http.text_error(403, "this name is not served here")
        answer = self._challenges.http_answer(request.path)
        if answer is None:
            return http.text_error(404, "no such challenge")
        return Response(200, answer.encode(), "text/plain; charset=utf-8")

    # Looking in

    def metrics(self) -> dict[str, Value]:
        """Return what is known, by the names of the table of metrics."""
        return {
            "fastderp_certificate_expiry_unix_time": {
                managed.name: int(managed.certificate.not_after.timestamp())
                for managed in self._managed.values()
                if managed.certificate is not None
            },
            "fastderp_acme_orders_total": dict(self._n_orders),
            "fastderp_acme_handshakes_waiting": sum(
                len(managed.waiting) for managed in self._managed.values()
            ),
        }

    @property
    def summary(self) -> str:
        """What there is, for a log line."""
        kept = [
            f"{each.name} until {each.certificate.not_after:%Y-%m-%d}"
            for each in self._managed.values()
            if each.certificate
        ]
        return f"certificates from {self._ca}: " + (
            ", ".join(kept) or "none yet, ordered when the first client asks"
        )

    # Orders

    def _get(self, name: str) -> Managed:
        """Return what is known of a name that may be served. Raises TlsError when it would be one too many."""
        managed = self._managed.get(name)
        if managed is None:
            is_ip = ip_literal(name) is not None
            if not is_ip and sum(not each.is_ip for each in self._managed.values()) >= NAMES_LIMIT:
                raise TlsError(
                    "no_certificate",
                    f"certificates for {NAMES_LIMIT} names are looked after already",
                )
            certificate = self._store.load(name)
            managed = Managed(name, is_ip, private_key(certificate))
            if certificate is not None:
                self._use(managed, certificate)
            self._managed[name] = managed
            self._scan_later(managed.due_in_s)
        return managed

    def _use(self, managed: Managed, certificate: Certificate) -> None:
        """Serve this one from now on. Raises TlsError when OpenSSL will not have it; then nothing has changed."""
        managed.context = ServerContext([*certificate.chain, self._meta_cert], certificate.key)
        managed.certificate = certificate

    def _scan(self) -> None:
        """Order what is due, and look again when the next is, within the hour in any case."""
        next_in_s = SCAN_S
        for managed in self._managed.values():
            due_in_s = managed.due_in_s
            if managed.certificate is not None and due_in_s <= 0 and not self._order(managed):
                due_in_s = self._failures.wait_s(managed.name) or REST_S
            if due_in_s > 0:
                next_in_s = min(next_in_s, due_in_s)
        self._scan_timer = None
        self._scan_later(next_in_s)

    def _scan_later(self, in_s: float) -> None:
        """Scan after so long, unless that is to be sooner already."""
        loop = asyncio.get_running_loop()
        in_s = max(SCAN_MIN_S, in_s)
        if self._scan_timer is not None:
            if self._scan_timer.when() <= loop.time() + in_s:
                return
            self._scan_timer.cancel()
        self._scan_timer = loop.call_later(in_s, self._scan)

    def _order(self, managed: Managed) -> bool:
        """See to it that a certificate is being ordered; False while the CA is not to be asked."""
        if managed.order is None:
            loop = asyncio.get_running_loop()
            if self._failures.wait_s(managed.name) or (
                managed.valid and loop.time() < managed.rest_until
            ):
                return False
            managed.order = loop.create_task(self._run_order(managed))
        return True

    async def _run_order(self, managed: Managed) -> None:
        """Order, use and keep a certificate; tell those who wait. Whatever goes wrong leaves the one of before in use."""
        try:
            async with self._turns[managed.is_ip]:
                log.info("%s: ordering a certificate from %s", managed.name, self._ca)
                chain = await self._in_thread(managed)
            self._use(
                managed,
                certificate_from_pem(
                    managed.name, chain, private_pem(managed.key), crt=_ANSWER, key=_ANSWER
                ),
            )
        except (IssuanceError, CertificateError, TlsError) as error:
            self._failed(managed, error)
        except Exception as error:
            log.exception("%s: an error of ours", managed.name)
            self._failed(managed, error)
        else:
            self._succeeded(managed, chain)
        finally:
            managed.order = None
        self._scan_later(managed.due_in_s)

    def _failed(self, managed: Managed, error: Exception) -> None:
        self._n_orders["failed"] += 1
        rate_limited = isinstance(error, IssuanceError) and error.rate_limited
        wait_s = self._failures.add(managed.name, rate_limited=rate_limited)
        kept = (
            f"; the one until {managed.certificate.not_after:%Y-%m-%d %H:%M} UTC stays"
            if managed.certificate
            else ""
        )
        alone = f"the CA is left alone for {wait_s:.0f} s, or until SIGHUP"
        log.error(
            "%s: no certificate from %s: %s; %s%s", managed.name, self._ca, error, alone, kept
        )
        self._scan_later(wait_s)
        for future in list(managed.waiting):
            if not future.done():
                future.set_exception(
                    TlsError("no_certificate", f"no certificate for {managed.name} was issued")
                )

    def _succeeded(self, managed: Managed, chain: bytes) -> None:
        assert managed.certificate is not None
        assert managed.context is not None
        self._n_orders["issued"] += 1
        managed.rest_until = asyncio.get_running_loop().time() + REST_S
        self._failures.clear(managed.name)
        until = f"{managed.certificate.not_after:%Y-%m-%d %H:%M} UTC"
        log.info("%s: certificate issued by %s, valid until %s", managed.name, self._ca, until)
        for future in list(managed.waiting):
            if not future.done():
                future.set_result(managed.context)
        try:
            self._store.save(managed.name, chain, managed.key)
        except CertificateError as error:
            log.error("%s; it is used until the relay ends", error)

    async def _in_thread(self, managed: Managed) -> bytes:
        """Talk to the CA in a thread that nobody has to wait for: the relay may end meanwhile."""
        if managed.is_ip in self._hung and self._hung[managed.is_ip].is_alive():
            raise IssuanceError("the order before has not come to an end")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[bytes] = loop.create_future()
        account_key = self._ip_account_key if managed.is_ip else self._account_key

        def work() -> None:
            try:
                report = _setter(
                    outcome, self._obtain(self._settings, managed, account_key, self._challenges)
                )
            except BaseException as error:
                report = _raiser(outcome, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(report)

        thread = threading.Thread(target=work, name="fastderp-acme", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(ORDER_BUDGET_S + THREAD_GRACE_S):
                return await outcome
        except TimeoutError:
            self._hung[managed.is_ip] = thread
            raise IssuanceError(f"not done after {ORDER_BUDGET_S + THREAD_GRACE_S:.0f} s") from None


_ANSWER = Path("the CA's answer")


def _obtain(
    settings: AcmeSettings, managed: Managed, account_key: PrivateKey, challenges: Challenges
) -> bytes:
    from fastderp.server.certificates.acme.order import Order, obtain

    order = Order(
        settings=settings,
        account_key=account_key,
        name=managed.name,
        key=managed.key,
        methods=_methods(settings, managed),
        profile=IP_PROFILE if managed.is_ip else "",
        budget_s=ORDER_BUDGET_S,
    )
    return obtain(order, challenges)


def _methods(settings: AcmeSettings, managed: Managed) -> tuple[str, ...]:
    if managed.is_ip:
        return (HTTP_01,)
    return (TLS_ALPN_01, HTTP_01) if settings.http else (TLS_ALPN_01,)


def _setter(future: asyncio.Future[T], result: T) -> Callable[[], None]:
    return lambda: None if future.done() else future.set_result(result)


def _raiser(future: asyncio.Future[T], error: BaseException) -> Callable[[], None]:
    return lambda: None if future.done() else future.set_exception(error)


def _host(request: Request) -> str:
    """Return the name or address a request was sent to, without port and brackets."""
    host = request.header("host").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
