"""Every mutation of a ClientHello is read, awaited or refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastderp.tls.context import ClientContext, DeferredContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import CAUSES, Handshake
from tests.kit.certificates import self_signed

CONTEXT = DeferredContext()
RELAY = self_signed("relay.test")
CHOSEN = ServerContext([RELAY.der], RELAY.key_der)


def client_hello(name: str) -> bytes:
    handshake = Handshake(ClientContext(verify=False), name)
    handshake.step()
    return handshake.take_output()


HELLO = client_hello("relay.test")
SNI = HELLO.index(b"relay.test")


def heard(wire: bytes) -> None:
    """Do the handshake as far as the input reaches, with any certificate."""
    relay = Handshake(CONTEXT)
    try:
        relay.feed(wire)
        relay.step()
        if relay.hello is not None:
            assert relay.hello.server_name is None or len(relay.hello.server_name) <= 256
            relay.choose(CHOSEN)
            relay.step()
    except TlsError as error:
        assert error.cause in CAUSES


@given(
    st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_any_bytes_of_a_hello_may_differ(changes: list[tuple[int, int]]) -> None:
    wire = bytearray(HELLO)
    for position, value in changes:
        wire[position] = value
    heard(bytes(wire))


@given(st.integers(-9, 12), st.integers(0, 255))
def test_the_lengths_around_the_name_may_be_wrong(offset: int, value: int) -> None:
    wire = bytearray(HELLO)
    wire[SNI + offset] = value
    heard(bytes(wire))


@given(st.integers(0, len(HELLO)))
def test_a_hello_may_end_anywhere(end: int) -> None:
    heard(HELLO[:end])


@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=60))
def test_every_server_name_is_read_unchanged(name: str) -> None:
    relay = Handshake(CONTEXT)
    relay.feed(client_hello(f"{name}.test"))
    relay.step()
    assert relay.hello is not None
    assert relay.hello.server_name == f"{name}.test"
