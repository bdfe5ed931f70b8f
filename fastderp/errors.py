"""Exceptions of the library and the exit codes of the commands.

Everything the package raises on purpose is a DerpError, except ValueError for a
malformed argument (a key text, a packet that is too large). Imports nothing of ours.
"""

from typing import ClassVar, Final

# Exit codes of every command. 2 is what argparse uses; the others are those of sysexits.h.
EX_OK: Final = 0
EX_FAILURE: Final = 1  # it ran, and the answer is no (a probe that failed)
EX_USAGE: Final = 2  # wrong flags or arguments
EX_UNAVAILABLE: Final = 69  # a peer, a service or a library that is needed is not there
EX_SOFTWARE: Final = 70  # an error of ours
EX_OSERR: Final = 71  # the system refused: port in use, no descriptors, no memory
EX_IOERR: Final = 74  # what there was to say could not be written
EX_NOPERM: Final = 77  # not allowed to read, write or bind
EX_CONFIG: Final = 78  # a configuration, key or certificate file that cannot be used


class DerpError(Exception):
    """Base of every error of this package.

    `exit_code` is what a command returns when the error ends it.
    """

    exit_code: ClassVar[int] = EX_SOFTWARE


class ConfigError(DerpError):
    """A file or a setting that cannot be used; the text names it and says what to do."""

    exit_code = EX_CONFIG


class KeyFileError(ConfigError):
    """A key file that cannot be read, written or understood. Never quotes its contents."""


class DerpMapError(ConfigError):
    """A DERP map that cannot be understood; the text names the member."""


class SecretsError(DerpError):
    """The secrets server cannot be reached, and nothing is known from an earlier time."""

    exit_code = EX_UNAVAILABLE


class BoxError(DerpError):
    """A NaCl box that does not open, or a public key no box can be made for."""


class ProtocolError(DerpError):
    """The other side broke a rule of the wire that ends the connection. PROTOCOL §3, §4."""

    exit_code = EX_UNAVAILABLE


class LoginError(ProtocolError):
    """A client is not let in: it breaks the rules of the login, PROTOCOL §3, or is not allowed, §8.

    `reason` is fit for a counter label: one of `login.REASONS` or, when it is not allowed,
    `denied`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Say why:

        `reason` in a word, `detail` for people. Neither may hold a secret, for both are logged.
        """
        super().__init__(detail)
        self.reason = reason


class ConnectionClosed(DerpError):
    """The connection is over.

    By itself: closed in order, by either side, between two frames. PROTOCOL §4.
    """

    exit_code = EX_UNAVAILABLE


class ConnectionLost(ConnectionClosed):
    """The connection broke.

    It was reset, cut inside a frame or before the login was over, silent for too long or not taking
    data. PROTOCOL §4.
    """


class DialError(DerpError, OSError):
    """No connection to the relay could be made: name, TCP, proxy, TLS, HTTP or the relay's key.

    Also an OSError, as of every function that connects; `__cause__` has the system's, when there is
    one. PROTOCOL §13.
    """

    exit_code = EX_UNAVAILABLE


class PingTimeout(DerpError, TimeoutError):
    """The relay did not answer a ping in time. Also a TimeoutError. PROTOCOL §13."""

    exit_code = EX_UNAVAILABLE


class ConcurrencyError(DerpError, RuntimeError):
    """A second task receives from a client while another one waits there. PROTOCOL §13."""


class WrongLoopError(DerpError, RuntimeError):
    """A client is used in another event loop than its own, or in a child process after a fork.

    PROTOCOL §13.
    """


class UsageError(DerpError):
    """Flags or arguments that make no sense; the text names the flag and says what to do."""

    exit_code = EX_USAGE


class CertificateError(ConfigError):
    """A certificate or its key that cannot be used; the text names the file.

    Never quotes its contents.
    """


class IssuanceError(DerpError):
    """A certificate authority did not issue a certificate.

    `rate_limited` tells that it has had too many requests.
    """

    exit_code = EX_UNAVAILABLE

    def __init__(self, detail: str, *, rate_limited: bool = False) -> None:
        super().__init__(detail)
        self.rate_limited = rate_limited


class ListenError(DerpError):
    """An address that cannot be listened on: in use, not allowed, not this machine's."""

    exit_code = EX_OSERR


class ShortageError(DerpError):
    """The system does not let the command have what it cannot do without: descriptors."""

    exit_code = EX_OSERR
