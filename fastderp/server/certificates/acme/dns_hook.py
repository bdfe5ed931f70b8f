"""Runs the operator's command that sets the DNS records of dns-01 (RFC 8555 §8.4).

The command is called as lego's `exec` provider calls it: `COMMAND present NAME VALUE` adds a TXT
record and returns when the CA can query it, `COMMAND cleanup NAME VALUE` removes it. Runs in the
thread of an order; `close` in another one.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

from fastderp.errors import ConfigError, IssuanceError
from fastderp.util.children import own_child
from fastderp.util.reasons import errno_text
from fastderp.util.text import printable

log: logging.Logger = logging.getLogger("fastderp")

# Records of slow name servers are visible after a minute or two.
TIME_LIMIT_S = 120.0
# Between SIGTERM and SIGKILL for a command that is ended.
GRACE_S = 1.0
# Seconds at the relay's end to remove records; with GRACE_S well below the 15 s for the whole end.
CLOSE_LIMIT_S = 5.0
# Interval of looking for the relay's end while a command runs.
POLL_S = 0.1


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
    """The command, and the records that it has set.

    Runs one command at a time.

    Args:
        command: the program and its first arguments.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._running = threading.Lock()  # while the command runs; guards _records
        self._records: set[tuple[str, str]] = set()  # names and values that may be set
        self._close_by: float | None = None  # when records are given up; None before `close`

    def present(self, hostname: str, key_authorization: str) -> None:
        """Add the record of a name; `clean_up` follows in any case.

        Raises IssuanceError with what the command wrote last, or because the relay stops.
        """
        record = _record(hostname, key_authorization)
        with self._running:
            if self._close_by is not None:
                raise IssuanceError("the relay is stopping")
            self._records.add(record)
            self._run("present", record)

    def clean_up(self, hostname: str, key_authorization: str) -> None:
        """Remove the record unless that is done; log a failure."""
        record = _record(hostname, key_authorization)
        if record in self._records:  # other methods do not wait for the command
            with self._running:
                self._remove(record)

    def close(self) -> None:
        """End a command that adds a record, and remove all records within CLOSE_LIMIT_S. Blocks."""
        self._close_by = time.monotonic() + CLOSE_LIMIT_S
        with self._running:
            for record in list(self._records):
                self._remove(record)

    def _remove(self, record: tuple[str, str]) -> None:
        if record not in self._records:
            return
        self._records.remove(record)
        try:
            self._run("cleanup", record)
        except IssuanceError as error:
            log.warning("%s: the TXT record may remain: %s", record[0], error)

    def _run(self, action: str, record: tuple[str, str]) -> None:
        name = f"-acme-dns-hook {printable(self._command[0])} {action}"
        try:
            with own_child, _life_line() as line:
                # A separate session, so that the time limit also ends the command's children.
                process = subprocess.Popen(
                    [*self._command, action, *record],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(line,),
                )
                _end_with_relay(process, line)
                output, fault = self._output(process, action)
        except OSError as error:
            raise IssuanceError(f"{name}: {errno_text(error)}") from None
        if fault:
            raise IssuanceError(f"{name}: {fault}")
        if process.returncode:
            raise IssuanceError(f"{name}: {_end(process.returncode)}{_last_line(output)}")
        log.debug("%s: done%s", name, _last_line(output))

    def _output(self, process: subprocess.Popen[bytes], action: str) -> tuple[bytes, str]:
        """Do what `_wait` does; leave neither the command nor its output open."""
        try:
            return self._wait(process, action)
        except BaseException:
            _signal(process, signal.SIGKILL)
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def _wait(self, process: subprocess.Popen[bytes], action: str) -> tuple[bytes, str]:
        """Return the command's output, and why it was ended early or ""."""
        end_by = time.monotonic() + TIME_LIMIT_S
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=POLL_S)[0], ""
            if self._close_by is not None and action == "present":
                fault = "ended, because the relay is stopping"
            elif self._close_by is not None and time.monotonic() >= self._close_by:
                fault = "not done when the relay ended"
            elif time.monotonic() >= end_by:
                fault = f"not done after {TIME_LIMIT_S:g} s"
            else:
                continue
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=GRACE_S)[0], fault
            _signal(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return b"", fault


def _record(hostname: str, key_authorization: str) -> tuple[str, str]:
    """Return the name of the TXT record, with the final dot as lego writes it, and its value."""
    digest = hashlib.sha256(key_authorization.encode()).digest()
    value = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return f"_acme-challenge.{hostname}.", value


@contextlib.contextmanager
def _life_line() -> Iterator[int]:
    """Yield the reading end of a pipe whose writing end closes when the relay is killed."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        # What the command has left running outlives this.
        with contextlib.suppress(OSError):
            fcntl.fcntl(theirs, fcntl.F_SETOWN, 0)
        os.close(ours)
        os.close(theirs)


def _end_with_relay(process: subprocess.Popen[bytes], line: int) -> None:
    """Have the kernel send SIGTERM to a command and its children when the relay is killed.

    They have inherited the `_life_line`, whose end is signalled (fcntl(2), F_SETSIG).
    PR_SET_PDEATHSIG would need code of ours between fork and exec; here a relay that is killed in
    the moment between the command's start and this leaves it running.
    """
    with contextlib.suppress(OSError):  # a sandbox without such signals
        fcntl.fcntl(line, fcntl.F_SETOWN, -process.pid)
        fcntl.fcntl(line, fcntl.F_SETSIG, signal.SIGTERM)
        fcntl.fcntl(line, fcntl.F_SETFL, os.O_ASYNC)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a command that was not waited for, and to its children."""
    # A command that has become another user cannot be signalled.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end(returncode: int) -> str:
    return f"exit code {returncode}" if returncode > 0 else f"killed by signal {-returncode}"


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f": {printable(lines[-1])}" if lines else ""
