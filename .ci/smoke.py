"""Use the installed package from outside: relays as their users start them, and two clients talking through each.

    python smoke.py [SOURCE]

SOURCE is where the crypto library has to come from: `bundled` or `system`.
"""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import fastderp
from fastderp import ReceivedPacket, ServerInfo
from fastderp.client import HTTPClient
from fastderp.tls import openssl
from fastderp.wire.keys import NodePrivate

N_PACKETS = 200


async def receive_packet(client: HTTPClient) -> ReceivedPacket:
    while True:
        message = await client.recv()
        if isinstance(message, ReceivedPacket):
            return message


async def exchange(url: str, cert_name: str) -> None:
    ann, bob = (HTTPClient(url, NodePrivate.generate(), cert_name=cert_name) for _ in range(2))
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


def relay_packets(command: str, directory: str, *, tls: bool) -> None:
    """Start a relay, have the clients talk through it, and end it."""
    flags = ["-a", "127.0.0.1:0", "-stun-port", "0", "-c", f"{directory}/relay.key"]
    if tls:
        flags += ["-certmode", "manual", "-certdir", directory, "-hostname", "127.0.0.1"]
        flags += ["-http-port", "-1"]
    relay = subprocess.Popen([command, *flags], stderr=subprocess.PIPE, text=True)
    try:
        assert relay.stderr is not None
        line = relay.stderr.readline()
        served = re.search(r"serves (https?) on (\S+);", line)
        assert served and served[1] == ("https" if tls else "http"), f"first line: {line!r}"
        cert_name = ""
        while tls and not cert_name:  # the relay prints its pin for the DERP map
            found = re.search(r"sha256-raw:[0-9a-f]{64}", relay.stderr.readline())
            cert_name = found[0] if found else ""
        asyncio.run(exchange(f"{served[1]}://{served[2]}/derp", cert_name))
    finally:
        relay.send_signal(signal.SIGTERM)
        code = relay.wait(10)
    assert code == 0, f"fastderp-relay ended with {code}"
    print(f"{2 * N_PACKETS} packets through {line.strip()}")


def main() -> int:
    here = Path(fastderp.__file__)
    assert Path(sys.prefix) in here.parents, f"{here} is not the installed package"
    command = shutil.which("fastderp-relay", path=Path(sys.prefix) / "bin")
    assert command, "fastderp-relay is not installed"
    if sys.argv[1:]:
        assert sys.argv[1] == openssl.SOURCE, f"{openssl.VERSION} is {openssl.SOURCE}"
    with tempfile.TemporaryDirectory() as directory:
        for tls in (False, True):
            relay_packets(command, directory, tls=tls)
    return 0


if __name__ == "__main__":
    sys.exit(main())
