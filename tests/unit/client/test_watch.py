"""The watch loop: presence kept up to date over broken connections (PROTOCOL 7.3)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastderp.client import HTTPClient, run_watch_connection_loop
from fastderp.errors import ConnectionClosed, ConnectionLost, DerpError, DialError
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Message, PeerGone, PeerPresent
from fastderp.wire.protocol import (
    FrameType,
    PeerGoneReason,
    peer_gone_payload,
    peer_present_payload,
)
from tests.unit.fake_relay import FakeServer, RelayEnd, fake_server

ONE, TWO = NodePublic(b"\x11" * 32), NodePublic(b"\x22" * 32)
BROKEN = PeerGoneReason.MESH_LINK_BROKEN


class Watch:
    """A running loop and what it reported, in order."""

    def __init__(self, server: FakeServer, **options: Any) -> None:
        self.reports: asyncio.Queue[PeerPresent | PeerGone | DerpError] = asyncio.Queue()
        self.server = server
        self.client = HTTPClient(
            f"http://127.0.0.1:{server.port}/derp",
            NodePrivate.generate(),
            mesh_key=MeshKey.generate(),
        )
        self.loop = asyncio.create_task(
            run_watch_connection_loop(
                self.client,
                on_present=self.reports.put_nowait,
                on_gone=self.reports.put_nowait,
                on_error=self.reports.put_nowait,
                retry_s=0,
                **options,
            )
        )

    async def next_link(self) -> RelayEnd:
        """Return the relay's end of the next connection, which must begin by watching."""
        _, relay = await self.server.next_login()
        assert await relay.next_frame() == (FrameType.WATCH_CONNS, b"")
        return relay

    async def report(self) -> Any:
        async with asyncio.timeout(10):
            return await self.reports.get()


@asynccontextmanager
async def watching(**options: Any) -> AsyncIterator[Watch]:
    async with fake_server() as server:
        watch = Watch(server, **options)
        try:
            yield watch
        finally:
            await watch.client.close()
            await asyncio.wait_for(watch.loop, 10)


def present(relay: RelayEnd, key: NodePublic) -> None:
    relay.send(FrameType.PEER_PRESENT, peer_present_payload(key.raw, bytes(16), 0, 1))


def gone(relay: RelayEnd, key: NodePublic) -> None:
    relay.send(FrameType.PEER_GONE, peer_gone_payload(key.raw, PeerGoneReason.DISCONNECTED))


async def test_arrivals_and_departures_are_reported_in_order() -> None:
    async with watching() as watch:
        relay = await watch.next_link()
        present(relay, ONE)
        present(relay, TWO)
        relay.send(FrameType.KEEP_ALIVE)
        gone(relay, ONE)
        gone(relay, ONE)
        assert [(await watch.report()).key for _ in range(2)] == [ONE, TWO]
        assert await watch.report() == PeerGone(ONE, PeerGoneReason.DISCONNECTED)
        assert await watch.report() == PeerGone(ONE, PeerGoneReason.DISCONNECTED)


