"""`python -m fastderp`: prints what is installed, and the first commands to try."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastderp.cli.entry import accept_gil
from fastderp.cli.output import show
from fastderp.errors import EX_UNAVAILABLE

_COMMANDS = """\
Run a relay on port 3340 with a key in memory, ready for a client:
    fastderp-relay --dev

Put it, or any other DERP relay, under load and measure it:
    fastderp-bench http://127.0.0.1:3340/derp

"""
_PROGRAM = """\
Talk through a relay from Python:
    import asyncio
    from fastderp import HTTPClient, NodePrivate

    async def main():
        alice, bob = NodePrivate.generate(), NodePrivate.generate()
        url = "http://127.0.0.1:3340/derp"
        async with HTTPClient(url, alice) as a, HTTPClient(url, bob) as b:
            await b.recv()  # the relay's greeting
            await a.send(bob.public_key, b"hello")
            print(await b.recv())

    asyncio.run(main())

"""
_HELP = """\
Every flag: fastderp-relay --help        Every name: python -c 'help("fastderp")'
"""


def main() -> int:
    """Print what is installed and how to use it.

    Return EX_UNAVAILABLE when a part is missing, EX_IOERR when printing fails.
    """
    accept_gil()
    problems: list[str] = []
    code = show("python -m fastderp", lambda: _report(problems))
    return EX_UNAVAILABLE if problems else code


def _report(problems: list[str]) -> None:
    """Print the report; add the missing parts to `problems`."""
    print(
        f"fastderp {_installed('fastderp')}: a DERP relay and client library for tailscale "
        "networks\n"
    )
    for name, find in _PARTS:
        try:
            print(f"  {name:<10} {find()}")
        except Exception as error:  # a failure of one part must not hide the others
            print(f"  {name:<10} missing: {error}")
            problems.append(name)
    if sys.platform == "linux":
        print(f"\n{_COMMANDS}{_PROGRAM}{_HELP}", end="")
    else:
        print(f"\n{_PROGRAM}", end="")
    if problems:
        print(
            f"\nNot usable before this is repaired: {', '.join(problems)}. Try: pip install "
            "--force-reinstall fastderp"
        )


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed, run from its source)"


def _uvloop() -> str:
    import uvloop

    return _installed(uvloop.__name__)


def _crypto() -> str:
    if sys.platform != "linux":
        return f"{ssl.OPENSSL_VERSION} (Python's)"
    from fastderp.tls import library

    return library.description()


def _data_plane() -> str:
    from fastderp.dataplane import plane

    return f"compiled, {plane.__file__}"


def _command() -> str:
    name = "fastderp-relay"
    if found := shutil.which(name):
        return found
    beside = Path(sys.executable).with_name(name)
    if os.path.exists(beside):
        return f"{beside} (its directory is not on the PATH)"
    raise LookupError(f"{name} is neither on the PATH nor beside {sys.executable}")


def _client() -> str:
    from fastderp.client import HTTPClient

    return f"{HTTPClient.__module__}, portable; relays run on Linux only"


_PARTS: list[tuple[str, Callable[[], str]]] = [
    ("Python", lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ("TLS", _crypto),
]
if sys.platform == "linux":
    _PARTS += [("uvloop", _uvloop), ("data plane", _data_plane), ("command", _command)]
else:
    _PARTS += [("client", _client)]

if __name__ == "__main__":
    sys.exit(main())
