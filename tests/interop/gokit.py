"""The Go side of the interop tests: builds the programs and drives derpkit.

derpkit is a DERP client built on tailscale's library; GoClient exchanges JSON lines with it.
Everything here runs on the test's asyncio loop.
"""

import asyncio
import json
import os
import subprocess
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MODULE = Path(__file__).parent / "go"
# derper 1.104.7 (PROTOCOL §22) has its own module: it needs a newer Go than the programs
# around 1.98.9.
NEWEST_MODULE = Path(__file__).parent / "go_newest"
NEWEST_GO = {"GOTOOLCHAIN": "go1.27.4", "GOFLAGS": "-mod=mod"}
# Release 1.32.0 (PROTOCOL §18), whose API the package follows.
OLDEST_MODULE = Path(__file__).parent / "go_oldest"
# This tag compiles derphttp's WebSocket dialler in; an environment variable selects it.
BUILD_TAGS = "ts_debug_websockets"
# tailscaled with the features of a node in user space, and `tailscale` inside: half the build
# time, and few other modules.
NODE_TAGS = (
    "ts_include_cli",
    *(
        f"ts_omit_{feature}"
        for feature in [
            "ace",
            "acme",
            "advertiseexitnode",
            "advertiseroutes",
            "appconnectors",
            "aws",
            "bakedroots",
            "bird",
            "c2n",
            "cachenetmap",
            "captiveportal",
            "capture",
            "cliconndiag",
            "clientmetrics",
            "clientupdate",
            "cloud",
            "colorable",
            "completion",
            "completion_scripts",
            "conn25",
            "dbus",
            "debugeventbus",
            "debugportmapper",
            "desktop_sessions",
            "dns",
            "doctor",
            "drive",
            "gro",
            "health",
            "hujsonconf",
            "identityfederation",
            "iptables",
            "kube",
            "linkspeed",
            "linuxdnsfight",
            "listenrawdisco",
            "logtail",
            "netlog",
            "networkmanager",
            "oauthkey",
            "osrouter",
            "peerapiclient",
            "peerapiserver",
            "portlist",
            "portmapper",
            "posture",
            "qrcodes",
            "relayserver",
            "resolved",
            "sdnotify",
            "serve",
            "ssh",
            "synology",
            "syspolicy",
            "systray",
            "taildrop",
            "tap",
            "tpm",
            "tundevstats",
            "useexitnode",
            "usermetrics",
            "useroutes",
            "wakeonlan",
            "webbrowser",
            "webclient",
        ]
    ),
)
EVENT_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 5.0
# A line has at most a 4 KiB packet in hexadecimal.
LINE_LIMIT_BYTES = 64 * 1024

Event = dict[str, Any]


class GoError(Exception):
    """A Go program could not be built, or a Go client reported a failure."""


@dataclass(frozen=True)
class GoPrograms:
    """Paths of the programs built from the module in this folder."""

    derpkit: Path
    derper: Path
    derpprobe: Path


@dataclass(frozen=True)
class OldestPrograms:
    """Paths of the programs of release 1.32.0; oldkit has some of derpkit's commands."""

    oldkit: Path
    derper: Path


@dataclass(frozen=True)
class TailnetPrograms:
    """Paths of a tailnet's programs: our control server, and tailscale's daemon and command."""

    control: Path
    tailscaled: Path


def build(into: Path) -> GoPrograms:
    """Build derpkit, derper and derpprobe from one module; see `build_program` for errors."""
    return GoPrograms(
        derpkit=build_program(into / "derpkit", "."),
        derper=build_program(into / "derper", "tailscale.com/cmd/derper"),
        derpprobe=build_program(into / "derpprobe", "tailscale.com/cmd/derpprobe"),
    )


def build_newest_derper(into: Path) -> Path:
    """Build derper 1.104.7; raise GoError as `build_program` does."""
    return build_program(
        into / "derper-newest", "tailscale.com/cmd/derper", module=NEWEST_MODULE, **NEWEST_GO
    )


def build_oldest(into: Path) -> OldestPrograms:
    """Build the programs of 1.32.0; raise GoError as `build_program` does."""
    return OldestPrograms(
        oldkit=build_program(into / "oldkit", ".", module=OLDEST_MODULE),
        derper=build_program(
            into / "derper-oldest", "tailscale.com/cmd/derper", module=OLDEST_MODULE
        ),
    )


