from collections.abc import Sequence

from fastderp.tls.record import RecordLayer

class Logins:
    """Clients that log in to one relay, natively (PROTOCOL §3, §9.3).

    `address` is the relay's (`socket_address`), `server_key` its public key, `request` the HTTP upgrade that every client
    sends, `infos` one ClientInfo frame per client, all of the same size. Without a `request` they make a fast start: it is in front of
    each ClientInfo, and both are sent at once. With `hello`, what `client_hello` returned, they
    speak TLS 1.3, and `hello_key` is the private key to it; they look at no certificate. They connect from `sources` in
    turn, at most `at_once` at a time and, with `rate`, no more than that many per second. `limit_s` is the time one login may take. With
    `busy_wait` the thread keeps its core busy, so that the relay does not pay for waking it.
    Raises ValueError for arguments that do not fit, OSError when the kernel has no more descriptors.
    """

    def __init__(
        self,
        address: bytes,
        server_key: bytes,
        request: bytes | None,
        infos: Sequence[bytes],
        *,
        hello: bytes | None = None,
        hello_key: bytes | None = None,
        sources: Sequence[bytes] = (),
        at_once: int = 64,
        rate: float = 0.0,
        limit_s: float = 30.0,
        busy_wait: bool = False,
    ) -> None: ...
    def run(self, seconds: float) -> bool:
        """Go on for at most so long; return whether everybody is in, or `stop` was called.

        Raises OSError, TimeoutError or ProtocolError for the first client that cannot log in.
        """
    def stop(self) -> None:
        """End the running and every later `run` within 0.1 s; may be called from any thread."""
    @property
    def n_inside(self) -> int:
        """How many are logged in; readable while it runs."""
    @property
    def seconds(self) -> float:
        """How long it took from the first connection to the last login so far."""
    def members(self) -> list[tuple[int, int, bytes, bytes, RecordLayer | None]]:
        """Give away who is logged in, each once: (number, descriptor, ServerInfo frame, plaintext behind it, TLS keys)."""
