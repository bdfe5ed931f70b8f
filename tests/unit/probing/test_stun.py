"""The STUN step of a probe: lost, late and foreign answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fastderp.errors import ProtocolError
from fastderp.net.lookup import Address
from fastderp.probing.step import Outcome
from fastderp.probing.stun import stun_finding
from tests.kit.stun_reference import binding_response, transaction_id

Answer = Callable[[int, bytes], list[bytes]]
SEEN = bytes((192, 0, 2, 7))


@contextmanager
def answering(answer: Answer) -> Iterator[Address]:
    """Yield the address of a server: `answer` gets the number and the id of each request."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            number = 0
            while True:
                datagram, client = server.recvfrom(1500)
                if not datagram:  # from the test's end
                    return
                asked = transaction_id(datagram)
                assert asked is not None
                for reply in answer(number, asked):
                    server.sendto(reply, client)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield socket.AF_INET, server.getsockname()
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", server.getsockname())
            thread.join()


async def test_the_address_that_the_relay_sees_is_found() -> None:
    with answering(lambda _, asked: [binding_response(asked, SEEN, 4242)]) as address:
        found = await stun_finding(address, 10.0)
    assert found.outcome is Outcome.OK
    assert found.text == f"127.0.0.1:{address[1][1]} sees us at 192.0.2.7:4242"
    assert (found.details["address"], found.details["port"]) == ("192.0.2.7", 4242)
    assert found.seconds is not None and found.seconds <= found.details["max_seconds"] + 1e-6


async def test_a_lost_answer_is_a_note() -> None:
    def lose_first(number: int, asked: bytes) -> list[bytes]:
        return [binding_response(asked, SEEN, 1)] if number else []

    with answering(lose_first) as address:
        found = await stun_finding(address, 3.0)
    assert found.outcome is Outcome.NOTE
    assert found.text.endswith("; 1 of 3 requests without an answer")


async def test_the_late_answer_to_an_earlier_request_does_not_count() -> None:
    ids: list[bytes] = []

    def repeat_first(_: int, asked: bytes) -> list[bytes]:
        ids.append(asked)
        return [binding_response(ids[0], SEEN, 1)]

    with answering(repeat_first) as address:
        found = await stun_finding(address, 3.0)
    assert found.details["answers"] == 1


async def test_no_answer_at_all_is_a_timeout() -> None:
    with answering(lambda _n, _asked: []) as address, pytest.raises(TimeoutError):
        await stun_finding(address, 0.3)


async def test_an_answer_of_another_protocol_is_named() -> None:
    with (
        answering(lambda _n, _asked: [b"hello"]) as address,
        pytest.raises(ProtocolError, match="the answer is not STUN's: not a STUN datagram"),
    ):
        await stun_finding(address, 10.0)
