"""Relay and client of an installation without extras, and their errors for missing extras."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest

from tests.kit.certificates import self_signed
from tests.kit.command import COMMAND, manual, refused, relay, started
from tests.kit.memory import SANITIZED, sanitizer_variables

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
    "_cffi_backend", "acme", "aiohttp", "argparse", "copy", "cryptography", "ctypes", "dataclasses",
    "difflib",
    "dns.resolver", "email", "encodings.idna", "fastderp.cli.gen", "fastderp.client", "fastderp.net.dial",
    "fastderp.server.accept.embedded", "fastderp.server.accept.proxy_header",
    "fastderp.server.accept.websocket", "fastderp.server.certificates.acme.provider",
    "fastderp.server.http.tunnel", "fastderp.server.mesh.links", "fastderp.server.observe.json_log",
    "fastderp.server.observe.metrics",
    "fastderp.top", "hashlib", "html", "http",
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
        is_allowed = name.partition(".")[0] in ALLOWED or name.startswith("_sysconfigdata")
        return self.finder.find_spec(name, path, target) if is_allowed else None
sys.meta_path[:] = map(Fence, sys.meta_path)
"""
# Prints the KiB that the import of the record layer's ciphers takes.
IMPORT_CIPHERS = """
import re
from fastderp.tls import hkdf, openssl
def anonymous_kib():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"^Anonymous: +([0-9]+)", file.read(), re.M)[1])
anonymous_kib()
before = anonymous_kib()
import fastderp.tls.aead
print(anonymous_kib() - before)
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
    tls = manual(tmp_path / "certs", "127.0.0.1")
    with relay(*flags, *tls, env=lean) as running:
        pin = running.find(r'"CertName":"([^"]+)"')
        url = f"https://127.0.0.1:{running.port}/derp"
        talk = [sys.executable, "-c", TALK, url, pin]
        done = subprocess.run(talk, env=lean, capture_output=True, text=True, timeout=60)
        assert done.stdout == "hello\n", done.stderr


@pytest.mark.parametrize("name", ["127.0.0.1", "relay.test"])
def test_an_idle_relay_has_loaded_nothing_for_other_flags_and_clients(
    name: str, tmp_path: Path
) -> None:
    flags = ("-c", str(tmp_path / "key"), "-a", "127.0.0.1:0", "-stun-port", "0", "-http-port", "0")
    certificate = self_signed(name)
    (tmp_path / f"{name}.crt").write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    (tmp_path / f"{name}.key").write_bytes(certificate.key_pem)
    tls = manual(tmp_path, name)
    with started([sys.executable, "-c", SHOW_MODULES, *flags, *tls]) as running:
        running.process.send_signal(signal.SIGUSR1)
        modules = set(running.hears("loaded: ").split())
    assert "fastderp.server.app" in modules
    assert modules & NOT_WHEN_IDLE == set()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has memory of its own")
def test_a_relay_without_tls_has_fetched_no_ciphers() -> None:
    # OpenSSL 3 takes 0.2 MiB of heap for its ciphers, and maps the code.
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_CIPHERS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) < 100


def test_compiled_functions_are_plain_ones_of_c() -> None:
    # Those that Python can inspect take 0.3 MiB of each process.
    inspectable = []
    for path in (ROOT / "fastderp").rglob("*.pyx"):
        module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        inspectable += [
            f"{module.__name__}.{name}"
            for name, value in vars(module).items()
            if type(value).__name__ == "cython_function_or_method"
        ]
    assert inspectable == []


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


@pytest.mark.parametrize("program", ['help("fastderp")', "from fastderp import *; print(Server)"])
def test_all_names_are_there_without_extras(program: str, lean: dict[str, str]) -> None:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=lean, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\bclass '?[\w.]*Server\b", done.stdout)


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
        f"fastderp[{','.join(['acme', 'dns', 'services', 'top'])}]"
        in PROJECT["optional-dependencies"]["all"]
    )
