"""Sends an endless page in chunks; a slow client misses some. Loop thread only."""

from __future__ import annotations

import asyncio

from fastderp.server.accept.http_session import Page
from fastderp.server.net.stream import Stream
from fastderp.server.observe.supervisor import supervisor
from fastderp.tls.channel import Channel

# Limit of a page in seconds: an unattended browser would keep it open for days.
PAGE_S = 300.0


async def send_page(page: Page, stream: Stream, channel: Channel, ip: str) -> None:
    """Send the chunks of a page; a slow client misses some.

    Args:
        page: the page, whose head has been sent.
        stream, channel: of the client's connection.
        ip: the client's address, for the log.
    """
    try:
        async with asyncio.timeout(PAGE_S):
            async for chunk in page.chunks:
                if stream.flushed:
                    stream.send(channel.seal(chunk))
    except TimeoutError:
        pass
    except Exception as error:
        supervisor.note("page", error, f"the page for {ip} ends")
