"""The certificate of `-certmode manual`: its files, read at the start and on SIGHUP (PROTOCOL §10).

Loop thread; another thread reads the files for a reload.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastderp.errors import CertificateError
from fastderp.server.certificates.certificate import Certificate, certificate_from_pem, read_pem
from fastderp.server.certificates.self_signed import make_missing_files
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from fastderp.util import utc
from fastderp.util.net import is_address
from fastderp.util.threads import in_thread

log: logging.Logger = logging.getLogger("fastderp")

# The operator has to renew it, and clients with its pin need the new pin: warn while less than a
# third of its validity is left, up to 30 days ahead.
WARN_BEFORE_MAX_S = 30 * 24 * 3600.0
WARN_EVERY_S = 24 * 3600.0


class ManualCertificate:
    """The certificate in a pair of files; a reading of unusable files does not replace it."""

    def __init__(self, directory: Path, hostname: str) -> None:
        """Read the files; create those of an address when absent. Raises CertificateError."""
        self._directory = directory
        self._hostname = hostname
        self.certificate: Certificate = manual_certificate(directory, hostname)
        self._ports: tuple[int, int | None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, port: int, stun_port: int | None) -> None:
        """Log its validity and its DERP map node, and start the daily warnings.

        The ports are those that clients use; `stun_port` is None without STUN.
        """
        self._ports = (port, stun_port)
        self._announce_node()
        self._log_validity()

    def close(self) -> None:
        """Stop the warnings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def context(self, meta_cert: bytes) -> ServerContext:
        """Return the TLS context with the metacert. Raises CertificateError."""
        return _context(self.certificate, meta_cert)

    async def reload(self, publish: Callable[[ServerContext], None], meta_cert: bytes) -> str:
        """Read the files again and `publish` what new handshakes present; return what it is.

        Raises CertificateError for unusable files, which change nothing.
        """
        # A reload creates no certificate: clients have pinned the previous one.
        read = partial(manual_certificate, self._directory, self._hostname, make=False)
        certificate = await in_thread("certificate", read)
        self._check_is_no_worse(certificate)
        publish(_context(certificate, meta_cert))
        is_new = certificate.pin != self.certificate.pin
        self.certificate = certificate
        if is_new:
            self._announce_node()
        self._warn_daily()
        return f"{'new' if is_new else 'unchanged'}: {self._validity}"

    def _check_is_no_worse(self, certificate: Certificate) -> None:
        """Raise CertificateError when clients refuse this one now, and not the previous one."""
        now = time.time()
        fault = certificate.time_fault(now)
        if fault and not self.certificate.time_fault(now):
            crt, _ = certificate_files(self._directory, self._hostname)
            raise CertificateError(f"certificate in {crt} {fault}")

    def metrics(self) -> dict[str, Value]:
        """Return when it expires, by the name in the table of metrics."""
        return {
            "fastderp_certificate_expiry_unix_time": {self._hostname: self.certificate.not_after}
        }

    @property
    def fault(self) -> str:
        """Why clients refuse the certificate today; "" while it is valid."""
        fault = self.certificate.time_fault(time.time())
        return fault and f"certificate for {self._hostname} {fault}"

    def _announce_node(self) -> None:
        if self.certificate.needs_pin and self._ports is not None:
            port, stun_port = self._ports
            log.info("the node for your DERP map, pinned to this certificate:")
            log.info("  %s", self.certificate.derp_node(port=port, stun_port=stun_port))

    def _log_validity(self) -> None:
        log.info("%s", self._validity)
        self._warn_daily()

    @property
    def _validity(self) -> str:
        until = utc.minute(self.certificate.not_after)
        return f"certificate for {self._hostname}, valid until {until}"

    def _warning(self, now: float) -> str:
        """Return the warning about the validity at the Unix time `now`; "" while none is due."""
        certificate = self.certificate
        if fault := certificate.time_fault(now):
            return f"certificate for {self._hostname} {fault}: clients refuse it{self._remedy}"
        left_s = certificate.not_after - now
        life_s = certificate.not_after - certificate.not_before
        if left_s < min(WARN_BEFORE_MAX_S, life_s / 3):
            return f"{self._validity}, in {_time_text(left_s)}{self._remedy}"
        return ""

    @property
    def _remedy(self) -> str:
        crt, key = certificate_files(self._directory, self._hostname)
        if is_address(self._hostname) and self.certificate.is_self_signed:
            return (
                f"; delete {crt} and {key.name} and restart to create new ones, "
                "and put the new CertName into the DERP map"
            )
        return f"; replace {crt} and {key.name} and send SIGHUP"

    def _warn_daily(self) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_later(
            WARN_EVERY_S, supervisor.guarded("certificate warning", self._warn_daily)
        )
        if warning := self._warning(time.time()):
            log.warning("%s", warning)


def manual_certificate(directory: Path, hostname: str, *, make: bool = True) -> Certificate:
    """Load `<directory>/<hostname>.crt` and `.key` (PROTOCOL §10).

    With `make`, missing files of an address are created.

    Raises CertificateError when a file is missing, unreadable or malformed, when key and
    certificate do not match or clients cannot use them, and when the leaf is not for `hostname`.
    """
    crt, key = certificate_files(directory, hostname)
    if make and is_address(hostname):
        make_missing_files(crt, key, hostname)
    chain_pem = read_pem(crt, f"certificate for {hostname}")
    key_pem = read_pem(key, "certificate key")
    return certificate_from_pem(hostname, chain_pem, key_pem, crt=crt, key=key)


def certificate_files(directory: Path, hostname: str) -> tuple[Path, Path]:
    """Return the paths of certificate and key; unsafe characters of the hostname are left out."""
    stem = re.sub(r"[^A-Za-z0-9.-]", "", hostname)
    return directory / f"{stem}.crt", directory / f"{stem}.key"


def _context(certificate: Certificate, meta_cert: bytes) -> ServerContext:
    try:
        return certificate.server_context(meta_cert)
    except TlsError as error:
        raise CertificateError(
            f"OpenSSL refuses the certificate for {certificate.hostname}: {error}"
        ) from error


def _time_text(left_s: float) -> str:
    n_hours = int(left_s // 3600)
    n_days = n_hours // 24
    if n_days < 1:
        return f"{n_hours} hours"
    return f"{n_days} days" if n_days > 1 else "1 day"
