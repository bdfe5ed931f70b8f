"""Names are looked up beside each other, however long one takes."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fastderp.net import lookup
from fastderp.net.lookup import look_up
from fastderp.util.shortage import shortage_of

ANY = socket.AF_UNSPEC


class Nameserver:
    """Answers with one address, after `go_on` for silent names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def getaddrinfo(self, wire: bytes, port: int, *_: Any, flags: int = 0) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        host = wire.decode()
        self.asked.append(host)
        if host.startswith("silent"):
            assert self.go_on.wait(20)
        if host == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def nameserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nameserver]:
    server = Nameserver()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.go_on.set()


async def test_names_without_an_answer_do_not_delay_another(nameserver: Nameserver) -> None:
    waiting = [asyncio.create_task(look_up(f"silent{n}.test", 1, ANY)) for n in range(40)]
    [found] = await asyncio.wait_for(look_up("good.test", 443, ANY), 10)
    assert found == (socket.AF_INET, ("192.0.2.1", 443))
    nameserver.go_on.set()
    await asyncio.gather(*waiting)


async def test_attempts_for_one_name_share_a_lookup(nameserver: Nameserver) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look_up("silent.test", 1, ANY), 0.01)
    last = asyncio.create_task(look_up("silent.test", 1, ANY))
    await asyncio.sleep(0)
    nameserver.go_on.set()
    await last
    assert nameserver.asked == ["silent.test"]
    await look_up("silent.test", 1, ANY)
    assert nameserver.asked == ["silent.test"] * 2


async def test_the_threads_are_bounded(
    nameserver: Nameserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "THREADS_MAX", 3)
    waiting = [asyncio.create_task(look_up(f"silent{n}.test", 1, ANY)) for n in range(10)]
    while len(nameserver.asked) < 3:
        await asyncio.sleep(0)
    # Those of earlier tests may not have ended yet.
    while [thread.name for thread in threading.enumerate()].count("lookup") > 3:
        await asyncio.sleep(0.001)
    assert len(nameserver.asked) == 3
    nameserver.go_on.set()
    assert all(await asyncio.gather(*waiting))
    assert len(nameserver.asked) == 10


async def test_an_unknown_name_is_an_error(nameserver: Nameserver) -> None:
    with pytest.raises(socket.gaierror, match="not known"):
        await look_up("unknown.test", 1, ANY)


async def test_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)
    for address in ("192.0.2.1", "2001:db8::1"):
        [(_, (host, *_))] = await look_up(address, 1, ANY)
        assert host == address


async def test_a_name_is_looked_up_in_ascii(nameserver: Nameserver) -> None:
    await look_up("bücher.test", 1, ANY)
    assert nameserver.asked == ["xn--bcher-kva.test"]


async def test_a_malformed_name_is_a_value_error(nameserver: Nameserver) -> None:
    with pytest.raises(ValueError, match="a..test is no host name"):
        await look_up("a..test", 1, ANY)


def test_loops_of_several_threads_look_names_up_at_once(nameserver: Nameserver) -> None:
    async def several(number: int) -> None:
        await asyncio.gather(*(look_up(f"{number}-{n}.test", 1, ANY) for n in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(several(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(nameserver.asked) == 200


async def test_a_lack_of_threads_is_a_shortage(
    monkeypatch: pytest.MonkeyPatch, nameserver: Nameserver
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="no thread") as caught:
        await look_up("good.test", 1, ANY)
    assert caught.value.errno == errno.EAGAIN and shortage_of(caught.value)


def test_the_lookups_of_a_closed_loop_are_forgotten(nameserver: Nameserver) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look_up("silent.test", 1, ANY), 0.01)

    asyncio.run(give_up())
    assert lookup._running
    asyncio.run(look_up("good.test", 1, ANY))
    assert not lookup._running
