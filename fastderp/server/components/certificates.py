"""The certificate components: from files, or from a CA (PROTOCOL §10)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fastderp.errors import CertificateError
from fastderp.server.accept.listener import Listener
from fastderp.server.certificates.acme.settings import (
    HTTP_PREFIX,
    VENDOR_HOSTNAME,
    AcmeSettings,
)
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.certificates.manual import (
    ManualCertificate,
    certificate_files,
    manual_certificate,
)
from fastderp.server.components.component import Component, is_there, readable_by_all
from fastderp.server.http.routes import Routes
from fastderp.server.observe.values import Value
from fastderp.server.server import Server
from fastderp.server.settings import ManualSettings
from fastderp.tls.context import ServerContext
from fastderp.util import files, utc
from fastderp.util.net import is_address

if TYPE_CHECKING:
    from fastderp.server.certificates.acme.provider import AcmeCertificates


class Certificates(Protocol):
    """A component that provides a listener's certificates."""

    @property
    def tls(self) -> ServerContext | CertificateSource:
        """The certificate or source for a listener, once the component has started."""

    def unready(self) -> list[str]:
        """Return why TLS cannot be served now; nothing while it can."""

    def serve(self, listener: Listener, plain_routes: Routes | None, stun_port: int | None) -> None:
        """Serve a listener; `plain_routes` of the plain port answer a CA's challenges."""


class ManualCertificates(Component):
    """The certificate in the operator's files, read at the start and on SIGHUP."""

    name = "certificate"

    def __init__(self, settings: ManualSettings) -> None:
        self._settings = settings
        self._certificate: ManualCertificate | None = None
        self._context: ServerContext | None = None
        self._listener: Listener | None = None
        self._meta_cert = b""

    async def open(self) -> None:
        """Read the files; create those of an address when absent. Raises CertificateError."""
        self._certificate = ManualCertificate(self._settings.directory, self._settings.hostname)

    async def check(self) -> list[str]:
        """Read the files and compare the certificate with the name. Raises CertificateError."""
        directory, hostname = self._settings.directory, self._settings.hostname
        crt, key = certificate_files(directory, hostname)
        if is_address(hostname) and not (is_there(crt) or is_there(key)):
            _check_creatable(crt)
            return [f"{crt} does not exist: the start creates it"]
        certificate = manual_certificate(directory, hostname, make=False)
        return [f"for {hostname}, valid until {utc.minute(certificate.not_after)}"]

    async def start(self, server: Server) -> None:
        """Make the TLS context that a listener presents. Raises CertificateError."""
        assert self._certificate is not None
        self._meta_cert = server.meta_cert
        self._context = self._certificate.context(self._meta_cert)

    @property
    def tls(self) -> ServerContext:
        """The TLS context that the listener presents."""
        assert self._context is not None
        return self._context

    def serve(self, listener: Listener, _: Routes | None, stun_port: int | None) -> None:
        """Log the node for the DERP map, and warn before the certificate expires."""
        assert self._certificate is not None
        self._listener = listener
        self._certificate.start(port=listener.port, stun_port=stun_port)

    async def close(self) -> None:
        """Stop the warnings."""
        if self._certificate is not None:
            self._certificate.close()

    @property
    def files(self) -> list[Path]:
        """The files of certificate and key."""
        return list(certificate_files(self._settings.directory, self._settings.hostname))

    async def reload(self) -> str:
        """Read the files again for handshakes from now on."""
        assert self._certificate is not None and self._listener is not None
        return await self._certificate.reload(self._publish, self._meta_cert)

    def _publish(self, context: ServerContext) -> None:
        assert self._listener is not None
        self._listener.tls = context

    def warnings(self) -> list[str]:
        """Return a warning when every user can read the key."""
        _, key = certificate_files(self._settings.directory, self._settings.hostname)
        return readable_by_all(key)

    def unready(self) -> list[str]:
        """Return that clients refuse the certificate, when they do."""
        fault = self._certificate.fault if self._certificate is not None else ""
        return [fault] if fault else []

    def metrics(self) -> Mapping[str, Value]:
        """Return the expiry of the certificate."""
        return {} if self._certificate is None else self._certificate.metrics()


def _check_creatable(path: Path) -> None:
    try:
        files.check_creatable(path)
    except OSError as error:
        raise CertificateError(
            f"cannot keep certificates in {path.parent}: {error.strerror}"
        ) from error


class CaCertificates(Component):
    """Certificates that a CA issues on a client's first request."""

    name = "acme"

    def __init__(self, settings: AcmeSettings) -> None:
        self._settings = settings
        self._acme: AcmeCertificates | None = None

    async def open(self) -> None:
        """Check the requirements.

        Raises ImportError for a missing library, ConfigError for -acme-ca-file and -acme-dns-hook.
        """
        from fastderp.server.certificates.acme.requirements import check_ca_file, check_installed

        check_installed()
        if self._settings.ca_file is not None:
            check_ca_file(self._settings.ca_file)
        if self._settings.dns_hook:
            from fastderp.server.certificates.acme.dns_hook import check_hook

            check_hook(self._settings.dns_hook)

    async def check(self) -> list[str]:
        """Check the requirements without a request to the CA. Raises what `open` and `start` raise."""
        await self.open()
        from fastderp.server.certificates.acme.store import ACCOUNT_KEY, IP_ACCOUNT_KEY

        settings = self._settings
        for name in (ACCOUNT_KEY, IP_ACCOUNT_KEY) if settings.ip_certs else (ACCOUNT_KEY,):
            if not is_there(settings.cert_dir / name):
                _check_creatable(settings.cert_dir / name)
        return [f"{settings.hostname or 'addresses'} from {settings.directory_url}"]

    async def start(self, server: Server) -> None:
        """Read the certificates issued earlier. Raises CertificateError."""
        # Imported on use, because it loads the libraries of the extra `acme`.
        from fastderp.server.certificates.acme.provider import AcmeCertificates

        self._acme = AcmeCertificates(self._settings, server.meta_cert)

    @property
    def tls(self) -> CertificateSource:
        """The source that picks a certificate for each client."""
        assert self._acme is not None
        return self._acme

    def serve(self, _: Listener, plain_routes: Routes | None, __: int | None) -> None:
        """Start renewals, and answer the CA's challenges on the plain port."""
        assert self._acme is not None
        if plain_routes is not None:
            plain_routes.prefixes[HTTP_PREFIX] = self._acme.respond
        self._acme.start()

    async def close(self) -> None:
        """Stop, and abandon a running order."""
        if self._acme is not None:
            await self._acme.close()

    async def reload(self) -> str:
        """Retry failed orders now."""
        assert self._acme is not None
        names = self._acme.retry()
        return f"ordering again: {', '.join(names)}" if names else "no failed order"

    def describe(self) -> list[str]:
        """Return the names that certificates are ordered for, and the CA."""
        return [] if self._acme is None else [str(self._acme.summary)]

    def warnings(self) -> list[str]:
        """Return a warning when -hostname was left at its default."""
        if self._settings.hostname == VENDOR_HOSTNAME and not self._settings.ip_certs:
            return [
                f"{VENDOR_HOSTNAME} is Tailscale's own name: set the relay's name with -hostname"
            ]
        return []

    def unready(self) -> list[str]:
        """Return why clients get no usable certificate."""
        return [] if self._acme is None else self._acme.faults()

    def metrics(self) -> Mapping[str, Value]:
        """Return the orders by outcome and the expiry of each certificate."""
        return {} if self._acme is None else self._acme.metrics()
