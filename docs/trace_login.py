"""Follow one login through the code: `python docs/trace_login.py [--tls]`.

Starts a relay and a client in this process and prints, in the order of first entry, the relay's
modules that Python runs from accept to the hand-over, with the functions of each.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import FrameType

import fastderp
from fastderp import HTTPClient, NodePrivate, Server

ROOT = str(Path(fastderp.__file__).parent)
# Modules that both sides use, or that are not part of a login.
SHARED = ("wire/", "util/", "errors", "__init__")


class Trace:
    """Which functions of the relay ran, by module, in order."""

    def __init__(self) -> None:
        self.modules: dict[str, list[str]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        module = code.co_filename.removeprefix(ROOT + "/").removesuffix(".py")
        if module.startswith(SHARED):
            return
        functions = self.modules.setdefault(module, [])
        if code.co_qualname not in functions:
            functions.append(code.co_qualname)


async def serve(started: threading.Event, port: list[int], stop: list[object]) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    stop += [loop, done]
    async with Server(NodePrivate.generate(), workers=1) as server:
        port.append(server.listen("127.0.0.1", 0).port)
        trace = Trace()
        sys.setprofile(trace)
        started.set()
        await done.wait()
        sys.setprofile(None)
        for module, functions in trace.modules.items():
            print(module)
            for name in functions:
                print(f"    {name}")


async def log_in(port: int) -> None:
    async with HTTPClient(f"http://127.0.0.1:{port}/derp", NodePrivate.generate()) as client:
        await client.recv()


def main() -> None:
    started, port, stop = threading.Event(), [], []
    relay = threading.Thread(target=lambda: asyncio.run(serve(started, port, stop)))
    relay.start()
    started.wait()
    asyncio.run(log_in(port[0]))
    loop, done = stop
    loop.call_soon_threadsafe(done.set)
    relay.join()


if __name__ == "__main__":
    main()
