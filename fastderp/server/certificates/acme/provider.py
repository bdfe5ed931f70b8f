"""Certificates that a CA issues when a client asks for them, renewed in time (PROTOCOL §10).

Loop thread; other threads talk to the CA and write files. A handshake for a name without a certificate waits
for the order: up to WAITING_LIMIT handshakes do, each within its own time limit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from fastderp.errors import CertificateError, IssuanceError, ShortageError
from fastderp.server.certificates.acme.challenges import Challenges
from fastderp.server.certificates.acme.failures import FILE_NAME, Failures
from fastderp.server.certificates.acme.managed import ManagedCertificate
from fastderp.server.certificates.acme.order_thread import Obtain, OrderThread, obtain_from_ca
from fastderp.server.certificates.acme.settings import ALPN_PROTOCOL, LETS_ENCRYPT, AcmeSettings
from fastderp.server.certificates.acme.store import (
    ACCOUNT_KEY,
    IP_ACCOUNT_KEY,
    Store,
    private_key,
    private_pem,
)
from fastderp.server.certificates.certificate import Certificate, certificate_from_pem
from fastderp.server.http.message import Request, Response, text_error
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.tls.context import DeferredContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello
from fastderp.util import utc
from fastderp.util.net import is_address, parse_ip
from fastderp.util.threads import in_thread

log: logging.Logger = logging.getLogger("fastderp")

# Interval between scans for renewals; a scan also runs when the next one is due.
SCAN_S = 3600.0
SCAN_MIN_S = 1.0
# Pause between two orders of a name: some CAs issue certificates that are due for renewal at once.
ORDER_PAUSE_S = 60.0
# A waiting handshake holds an OpenSSL object of tens of KiB.
WAITING_LIMIT = 256
# When -hostname is Tailscale's own name, clients can request any number of names.
NAMES_LIMIT = 32

# The name of the CA's answer in errors that name a file.
_CA_ANSWER = Path("the CA's answer")


class AcmeCertificates:
    """The certificates of a listener, ordered on demand; a `CertificateSource`.

    Args:
        settings: what may be ordered, and from which CA.
        meta_cert: appended to each chain.
        obtain: gets a chain from the CA, blocking.

    Raises CertificateError when certificates cannot be kept, or an account key not be used.
    """

    def __init__(
        self, settings: AcmeSettings, meta_cert: bytes, *, obtain: Obtain = obtain_from_ca
    ) -> None:
        self.context: DeferredContext = DeferredContext()
        self._settings = settings
        self._meta_cert = meta_cert
        self._obtain = obtain
        self._ca = urlsplit(settings.directory_url).hostname or settings.directory_url
        self._store = Store(settings.cert_dir)
        self._account_key = self._store.account_key(ACCOUNT_KEY)
        self._ip_account_key = (
            self._store.account_key(IP_ACCOUNT_KEY) if settings.ip_certs else self._account_key
        )
        self._failures = Failures(settings.cert_dir / FILE_NAME)
        self._challenges = Challenges(settings.dns_hook)
        self._managed: dict[str, ManagedCertificate] = {}
        # One order at a time for names, and one for addresses, which clients cannot forge.
        self._locks = {is_ip: asyncio.Lock() for is_ip in (False, True)}
        self._threads = {is_ip: OrderThread() for is_ip in (False, True)}
        self._n_orders = {"failed": 0, "issued": 0}
        self._scan_timer: asyncio.TimerHandle | None = None
        if settings.hostname and settings.allows(settings.hostname):
            self._get(settings.hostname)

    # Start and stop

    def start(self) -> None:
        """Start the renewals.

        With a DNS hook no client and no open port is needed: a missing certificate is ordered now.
        """
        managed = self._managed.get(self._settings.hostname)
        if self._settings.dns_hook and managed is not None and managed.certificate is None:
            self._order(managed)
        self._scan()

    async def close(self) -> None:
        """Stop, and abandon a running order; its DNS record is removed first."""
        if self._scan_timer is not None:
            self._scan_timer.cancel()
        for managed in self._managed.values():
            managed.close()
        if self._settings.dns_hook:
            await asyncio.to_thread(self._challenges.close)

    def retry(self) -> list[str]:
        """Order due names at once, without the delay after a failure or a recent order.

        Returns the names whose last order has failed.
        """
        failed = self._failures.forgive()
        for managed in self._managed.values():
            managed.retry_after = 0.0
            if managed.name in failed:
                self._order(managed)
        self._scan()
        return sorted(failed)

    # For handshakes

    def choose(
        self, hello: ClientHello, local_ip: str
    ) -> ServerContext | asyncio.Future[ServerContext]:
        """Return the certificate for a client, or a future of it; begin an order if needed.

        Raises TlsError: `server_name` for a name that is not served, `no_certificate` for a name
        without a certificate or an order under way.
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
            # It has expired: the client's error message names the cause.
            return managed.context
        wait_s = self._failures.wait_s(managed.name)
        raise TlsError(
            "no_certificate",
            f"no certificate for {managed.name}: next attempt to order one in {wait_s:.0f} s",
        )

    def _challenge(self, name: str) -> ServerContext:
        context = self._challenges.tls_context(name)
        if context is None:
            raise TlsError("server_name", f"no {ALPN_PROTOCOL} challenge is under way for {name!r}")
        return context

    def _wanted(self, name: str, local_ip: str) -> str:
        """Return the name or address to have a certificate for. Raises TlsError for any other."""
        address = parse_ip(name)
        if self._settings.ip_certs and (not name or address is not None):
            local = self._settings.served_ip(local_ip)
            if local is None:
                raise TlsError("no_certificate", f"the local address is unknown: {local_ip!r}")
            if address not in (None, local):
                raise TlsError(
                    "server_name", f"the client asked for {address}, but connected to {local}"
                )
            if self._settings.directory_url == LETS_ENCRYPT and not local.is_global:
                raise TlsError(
                    "no_certificate", f"{local} is no public address: the CA would refuse it"
                )
            return str(local)
        if not self._settings.allows(name):
            asked = f"for {name!r}, which is not served" if name else "for no server name"
            raise TlsError("server_name", f"the client asked {asked}")
        return name

    def _wait(self, managed: ManagedCertificate) -> asyncio.Future[ServerContext]:
        if sum(len(each.waiting) for each in self._managed.values()) >= WAITING_LIMIT:
            raise TlsError(
                "no_certificate", f"{WAITING_LIMIT} handshakes already wait for a certificate"
            )
        return managed.wait()

    # For the plain port

    def respond(self, request: Request) -> Response:
        """Answer the CA's request below HTTP_PREFIX (PROTOCOL §9.5)."""
        host = _host(request)
        if not self._settings.allows(host) and not (self._settings.ip_certs and is_address(host)):
            return text_error(403, "this name is not served by this relay")
        answer = self._challenges.http_answer(request.path)
        if answer is None:
            return text_error(404, "no such challenge")
        return Response(200, answer.encode(), "text/plain; charset=utf-8")

    # For operators

    def metrics(self) -> dict[str, Value]:
        """Return values by the names in the table of metrics."""
        return {
            "fastderp_certificate_expiry_unix_time": {
                managed.name: managed.certificate.not_after
                for managed in self._managed.values()
                if managed.certificate is not None
            },
            "fastderp_acme_orders_total": dict(self._n_orders),
            "fastderp_acme_handshakes_waiting": sum(
                len(managed.waiting) for managed in self._managed.values()
            ),
        }

    def faults(self) -> list[str]:
        """Return why clients get no usable certificate; nothing while those of any name get one.

        A name without a certificate counts once an order has failed: its first client causes one.
        """
        found = [
            f"certificate for {each.name} expired on {utc.day(each.certificate.not_after)}"
            if each.certificate is not None
            else f"no certificate for {each.name} was issued"
            for each in self._managed.values()
            if not each.valid and (each.certificate or self._failures.wait_s(each.name))
        ]
        return found if len(found) == len(self._managed) else []

    @property
    def summary(self) -> str:
        """The certificates in use, for a log line."""
        kept = [
            f"{each.name} until {utc.day(each.certificate.not_after)}"
            for each in self._managed.values()
            if each.certificate
        ]
        when = "now" if self._settings.dns_hook else "when the first client asks"
        return f"certificates from {self._ca}: " + (", ".join(kept) or f"none yet, ordered {when}")

    # Orders

    def _get(self, name: str) -> ManagedCertificate:
        """Return the state of a name that may be served. Raises TlsError beyond NAMES_LIMIT."""
        managed = self._managed.get(name)
        if managed is None:
            is_ip = is_address(name)
            if not is_ip and sum(not each.is_ip for each in self._managed.values()) >= NAMES_LIMIT:
                raise TlsError(
                    "no_certificate", f"limit of {NAMES_LIMIT} names with certificates reached"
                )
            certificate = self._store.load(name)
            managed = ManagedCertificate(name, is_ip, private_key(certificate))
            if certificate is not None:
                self._use(managed, certificate)
            self._managed[name] = managed
            self._scan_later(managed.due_in_s)
        return managed

    def _use(self, managed: ManagedCertificate, certificate: Certificate) -> None:
        """Serve `certificate` from now on. Raises TlsError, without effect, if refused."""
        # The context requires no SNI: `choose` has compared the name.
        managed.context = ServerContext([*certificate.chain, self._meta_cert], certificate.key)
        managed.certificate = certificate

    def _scan(self) -> None:
        """Order due certificates; scan again when the next one is due, after SCAN_S at most."""
        if self._scan_timer is not None:
            self._scan_timer.cancel()
        self._scan_timer = None
        # Schedule the next scan first, so that a failing scan does not end the scans.
        self._scan_later(SCAN_S)
        next_in_s = SCAN_S
        for managed in list(self._managed.values()):
            due_in_s = managed.due_in_s
            if managed.certificate is not None and due_in_s <= 0 and not self._order(managed):
                due_in_s = self._failures.wait_s(managed.name) or ORDER_PAUSE_S
            if due_in_s > 0:
                next_in_s = min(next_in_s, due_in_s)
        self._scan_later(next_in_s)

    def _scan_later(self, in_s: float) -> None:
        """Scan after this time, unless an earlier scan is due."""
        loop = asyncio.get_running_loop()
        in_s = max(SCAN_MIN_S, in_s)
        if self._scan_timer is not None:
            if self._scan_timer.when() <= loop.time() + in_s:
                return
            self._scan_timer.cancel()
        self._scan_timer = loop.call_later(
            in_s, supervisor.guarded("certificate renewal", self._scan)
        )

    def _order(self, managed: ManagedCertificate) -> bool:
        """Start an order; return False during a delay between orders."""
        if managed.order is None:
            loop = asyncio.get_running_loop()
            if self._failures.wait_s(managed.name) or (
                managed.valid and loop.time() < managed.retry_after
            ):
                return False
            managed.order = loop.create_task(self._run_order(managed))
        return True

    async def _run_order(self, managed: ManagedCertificate) -> None:
        """Order, use and keep a certificate. A failure leaves the previous one in use."""
        try:
            async with self._locks[managed.is_ip]:
                log.info("%s: ordering a certificate from %s", managed.name, self._ca)
                account_key = self._ip_account_key if managed.is_ip else self._account_key
                chain = await self._threads[managed.is_ip].run(
                    partial(self._obtain, self._settings, managed, account_key, self._challenges)
                )
            self._use(managed, _issued(managed, chain))
            await self._keep(managed, chain)
        except (IssuanceError, CertificateError, TlsError) as error:
            self._failed(managed, error)
        except Exception as error:
            supervisor.note(
                "certificate order", error, f"the order for {managed.name} is repeated later"
            )
            self._failed(managed, error)
        else:
            supervisor.guard("certificate order", self._succeeded, managed)
        finally:
            managed.order = None
            self._scan_later(managed.due_in_s)

    def _failed(self, managed: ManagedCertificate, error: Exception) -> None:
        self._n_orders["failed"] += 1
        rate_limited = isinstance(error, IssuanceError) and error.rate_limited
        wait_s = self._failures.add(managed.name, rate_limited=rate_limited)
        kept = f"; the previous one stays, {managed.validity}" if managed.certificate else ""
        log.error(
            "%s: no certificate from %s: %s; next attempt in %.0f s, or on SIGHUP%s",
            managed.name,
            self._ca,
            error,
            wait_s,
            kept,
            extra={
                "fields": {
                    "event": "certificate",
                    "name": managed.name,
                    "outcome": "failed",
                    "reason": str(error),
                    "retry_seconds": round(wait_s),
                }
            },
        )
        self._scan_later(wait_s)
        managed.settle(TlsError("no_certificate", f"no certificate for {managed.name} was issued"))

    async def _keep(self, managed: ManagedCertificate, chain: bytes) -> None:
        """Store a certificate; another thread waits for the disk."""
        save = partial(self._store.save, managed.name, chain, managed.key)
        try:
            await in_thread("certificate", save)
        except (CertificateError, ShortageError) as error:
            log.error("%s; the relay uses it until it ends", error)

    def _succeeded(self, managed: ManagedCertificate) -> None:
        assert managed.context is not None
        self._n_orders["issued"] += 1
        managed.retry_after = asyncio.get_running_loop().time() + ORDER_PAUSE_S
        self._failures.clear(managed.name)
        log.info(
            "%s: certificate issued by %s, %s",
            managed.name,
            self._ca,
            managed.validity,
            extra={
                "fields": {"event": "certificate", "name": managed.name, "outcome": "issued"},
            },
        )
        managed.settle(managed.context)


def _issued(managed: ManagedCertificate, chain: bytes) -> Certificate:
    """Read the CA's answer. Raises CertificateError for a chain that is not valid now."""
    certificate = certificate_from_pem(
        managed.name, chain, private_pem(managed.key), crt=_CA_ANSWER, key=_CA_ANSWER
    )
    if fault := certificate.time_fault(time.time()):
        raise CertificateError(f"certificate in {_CA_ANSWER} {fault}")
    return certificate


def _host(request: Request) -> str:
    """Return the name or address in a request's Host, without port and brackets."""
    host = request.header("host").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
