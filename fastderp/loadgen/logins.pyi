from collections.abc import Sequence

from fastderp.tls.record import RecordLayer

class Logins:
    """Clients that log in to one relay, in native code (PROTOCOL §3, §9.3).

    `address` is the relay's (`socket_address`), `server_key` its public key, `request` the HTTP
    upgrade of every client, `infos` one ClientInfo frame per client, all of one size. Without
    `request` the clients make a fast start: each element of `infos` begins with the request, and
    both are sent at once. `hello`, the result of `client_hello`, makes them speak TLS 1.3 with its
    private key `hello_key`; they verify no certificate. They connect from `sources` in rotation, up
    to `at_once` at a time and, with `rate`, up to that many per second. A login may take `limit_s`
    seconds. With `busy_wait` the thread never sleeps, so that the relay spends no CPU time on
    waking it. Raises ValueError for arguments out of range, OSError when the process is out of
    descriptors.
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
        """Log clients in for up to `seconds`; return True when all are in or `stop` was called.

        Raises OSError, TimeoutError or ProtocolError for the first login that fails.
        """
    def stop(self) -> None:
        """End the current and every later `run` within 0.1 s. Any thread may call it."""
    @property
    def n_logged_in(self) -> int:
        """The number of logged-in clients, also during `run`."""
    @property
    def seconds(self) -> float:
        """The time from the first connection to the latest login."""
    def members(self) -> list[tuple[int, int, bytes, bytes, RecordLayer | None]]:
        """Return the logged-in clients and hand their connections over, each once.

        A client is (number, descriptor, ServerInfo frame, plaintext after it, TLS keys or None).
        """
