"""Runs the operator's command that sets the DNS records of dns-01 (RFC 8555 §8.4).

The command is called as lego's `exec` provider calls it: `COMMAND present NAME VALUE` adds a TXT
record and returns when the CA can query it, `COMMAND cleanup NAME VALUE` removes it. Runs in the
thread of an order.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess

from fastderp.errors import ConfigError, IssuanceError
from fastderp.util.reasons import errno_text
from fastderp.util.text import printable

log: logging.Logger = logging.getLogger("fastderp")

# Records of slow name servers are visible after a minute or two.
TIME_LIMIT_S = 120.0


def parse_hook(text: str) -> tuple[str, ...]:
    """Split the value of -acme-dns-hook into a program and its arguments, as a shell does.

    Raises ValueError.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()}; want a command") from None


def check_hook(command: tuple[str, ...]) -> None:
    """Raise ConfigError when there is no such program."""
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"-acme-dns-hook {printable(command[0])}: no such program, or not executable"
        )


class DnsHook:
    """The command, for one name.

    Args:
        command: the program and its first arguments.
        hostname: the name of the certificate.
    """

    def __init__(self, command: tuple[str, ...], hostname: str) -> None:
        self._command = command
        # With the final dot, as lego writes it.
        self._record = f"_acme-challenge.{hostname}."

    def present(self, key_authorization: str) -> None:
        """Add the record. Raises IssuanceError with what the command wrote last."""
        self._run("present", key_authorization)

    def clean_up(self, key_authorization: str) -> None:
        """Remove the record; log a failure."""
        try:
            self._run("cleanup", key_authorization)
        except IssuanceError as error:
            log.warning("%s: the TXT record may remain: %s", self._record, error)

    def _run(self, action: str, key_authorization: str) -> None:
        digest = hashlib.sha256(key_authorization.encode()).digest()
        value = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        name = f"-acme-dns-hook {printable(self._command[0])} {action}"
        try:
            # A separate session, so that the time limit also ends the command's children.
            process = subprocess.Popen(
                [*self._command, action, self._record, value],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise IssuanceError(f"{name}: {errno_text(error)}") from None
        with process:
            try:
                output, _ = process.communicate(timeout=TIME_LIMIT_S)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise IssuanceError(f"{name}: not done after {TIME_LIMIT_S:g} s") from None
        if process.returncode:
            raise IssuanceError(f"{name}: {_end(process.returncode)}{_last_line(output)}")
        log.debug("%s: done%s", name, _last_line(output))


def _end(returncode: int) -> str:
    return f"exit code {returncode}" if returncode > 0 else f"killed by signal {-returncode}"


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f": {printable(lines[-1])}" if lines else ""
