from collections.abc import Sequence

from fastderp.tls.record import RecordLayer

class Logins:
    """Clients that log in to one relay in native code (PROTOCOL §3, §9.3).

    `address` is the relay's (`socket_address`), `server_key` its public key, `request` every
    client's HTTP upgrade, `infos` one ClientInfo frame per client, all of the same size. Without a
    `request` they make a fast start: each frame of `infos` then begins with the request, and both
    are sent at once. With `hello`, a result of `client_hello`, they use TLS 1.3, and `hello_key` is
    the private key to it; they verify no certificate. They connect from `sources` in rotation, with
    up to `at_once` logins at a time and up to `rate` per second if given. `limit_s` is the maximum
    time of a login. With `busy_wait` the thread keeps its core busy, so that the relay does not pay
    for waking it.
    Raises ValueError for contradictory arguments, OSError when the kernel has no more descriptors.
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
        """Continue for up to `seconds`; return whether all are logged in or `stop` was called.

        Raises OSError, TimeoutError or ProtocolError for the first client that cannot log in.
        """
    def stop(self) -> None:
        """End the running and every later `run` within 0.1 s; may be called from any thread."""
    @property
    def n_inside(self) -> int:
        """The number of logged-in clients; readable while it runs."""
    @property
    def seconds(self) -> float:
        """The time from the first connection to the last login so far, in seconds."""
    def members(self) -> list[tuple[int, int, bytes, bytes, RecordLayer | None]]:
        """Return each logged-in client once: number, descriptor, ServerInfo, plaintext, keys."""
