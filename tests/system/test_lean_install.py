"""An installation without extras: the behaviour of the relay and the client, and their errors for
missing extras.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, refused, relay, started
from tests.kit.memory import sanitizer_variables

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# the modules that the dependencies in pyproject.toml install, and those of their dependencies
INSTALLED = {
    "httptools": ["httptools"],
    "pynacl": ["nacl", "_cffi_backend"],
    "uvloop": ["uvloop"],
    "websockets": ["websockets"],
}
# Each takes between 0.03 and 20 MiB, and the time of its import.
NOT_WHEN_IDLE = {
    "acme", "aiohttp", "argparse", "copy", "cryptography", "ctypes", "dataclasses", "difflib",
    "dns.resolver", "email", "fastderp.client", "fastderp.net.dial",
    "fastderp.server.accept.embedded", "fastderp.server.accept.proxy_header",
    "fastderp.server.accept.websocket", "fastderp.server.certificates.acme.provider",
    "fastderp.server.http.tunnel", "fastderp.server.mesh.links", "hashlib", "html", "http",
    "importlib.metadata", "rich", "secrets", "shutil", "tempfile", "tomllib", "urllib.request",
    "uuid", "websockets", "yarl", "zipfile",
}  # fmt: skip
# The relay; SIGUSR1 prints the names of its loaded modules in one line.
SHOW_MODULES = """
import signal, sys
from fastderp.cli.relay import main
signal.signal(signal.SIGUSR1, lambda *_: print("loaded:", *sys.modules, file=sys.stderr))
main()
"""
# Read by every Python of the test as `sitecustomize`: hides the modules of other packages.
FENCE = f"""
import sys
ALLOWED = {{*sys.stdlib_module_names, "fastderp", *{[*chain.from_iterable(INSTALLED.values())]}}}
class Fence:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        is_allowed = name.partition(".")[0] in ALLOWED
        return self.finder.find_spec(name, path, target) if is_allowed else None
sys.meta_path[:] = map(Fence, sys.meta_path)
"""
# A login over TCP and one over a WebSocket, and a packet between the two.
TALK = """
import asyncio, sys
from fastderp import HTTPClient, NodePrivate, ReceivedPacket
async def main(url, pin):
    ann = HTTPClient(url, NodePrivate.generate(), cert_name=pin)
    websocket = url.replace("https:", "wss:")
    bob = HTTPClient(websocket, NodePrivate.generate(), cert_name=pin)
    async with asyncio.timeout(20), ann, bob:
        await bob.recv()  # logged in: packets will find it
        await ann.send(bob.public_key, b"hello")
        while not isinstance(message := await bob.recv(), ReceivedPacket):
            pass
        print(message.data.decode())
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def lean(tmp_path: Path) -> dict[str, str]:
    """The environment of commands that see the packages of an installation without extras."""
    (tmp_path / "fence").mkdir()
    (tmp_path / "fence/sitecustomize.py").write_text(FENCE)
    return {"PYTHONPATH": f"{tmp_path / 'fence'}:{ROOT}"} | sanitizer_variables()


def test_the_dependencies_are_those_of_this_test() -> None:
    names = {
        re.split("[><=]", requirement)[0]
        for requirement in PROJECT["dependencies"]
        if "!= 'linux'" not in requirement
    }
    assert names == INSTALLED.keys()


def test_the_relay_and_the_client_need_no_extra(tmp_path: Path, lean: dict[str, str]) -> None:
    flags = ("-c", str(tmp_path / "key"), "-a", "127.0.0.1:0", "-stun-port", "0", "-http-port=-1")
    tls = ("-certmode", "manual", "-certdir", str(tmp_path / "certs"), "-hostname", "127.0.0.1")
    with relay(*flags, *tls, env=lean) as running:
        pin = running.find(r'"CertName":"([^"]+)"')
        url = f"https://127.0.0.1:{running.port}/derp"
        talk = [sys.executable, "-c", TALK, url, pin]
        done = subprocess.run(talk, env=lean, capture_output=True, text=True, timeout=60)
        assert done.stdout == "hello\n", done.stderr


def test_an_idle_relay_has_loaded_nothing_for_other_flags_and_clients(tmp_path: Path) -> None:
    flags = ("-c", str(tmp_path / "key"), "-a", "127.0.0.1:0", "-stun-port", "0", "-http-port", "0")
    tls = ("-certmode", "manual", "-certdir", str(tmp_path / "certs"), "-hostname", "127.0.0.1")
    with started([sys.executable, "-c", SHOW_MODULES, *flags, *tls]) as running:
        running.process.send_signal(signal.SIGUSR1)
        modules = set(running.hears("loaded: ").split())
    assert "fastderp.server.app" in modules
    assert modules & NOT_WHEN_IDLE == set()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (COMMAND, "-help"),
        (COMMAND, "-version"),
        (COMMAND.with_name("fastderp-bench"), "--help"),
        (COMMAND.with_name("fastderp-bench"), "--list"),
    ],
    ids=["relay help", "relay version", "bench help", "bench list"],
)
def test_the_commands_explain_themselves_without_extras(
    command: Path, flag: str, lean: dict[str, str]
) -> None:
    done = subprocess.run([command, flag], env=lean, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize(
    ("flags", "extra"),
    [
        (("-verify-clients",), "services"),
        (("-verify-client-url", "http://127.0.0.1:1/"), "services"),
        (("-secrets-url", "http://127.0.0.1:1/"), "services"),
        (("-bootstrap-dns-names", "derp.example.com"), "dns"),
        (("-acme-directory", "https://127.0.0.1:1/dir", "-hostname", "derp.example.com"), "acme"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("words", [(), ("check",)], ids=["start", "check"])
def test_a_flag_whose_libraries_are_missing_names_the_extra(
    words: tuple[str, ...], flags: tuple[str, ...], extra: str, tmp_path: Path, lean: dict[str, str]
) -> None:
    files = ("-c", str(tmp_path / "key"), "-certdir", str(tmp_path / "certs"))
    code, text = refused(
        *words, *flags, *files, "-a", "127.0.0.1:0", "-stun=false", "-http-port=-1", env=lean
    )
    assert code == 69, text
    assert f"need libraries that are not installed: pip install 'fastderp[{extra}]'" in text
    if not words:
        assert text.startswith("fastderp-relay: ") and text.count("\n") == 1, text
    assert extra in PROJECT["optional-dependencies"]
    assert (
        f"fastderp[{','.join(['acme', 'dns', 'services'])}]"
        in PROJECT["optional-dependencies"]["all"]
    )
