from collections.abc import Sequence

def client_hello(server_name: str, suites: Sequence[str], public_key: bytes) -> bytes:
    """Return the ClientHello of a load's clients, without a record header.

    `suites` are TLS 1.3 suites by name; `public_key` is an X25519 key. An address is never sent as
    a server name. Raises ValueError for an unknown suite.
    """
