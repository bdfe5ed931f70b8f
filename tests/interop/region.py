"""A region of meshed relays on loopback, and its DERP map."""

import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.certificates import self_signed
from tests.kit.ports import free_ports

from .gokit import plain_environment
from .relays import Relay

REGION_ID = 900
REGION_CODE = "test"
# derpprobe requires a name, which it resolves: all nodes are one host with different ports.
HOSTNAME = "localhost"
CERTIFICATE_DAYS = (-1, 30)


@dataclass(frozen=True)
class Region:
    """Running relays, their map and their certificate."""

    relays: list[Relay]
    mesh_psk: Path
    root: Path
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a Go program, which then trusts the region's certificate."""
        return plain_environment(SSL_CERT_FILE=str(self.root))

    def node(self, i: int) -> dict[str, object]:
        """Return relay i as a DERPNode."""
        return {
            "Name": f"{REGION_ID}{'abcdefgh'[i]}",
            "RegionID": REGION_ID,
            "HostName": HOSTNAME,
            "IPv4": "127.0.0.1",
            "DERPPort": self.relays[i].port,
            "STUNPort": self.relays[i].stun_port,
        }

    def of_nodes(self, *indices: int) -> str:
        """Return a DERPRegion of these nodes, in this order, as JSON for derpkit."""
        nodes = [self.node(i) for i in indices]
        return json.dumps(
            {"RegionID": REGION_ID, "RegionCode": REGION_CODE, "RegionName": "Test", "Nodes": nodes}
        )

    def write_derp_map(self) -> str:
        """Write the DERP map to a file and return its URL."""
        everything = json.loads(self.of_nodes(*range(len(self.relays))))
        path = self.directory / "derpmap.json"
        path.write_text(json.dumps({"Regions": {str(REGION_ID): everything}}))
        return path.as_uri()


@contextlib.asynccontextmanager
async def running_region(
    programs: Sequence[Path], directory: Path, *flags: str
) -> AsyncIterator[Region]:
    """Run one relay of each program in the block, each meshed with all, itself included.

    A region of one relay has no mesh key.
    """
    root = _write_certificate(directory)
    psk = directory / "mesh.key"
    psk.write_text(secrets.token_hex(32))
    ports = free_ports(len(programs))
    if len(programs) > 1:
        members = ",".join(f"{HOSTNAME}:{port}/127.0.0.1" for port in ports)
        flags = (f"-mesh-psk-file={psk}", f"-mesh-with={members}", *flags)
    relays: list[Relay] = []
    for program, port, stun_port in zip(
        programs, ports, free_ports(len(programs), socket.SOCK_DGRAM), strict=True
    ):
        own = directory / f"relay-{len(relays)}"
        own.mkdir()
        relays.append(
            Relay(
                program,
                own,
                *flags,
                tls=True,
                hostname=HOSTNAME,
                certdir=directory,
                port=port,
                stun_port=stun_port,
                environment={"SSL_CERT_FILE": str(root)},
            )
        )
    try:
        for relay in relays:
            await relay.start()
        yield Region(relays, psk, root, directory)
    finally:
        for relay in relays:
            await relay.stop()


def _write_certificate(directory: Path) -> Path:
    """Write one self-signed certificate for all nodes, and its key, for -certdir."""
    made = self_signed(HOSTNAME, days=CERTIFICATE_DAYS)
    root = directory / f"{HOSTNAME}.crt"
    root.write_text(ssl.DER_cert_to_PEM_cert(made.der))
    root.with_suffix(".key").write_bytes(made.key_pem)
    return root
