"""Logins whose ClientInfo a test chooses."""

import asyncio

from fastderp.errors import ConnectionClosed
from fastderp.net.stream import Stream
from fastderp.net.upgrade import upgrade
from fastderp.wire import login
from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import ClientInfo
from fastderp.wire.protocol import MAX_CLIENT_FRAME_SIZE, FrameType, frame

from .relays import Relay

PATIENCE_S = 30.0
CLIENT_INFO = ClientInfo(can_ack_pings=True).to_json()


async def lets_in(relay: Relay, key: NodePrivate, client_info: bytes = CLIENT_INFO) -> bool:
    """Log in and return whether the relay answers with ServerInfo."""
    stream = Stream(*await asyncio.open_connection("127.0.0.1", relay.port))
    try:
        await upgrade(stream, host="derp.example", path="/derp")
        server = login.parse_server_key(*await stream.read_frame(MAX_CLIENT_FRAME_SIZE, PATIENCE_S))
        sealed = key.box(server).seal(client_info)
        stream.write(frame(FrameType.CLIENT_INFO, key.public_key.raw, sealed))
        frame_type, _ = await stream.read_frame(MAX_CLIENT_FRAME_SIZE, PATIENCE_S)
        return frame_type == FrameType.SERVER_INFO
    except ConnectionClosed:
        return False
    finally:
        stream.abort()
