"""Use the installed package from outside: a relay as its users start it, and two clients talking through it."""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import fastderp
from fastderp.client import HTTPClient
from fastderp.wire.keys import NodePrivate
from fastderp.wire.protocol import ReceivedPacket, ServerInfo

N_PACKETS = 200


async def receive_packet(client: HTTPClient) -> ReceivedPacket:
    while True:
        message = await client.recv()
        if isinstance(message, ReceivedPacket):
            return message


async def exchange(url: str) -> None:
    ann, bob = (HTTPClient(url, NodePrivate.generate()) for _ in range(2))
    async with ann, bob, asyncio.timeout(20):
        for client in (ann, bob):
            assert isinstance(await client.recv(), ServerInfo)  # logged in: packets will find it
        for sender, receiver in ((ann, bob), (bob, ann)):
            for number in range(N_PACKETS):
                await sender.send(receiver.public_key, number.to_bytes(4) * number)
                packet = await receive_packet(receiver)
                assert (packet.source, packet.data) == (
                    sender.public_key,
                    number.to_bytes(4) * number,
                )


def main() -> int:
    here = Path(fastderp.__file__)
    assert Path(sys.prefix) in here.parents, f"{here} is not the installed package"
    command = shutil.which("fastderp-relay", path=Path(sys.prefix) / "bin")
    assert command, "fastderp-relay is not installed"
    with tempfile.TemporaryDirectory() as directory:
        relay = subprocess.Popen(
            [command, "-a", "127.0.0.1:0", "-stun-port", "0", "-c", f"{directory}/relay.key"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert relay.stderr is not None
            line = relay.stderr.readline()
            served = re.search(r"serves http on (\S+);", line)
            assert served, f"unexpected first line: {line!r}"
            asyncio.run(exchange(f"http://{served[1]}/derp"))
        finally:
            relay.send_signal(signal.SIGTERM)
            code = relay.wait(10)
    assert code == 0, f"fastderp-relay ended with {code}"
    print(f"{2 * N_PACKETS} packets through {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