class Lines(logging.Handler):
    """The logged lines."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if (line := record.getMessage()).startswith("watching "):
            self.queue.put_nowait(line)


async def test_each_connection_logs_once_how_many_clients_the_relay_has_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fastderp.client")
    lines = Lines()
    logging.getLogger("fastderp.client").addHandler(lines)
    try:
        async with watching() as watch, asyncio.timeout(10):
            for keys in ([ONE, TWO, ONE], [TWO]):
                relay = await watch.next_link()
                for key in keys:
                    present(relay, key)
                line = await lines.queue.get()
                assert line.endswith(f": connected; {len(set(keys))} peers")
                relay.writer.transport.abort()
                assert "connected;" not in await lines.queue.get()
    finally:
        logging.getLogger("fastderp.client").removeHandler(lines)


async def test_a_broken_link_withdraws_its_keys_and_begins_again() -> None:
    async with watching() as watch:
        for _link in range(3):
            relay = await watch.next_link()
            present(relay, ONE)
            present(relay, TWO)
            gone(relay, TWO)
            assert (await watch.report()).key == ONE
            assert (await watch.report()).key == TWO
            assert await watch.report() == PeerGone(TWO, PeerGoneReason.DISCONNECTED)
            relay.writer.transport.abort()
            assert await watch.report() == PeerGone(ONE, BROKEN)
            assert isinstance(await watch.report(), ConnectionClosed)


async def test_failed_connects_are_reported_and_repeated() -> None:
    async with watching() as watch:
        watch.server.refuse = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        assert isinstance(await watch.report(), DialError)
        assert isinstance(await watch.report(), DialError)
        watch.server.refuse = b""
        present(await watch.next_link(), ONE)
        while not isinstance(report := await watch.report(), PeerPresent):
            assert isinstance(report, DialError)
        assert report.key == ONE


class Shared(HTTPClient):
    """A client with other users: the test sets the generation of each message."""

    script: Sequence[tuple[Message, int] | DerpError]

    async def watch_connection_changes(self) -> None:
        """Request nothing, because there is no relay."""

    async def recv_with_generation(self) -> tuple[Message, int]:
        if not self.script:
            await self.close()
            raise ConnectionClosed("the script is over")
        step, *self.script = self.script
        if isinstance(step, DerpError):
            raise step
        return step


async def test_a_connection_made_by_another_user_of_the_client_begins_again() -> None:
    client = Shared("http://relay.invalid", NodePrivate.generate(), lazy=True)
    client.script = [
        (ServerInfo(), 1),
        (PeerPresent(ONE), 1),
        (ServerInfo(), 2),
        (PeerPresent(TWO), 2),
    ]
    reports: list[object] = []
    await run_watch_connection_loop(client, on_present=reports.append, on_gone=reports.append)
    assert reports == [
        PeerPresent(ONE),
        PeerGone(ONE, BROKEN),
        PeerPresent(TWO),
        PeerGone(TWO, BROKEN),
    ]


@pytest.mark.parametrize("failing", ["on_present", "on_gone", "on_error"])
@pytest.mark.parametrize(
    "error", [DialError("not the connection's"), ValueError("a bug")], ids=["DerpError", "another"]
)
async def test_an_exception_of_a_callback_ends_the_loop_and_is_no_failure_of_the_connection(
    failing: str, error: Exception
) -> None:
    async with Shared("http://relay.invalid", NodePrivate.generate(), lazy=True) as client:
        client.script = [
            (ServerInfo(), 1),
            (PeerPresent(TWO), 1),
            (PeerPresent(ONE), 1),
            (PeerGone(ONE, BROKEN), 1),
            ConnectionLost("cut"),
        ]
        present: list[NodePublic] = []
        failures: list[DerpError] = []

        def note_present(message: PeerPresent) -> None:
            present.append(message.key)
            complain("on_present", message.key == ONE)

        def note_gone(message: PeerGone) -> None:
            present.remove(message.key)
            complain("on_gone", message.key == ONE)

        def note_error(failure: DerpError) -> None:
            failures.append(failure)
            complain("on_error", True)

        def complain(callback: str, here: bool) -> None:
            if callback == failing and here:
                raise error

        with pytest.raises(type(error)) as caught:
            await run_watch_connection_loop(
                client, on_present=note_present, on_gone=note_gone, on_error=note_error, retry_s=0
            )
        assert caught.value is error
        assert present == []
        assert len(failures) == (failing == "on_error")


async def test_a_relay_that_watches_itself_stops() -> None:
    async with fake_server() as server:
        watch = Watch(server, ignore_server_key=server.key.public_key)
        await watch.next_link()
        await asyncio.wait_for(watch.loop, 10)
        assert watch.reports.empty()
        await watch.client.close()


async def test_closing_the_client_ends_the_loop_and_withdraws_everything() -> None:
    async with watching() as watch:
        relay = await watch.next_link()
        present(relay, ONE)
        assert (await watch.report()).key == ONE
        await watch.client.close()
        assert await watch.report() == PeerGone(ONE, BROKEN)
        await asyncio.wait_for(watch.loop, 10)
        assert watch.reports.empty()


async def test_closing_the_client_during_a_pause_ends_the_loop_at_once() -> None:
    async with fake_server() as server:
        server.refuse = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        client, failed = server.client(), asyncio.Event()
        loop = asyncio.create_task(
            run_watch_connection_loop(
                client,
                on_present=lambda _: None,
                on_gone=lambda _: None,
                on_error=lambda _: failed.set(),
                retry_s=3600,
            )
        )
        await failed.wait()
        await asyncio.sleep(0)
        await client.close()
        await asyncio.wait_for(loop, 10)


async def test_cancelling_the_loop_withdraws_everything() -> None:
    async with fake_server() as server:
        watch = Watch(server)
        relay = await watch.next_link()
        present(relay, ONE)
        assert (await watch.report()).key == ONE
        watch.loop.cancel()
        assert await watch.report() == PeerGone(ONE, BROKEN)
        await watch.client.close()
