"""fastderp's side of a two-way run of checked packets with a Go client.

Both sides draw every packet of either from a seed and the sender's key, as exchange.go does, so
sizes, contents and order are checked without overhead on the wire.
"""

import asyncio
import hashlib
import struct
import time
from dataclasses import dataclass
from typing import Protocol

from fastderp.wire.messages import Message, ReceivedPacket
from fastderp.wire.protocol import MAX_PACKET_SIZE, NodePublic

BLOCK_SIZE = 2 * MAX_PACKET_SIZE
STALL_TIMEOUT_S = 60.0
# Three packets of four have at most this size, as in the traffic of a VPN.
COMMON_SIZE = 1500


class PacketClient(Protocol):
    """The methods of a client that an exchange calls."""

    async def send(self, destination: NodePublic, data: bytes) -> None:
        """Send one packet."""

    async def recv(self) -> Message:
        """Return the next message."""


class Plan:
    """All packets of one side, in order."""

    def __init__(self, seed: int, sender: NodePublic, packets: int, max_size: int) -> None:
        """Derive them from SHAKE128(seed ‖ sender): a block, and each packet's slice of it."""
        stream = hashlib.shake_128(seed.to_bytes(8, "little") + sender.raw).digest(
            BLOCK_SIZE + 8 * packets
        )
        words = struct.unpack_from(f"<{2 * packets}I", stream, BLOCK_SIZE)
        self._block = stream[:BLOCK_SIZE]
        self._sizes = [_size(word, max_size) for word in words[0::2]]
        self._offsets = [word % MAX_PACKET_SIZE for word in words[1::2]]
        if packets >= 2:
            self._sizes[:2] = 0, max_size

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> bytes:
        offset = self._offsets[i]
        return self._block[offset : offset + self._sizes[i]]


@dataclass(frozen=True, slots=True)
class Terms:
    """The parameters of a run, the same on both sides; derpkit reads them as a dictionary."""

    packets: int  # each way
    max_size: int  # bytes
    window: int  # maximum of packets in flight in one direction
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """The report of one side of a run, with derpkit's names."""

    packets: int
    bytes_sent: int
    bytes_arrived: int
    seconds: float


def _size(word: int, max_size: int) -> int:
    limit = max_size if word % 4 == 0 else min(max_size, COMMON_SIZE)
    return (word >> 2) % (limit + 1)


async def exchange(
    client: PacketClient, own_key: NodePublic, peer: NodePublic, terms: Terms
) -> Result:
    """Send all our packets, check all of the peer's and return the totals.

    Packet i is sent once the peer's packet i − window/2 has arrived. Raises AssertionError for
    a packet that is not the next one.
    """
    ours = Plan(terms.seed, own_key, terms.packets, terms.max_size)
    theirs = Plan(terms.seed, peer, terms.packets, terms.max_size)
    started_s = time.monotonic()
    n_sent = bytes_sent = bytes_arrived = 0
    for n_arrived in range(terms.packets + 1):
        while n_sent < min(n_arrived + terms.window // 2, terms.packets):
            await client.send(peer, ours[n_sent])
            bytes_sent += len(ours[n_sent])
            n_sent += 1
        if n_arrived < terms.packets:
            packet = await next_packet(client, peer)
            assert packet == theirs[n_arrived], (
                f"packet {n_arrived}: {len(packet)} bytes, not what was sent"
            )
            bytes_arrived += len(packet)
    return Result(n_sent, bytes_sent, bytes_arrived, time.monotonic() - started_s)


async def next_packet(client: PacketClient, peer: NodePublic) -> bytes:
    """Return the data of the next packet from the peer."""
    async with asyncio.timeout(STALL_TIMEOUT_S):
        while True:
            message = await client.recv()
            if isinstance(message, ReceivedPacket) and message.source == peer:
                return message.data
