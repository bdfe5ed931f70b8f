"""The exception of TLS: listeners count and answer by its short cause."""

from typing import ClassVar

from fastderp.errors import EX_UNAVAILABLE, DerpError


class TlsError(DerpError):
    """A handshake or a record that ends the connection, or a certificate that cannot be used.

    `cause` is a short word for a counter's label: one of `handshake.CAUSES` or `record.CAUSES`.
    """

    exit_code: ClassVar[int] = EX_UNAVAILABLE

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
