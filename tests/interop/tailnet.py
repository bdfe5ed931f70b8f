"""A tailnet on loopback: tailscale's test control server, and tailscaleds in user space.

Each node is a process that is killed by its id after the test. No node needs the internet or
a privilege.
"""

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastderp.wire.keys import NodePrivate

from .gokit import TailnetPrograms, plain_environment

START_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 30.0
# the settings of tailscale's integration tests, without direct paths and logs to the vendor
NODE_ENVIRONMENT = {
    "TS_ASSUME_NETWORK_UP_FOR_TEST": "1",
    "TS_DEBUG_ALWAYS_USE_DERP": "1",
    "TS_DISABLE_PORTMAPPER": "1",
    "TS_NO_LOGS_NO_SUPPORT": "1",
    "TS_PANIC_IF_HIT_MAIN_CONTROL": "1",
}


class CommandFailed(Exception):
    """`tailscale` ended with an error; the text is its output."""


class Node:
    """A tailscaled and its `tailscale` command. `socket` is known before it runs."""

    def __init__(
        self, program: Path, directory: Path, name: str, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.socket = directory / f"{name}.sock"
        self._program = program
        self._state = directory / f"{name}.state"
        self._log = directory / f"{name}.log"
        self._environment = plain_environment(**NODE_ENVIRONMENT, **environment)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start tailscaled and return when it accepts commands."""
        flags = [
            "--tun=userspace-networking",
            f"--state={self._state}",
            f"--socket={self.socket}",
            "--port=0",
        ]
        with self._log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                self._program, *flags, stdout=sink, stderr=sink, env=self._environment
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while self._process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(self.socket)
                    writer.close()
                    return
                await asyncio.sleep(0.02)
        raise CommandFailed(
            f"tailscaled exited with {self._process.returncode}:\n{self._log.read_text()}"
        )

    async def log_in(self, control_url: str) -> None:
        """Join the tailnet of the control server."""
        await self.tailscale(
            "up", f"--login-server={control_url}", f"--hostname={self.name}", "--timeout=20s"
        )

    async def kill(self) -> None:
        """Stop tailscaled if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @contextlib.asynccontextmanager
    async def running(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a `tailscale` command with pipes in the block, up to a time limit."""
        process = await asyncio.create_subprocess_exec(
            self._program,
            f"--socket={self.socket}",
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self._environment, "TS_BE_CLI": "1"},
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def tailscale(self, *command: str) -> str:
        """Run a `tailscale` command to its end and return its output. Raises CommandFailed."""
        async with self.running(*command) as process:
            said, complained = await process.communicate()
            if process.returncode:
                raise CommandFailed(
                    f"tailscale {' '.join(command)}: {(said + complained).decode().strip()}"
                )
        return said.decode()

    async def status(self) -> dict[str, Any]:
        """Return the output of `tailscale status --json`."""
        found: dict[str, Any] = json.loads(await self.tailscale("status", "--json"))
        return found

    async def address(self) -> str:
        """Return the node's IPv4 address in the tailnet."""
        return (await self.tailscale("ip", "-4")).strip()

    def private_key(self) -> NodePrivate:
        """Return the node's private key, which identifies it to DERP relays."""
        state = json.loads(self._state.read_text())
        [profile] = [value for name, value in state.items() if name.startswith("profile-")]
        return NodePrivate.from_text(
            json.loads(base64.b64decode(profile))["Config"]["PrivateNodeKey"]
        )


class Tailnet:
    """Nodes before their login, and their control server."""

    def __init__(self, control_url: str, nodes: Sequence[Node]) -> None:
        self.control_url = control_url
        self.nodes = nodes

    async def join(self, node: Node) -> None:
        """Start a node and log it in."""
        await node.start()
        await node.log_in(self.control_url)


@contextlib.asynccontextmanager
async def running_tailnet(
    programs: TailnetPrograms,
    directory: Path,
    region: Mapping[str, Any],
    *names: str,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Tailnet]:
    """Run a control server for the named nodes; its DERP map is one region in JSON form."""
    control = await asyncio.create_subprocess_exec(
        programs.control,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    nodes = [Node(programs.tailscaled, directory, name, environment or {}) for name in names]
    try:
        assert control.stdin is not None and control.stdout is not None
        control.stdin.write(
            json.dumps({"Regions": {str(region["RegionID"]): region}}).encode() + b"\n"
        )
        async with asyncio.timeout(START_TIMEOUT_S):
            url = (await control.stdout.readline()).decode().strip()
        yield Tailnet(url, nodes)
    finally:
        for node in nodes:
            await node.kill()
        if control.returncode is None:
            control.kill()
        await control.wait()
