"""The exception of TLS: listeners count and answer by its short cause."""

from typing import ClassVar

from fastderp.errors import EX_UNAVAILABLE, DerpError


class TlsError(DerpError):
    """A handshake or a record that ends the connection, or a certificate that cannot be used.

    PROTOCOL §10.

    Args:
        cause: a short word for a counter's label: one of `handshake.CAUSES` or `record.CAUSES`.
        detail: the text of the error.
    """

    exit_code: ClassVar[int] = EX_UNAVAILABLE

    def __init__(self, cause: str, detail: str) -> None:
        # `args` are the arguments of the constructor, so that the error can be pickled.
        super().__init__(cause, detail)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[1])
