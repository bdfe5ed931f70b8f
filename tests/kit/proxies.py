"""nginx, HAProxy and Caddy as processes, with the guide's configurations."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.certificates import self_signed

GUIDE = Path(__file__).parents[2] / "docs/operations.md"
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_S = 20.0


def sample(title: str, changes: dict[str, str]) -> str:
    """Return the guide's configuration that begins with `# title`, with these texts replaced."""
    blocks: list[str] = re.findall(r"^```\w+\n(# .*?)^```", GUIDE.read_text(), re.M | re.S)
    [text] = [block for block in blocks if block.startswith(f"# {title}")]
    for old, new in changes.items():
        assert old in text, f"the guide's {title!r} has no {old!r}"
        text = text.replace(old, new)
    return text


class ProxyFiles:
    """A temporary directory with the proxies' certificate and files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        certificate = self_signed("127.0.0.1")
        chain = ssl.DER_cert_to_PEM_cert(certificate.der)
        self.chain = self._write("derp.crt", chain)
        self.key = self._write("derp.key", certificate.key_pem.decode())
        self.both = self._write("derp.pem", chain + certificate.key_pem.decode())

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    @contextlib.contextmanager
    def nginx(self, http: str, stream: str, ports: list[int]) -> Iterator[None]:
        """Run nginx with these `server` blocks; `stream` is another block or ""."""
        program = _program("nginx")
        places = "\n".join(
            f"{kind}_temp_path {self.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"""
            daemon off; master_process off; pid {self.directory}/nginx.pid; error_log stderr;
            {f"load_module {NGINX_STREAM};" if stream else ""}
            events {{ }}
            http {{ access_log off; {places} {http} }}
            {stream}
        """
        path = self._write("nginx.conf", text)
        with self._running([program, "-p", str(self.directory), "-c", str(path)], ports):
            yield

    @contextlib.contextmanager
    def haproxy(self, text: str, ports: list[int]) -> Iterator[None]:
        """Run HAProxy with these sections."""
        path = self._write("haproxy.cfg", "global\n    maxconn 200\n\n" + text)
        with self._running([_program("haproxy"), "-db", "-f", str(path)], ports):
            yield

    @contextlib.contextmanager
    def caddy(self, text: str, ports: list[int]) -> Iterator[None]:
        """Run Caddy with these sites."""
        options = (
            "{\n admin off\n auto_https off\n skip_install_trust\n"
            " servers {\n protocols h1\n }\n}\n"
        )
        path = self._write("Caddyfile", options + text)
        command = [_program("caddy"), "run", "--adapter", "caddyfile", "--config", str(path)]
        with self._running(command, ports):
            yield

    @contextlib.contextmanager
    def _running(self, command: list[str], ports: list[int]) -> Iterator[None]:
        output = self.directory / "output"
        places = {
            name: str(self.directory) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
        }
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **places}
            )
        try:
            deadline = time.monotonic() + START_S
            while not all(_listens(port) for port in ports):
                assert process.poll() is None and time.monotonic() < deadline, output.read_text()
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