def build_setecd(into: Path) -> Path:
    """Build tailscale's setec server from the same module; errors as in `build_program`."""
    return build_program(into / "setecd", "./setecd")


def build_tailnet(into: Path) -> TailnetPrograms:
    """Build a tailnet's programs from the same module; raise GoError as `build_program` does."""
    return TailnetPrograms(
        control=build_program(into / "tailnet", "./tailnet"),
        tailscaled=build_program(into / "tailscaled", "tailscale.com/cmd/tailscaled", NODE_TAGS),
    )


def build_program(
    program: Path,
    package: str,
    tags: Sequence[str] = (),
    module: Path = MODULE,
    **environment: str,
) -> Path:
    """Build one program of a module, with additions to the environment, and return its path.

    Raises GoError with the compiler's output when Go or its module cache cannot build it.
    """
    command = [
        "go",
        "build",
        "-trimpath",
        "-tags",
        ",".join((BUILD_TAGS, *tags)),
        "-o",
        str(program),
        package,
    ]
    try:
        subprocess.run(
            command,
            cwd=module,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
    except FileNotFoundError:
        raise GoError("Go is not installed") from None
    except subprocess.CalledProcessError as error:
        raise GoError(f"go build {package}: {error.stderr.strip()}") from None
    return program


def plain_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without proxies, which dials of a region would use."""
    kept = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    return kept | extra


class GoClient:
    """One derpkit process.

    `await GoClient.start(...)` returns after the relay's ServerInfo, so the relay
    routes packets to it. Events are queued by name.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.ready: Event = {}
        self._process = process
        self._events: defaultdict[str, deque[Event]] = defaultdict(deque)
        self._ended = ""  # why no further event can come
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read_events())

    @classmethod
    async def start(
        cls, derpkit: Path, *flags: str, environment: dict[str, str] | None = None
    ) -> Self:
        """Run derpkit with `flags` and wait for its login; raises GoError when it fails."""
        process = await asyncio.create_subprocess_exec(
            derpkit,
            *flags,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=plain_environment() if environment is None else environment,
            limit=LINE_LIMIT_BYTES,
        )
        client = cls(process)
        try:
            client.ready = await client.next("ready")
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def key(self) -> str:
        """The client's public key, `nodekey:` and 64 hexadecimal digits."""
        return str(self.ready["key"])

    async def next(self, name: str, timeout_s: float = EVENT_TIMEOUT_S) -> Event:
        """Return the next event called `name`; wait for it if necessary.

        Raises GoError after timeout_s, and at once when the process has ended or a command
        has failed.
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: self._events[name] or self._events["error"] or self._ended
                )
        except TimeoutError:
            raise GoError(f"no {name!r} event within {timeout_s} s") from None
        if self._events[name]:
            return self._events[name].popleft()
        if self._events["error"]:
            error = self._events["error"].popleft()
            raise GoError(f"{error['do']}: {error['error']}")
        raise GoError(f"no {name!r} event: {self._ended}")

    def pending(self, name: str) -> int:
        """Return the number of queued events called `name`."""
        return len(self._events[name])

    def begin(self, command: str, **fields: Any) -> None:
        """Start a command without waiting for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **fields}).encode() + b"\n")

    async def finish(self, timeout_s: float = EVENT_TIMEOUT_S) -> Event:
        """Return the `done` event of the oldest unfinished command."""
        return await self.next("done", timeout_s)

    async def do(self, command: str, timeout_s: float = EVENT_TIMEOUT_S, /, **fields: Any) -> Event:
        """Run one command to its end and return its `done` event; raises GoError when it fails."""
        self.begin(command, **fields)
        return await self.finish(timeout_s)

    async def close(self) -> None:
        """End the process, first by closing its input, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        last_words = "derpkit exited"
        async for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] in ("failed", "broken"):
                last_words = event["error"]
            async with self._changed:
                self._events[event["event"]].append(event)
                self._changed.notify_all()
        async with self._changed:
            self._ended = last_words
            self._changed.notify_all()
