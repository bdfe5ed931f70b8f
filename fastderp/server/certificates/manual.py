"""The certificate of `-certmode manual`, as its files are: read at the start and whenever somebody asks (PROTOCOL §10).

Loop thread only.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path

from fastderp.errors import CertificateError
from fastderp.server.accept.listener import Listener
from fastderp.server.certificates.certificate import Certificate, manual_certificate
from fastderp.server.observe.metrics import Value
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError

log = logging.getLogger("fastderp")

# Nobody renews it but the operator, and clients that have it pinned need the new one's hash.
WARN_BEFORE = datetime.timedelta(days=30)
WARN_EVERY_S = 24 * 3600.0


class ManualCertificate:
    """Files, and the certificate of theirs that was last good."""

    def __init__(self, directory: Path, hostname: str) -> None:
        """Read the files; for an address they are made when absent. Raises CertificateError."""
        self._directory = directory
        self._hostname = hostname
        self.certificate = manual_certificate(directory, hostname)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Log now until when the certificate is valid, and every day that it ends soon."""
        log.info("%s", self._validity)
        self._warn()

    def close(self) -> None:
        """Warn no more."""
        if self._timer is not None:
            self._timer.cancel()

    def context(self, meta_cert: bytes) -> ServerContext:
        """Return what a listener presents, with the metacert behind the chain. Raises CertificateError."""
        return _context(self.certificate, meta_cert)

    def reload(self, listener: Listener, meta_cert: bytes) -> None:
        """Read the files again for handshakes from now on; what cannot be used changes nothing."""
        try:
            # Not made anew when absent: clients know this one by its hash.
            certificate = manual_certificate(self._directory, self._hostname, make=False)
            listener.tls = _context(certificate, meta_cert)
        except CertificateError as error:
            log.error("%s; the certificate of before stays", error)
            return
        self.certificate = certificate
        log.info("%s", self._validity)

    @property
    def _validity(self) -> str:
        return f"certificate for {self._hostname}, valid until {self.certificate.not_after:%Y-%m-%d %H:%M} UTC"

    def _warn(self) -> None:
        left = self.certificate.not_after - datetime.datetime.now(datetime.UTC)
        if left < WARN_BEFORE:
            log.warning(
                "%s: %s",
                self._validity,
                f"that is in {left.days} days" if left.days >= 0 else "it has expired",
            )
        self._timer = asyncio.get_running_loop().call_later(WARN_EVERY_S, self._warn)

    def metrics(self) -> dict[str, Value]:
        """Return when it ends, by the name in the table of metrics."""
        return {
            "fastderp_certificate_expiry_unix_time": {
                self._hostname: int(self.certificate.not_after.timestamp())
            }
        }


def _context(certificate: Certificate, meta_cert: bytes) -> ServerContext:
    try:
        return ServerContext(
            [*certificate.chain, meta_cert], certificate.key, required_sni=certificate.required_sni
        )
    except TlsError as error:
        raise CertificateError(
            f"OpenSSL refuses the certificate for {certificate.hostname}: {error}"
        ) from error
