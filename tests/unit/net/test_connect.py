"""A TCP connection to a name: each address has its chance, a silent one delays the next briefly."""

import asyncio
import socket
from collections.abc import Callable, Coroutine

import pytest
import uvloop

from fastderp.net import connect
from fastderp.net.connect import connect_tcp
from fastderp.net.lookup import Address
from tests.kit.descriptors import closed_to, n_descriptors
from tests.kit.silent import silent_server

EVERY_LOOP = pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
Run = Callable[[Coroutine[None, None, None]], None]


def use_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let every name have these addresses."""

    async def look_up(*_: object) -> list[Address]:
        return [(socket.AF_INET, address) for address in addresses]

    monkeypatch.setattr(connect, "look_up", look_up)


@EVERY_LOOP
def test_a_silent_or_refusing_address_of_a_name_does_not_keep_from_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with silent_server() as silent, socket.create_server(("127.0.0.1", 0)) as listener:
            use_addresses(monkeypatch, ("127.0.0.1", 1), silent, listener.getsockname())
            monkeypatch.setattr(connect, "NEXT_ADDRESS_S", 0.01)
            near = await asyncio.wait_for(connect_tcp("relay.test", 0), 10)
            far, _ = listener.accept()
            with near, far:
                assert near.getpeername() == listener.getsockname()
                assert far.getpeername() == near.getsockname()

    run(test())


@EVERY_LOOP
def test_a_name_whose_addresses_all_refuse_is_the_error_of_the_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        use_addresses(monkeypatch, ("127.0.0.1", 1), ("127.0.0.1", 2))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.wait_for(connect_tcp("relay.test", 0), 10)

    run(test())


@EVERY_LOOP
def test_a_cancelled_attempt_at_several_addresses_leaves_no_socket(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with silent_server() as first, silent_server() as second:
            use_addresses(monkeypatch, first, second)
            monkeypatch.setattr(connect, "NEXT_ADDRESS_S", 0.0)
            n_before = n_descriptors()
            connecting = asyncio.create_task(connect_tcp("relay.test", 0))
            while n_descriptors() < n_before + 2:
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await closed_to(n_before)

    run(test())
