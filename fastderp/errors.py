"""Exceptions of the library and the exit codes of the commands.

The package raises a DerpError for every expected failure, and ValueError for a malformed
argument (a key text, a packet that is too large). Imports no other module of the package.
"""

from typing import ClassVar, Final

# Exit codes of every command: argparse's 2, and those of sysexits.h.
EX_OK: Final = 0
EX_FAILURE: Final = 1  # the command ran, and its check failed
EX_USAGE: Final = 2  # wrong flags or arguments
EX_UNAVAILABLE: Final = 69  # a required peer, service or library is missing
EX_SOFTWARE: Final = 70  # internal error
EX_OSERR: Final = 71  # the system refused: port in use, no descriptors, no memory
EX_IOERR: Final = 74  # the output could not be written
EX_CONFIG: Final = 78  # unusable configuration, key or certificate file


class DerpError(Exception):
    """Base of every error of this package.

    A command that the error ends returns `exit_code`.
    """

    exit_code: ClassVar[int] = EX_SOFTWARE


class ConfigError(DerpError):
    """A file or a setting is unusable; the text names it and the next step. PROTOCOL §12."""

    exit_code = EX_CONFIG


class KeyFileError(ConfigError):
    """A key file cannot be read, written or parsed. The text never quotes its contents.

    PROTOCOL §12.
    """


class DerpMapError(ConfigError):
    """A DERP map cannot be parsed; the text names the member. PROTOCOL §13."""


class SecretsError(DerpError):
    """The secrets server cannot be reached, and there is no copy of the secret."""

    exit_code = EX_UNAVAILABLE


class BoxError(DerpError):
    """A NaCl box does not open, or a public key is unusable for one. PROTOCOL §1."""


class ProtocolError(DerpError):
    """The peer violated the protocol; this ends the connection. PROTOCOL §3, §4."""

    exit_code = EX_UNAVAILABLE


class LoginError(ProtocolError):
    """A login was refused: it was malformed (PROTOCOL §3), or the client is not allowed (§8).

    `reason` is fit for a counter label: one of `login.REASONS` or, when it is not allowed,
    `denied`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Take the `reason` as a word, and `detail` as text.

        Both are logged and must not contain a secret.
        """
        # `args` are the arguments of the constructor, so that the error can be pickled.
        super().__init__(reason, detail)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class ConnectionClosed(DerpError):
    """The connection is closed.

    This class itself means an orderly close, by either side, between two frames. PROTOCOL §4.
    """

    exit_code = EX_UNAVAILABLE


class ConnectionLost(ConnectionClosed):
    """The connection broke.

    It was reset, cut inside a frame or during the login, silent for too long, or its peer did not
    read. PROTOCOL §4.
    """


class DialError(DerpError, OSError):
    """No connection to the relay could be made: name, TCP, proxy, TLS, HTTP or the relay's key.

    Also an OSError, as callers of a connecting function expect; `__cause__` has the system's error,
    if any. PROTOCOL §13.
    """

    exit_code = EX_UNAVAILABLE


class PingTimeout(DerpError, TimeoutError):
    """The relay did not answer a ping in time. Also a TimeoutError. PROTOCOL §13."""

    exit_code = EX_UNAVAILABLE


class ConcurrencyError(DerpError, RuntimeError):
    """A second task receives from a client while a first one waits. PROTOCOL §13."""


class WrongLoopError(DerpError, RuntimeError):
    """A client or a relay was used in another event loop than its own, or in a child process.

    PROTOCOL §13.
    """


class UsageError(DerpError):
    """A flag or an argument is invalid; the text names the flag and the next step."""

    exit_code = EX_USAGE


class CertificateError(ConfigError):
    """A certificate or its key is unusable; the text names the file.

    The text never quotes its contents.
    """


class IssuanceError(DerpError):
    """A certificate authority did not issue a certificate.

    `rate_limited` is true when it has had too many requests.
    """

    exit_code = EX_UNAVAILABLE

    def __init__(self, detail: str, *, rate_limited: bool = False) -> None:
        super().__init__(detail)
        self.rate_limited = rate_limited


class ListenError(DerpError, OSError):
    """The relay cannot listen on an address: in use, not allowed, of another machine.

    Also an OSError, with the system's number in `errno` if there is one. PROTOCOL §9.1.
    """

    exit_code = EX_OSERR


class ShortageError(DerpError):
    """The system's limits are too low for the command: descriptors, memory, threads."""

    exit_code = EX_OSERR
