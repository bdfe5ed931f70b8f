"""FASTDERP_CRYPTO at the command: the library in use, and unusable choices."""

import os
import re
import ssl
from pathlib import Path

import pytest

from fastderp.tls import openssl
from tests.kit.command import refused, relay

QUIET = ("-stun=false", "-http-port=-1")
SYSTEM = " ".join(ssl.OPENSSL_VERSION.split()[:2])


def choices() -> list[str]:
    return ["system", *(["bundled"] if os.path.exists(openssl.BUNDLED) else [])]


@pytest.mark.parametrize("crypto", choices())
def test_version_first_line_and_metric_name_the_library(crypto: str, tmp_path: Path) -> None:
    env = {"FASTDERP_CRYPTO": crypto}
    code, said = refused("-version", env=env)
    version = r"AWS-LC [\d.]+" if crypto == "bundled" else re.escape(SYSTEM)
    assert code == 0
    named = re.search(rf"^crypto ({version}) \({crypto}\)$", said, re.M)
    assert named, said
    with relay("-a", "127.0.0.1:0", "-c", str(tmp_path / "key"), *QUIET, env=env) as running:
        assert f"; crypto {named[1]} ({crypto})" in running.said.splitlines()[0]
        text = running.varz()
    library, _, number = named[1].partition(" ")
    labels = f'library="{library}",version="{number}",source="{crypto}"'
    assert f"fastderp_crypto_info{{{labels}}} 1\n" in text


UNUSABLE = [
    ("/nowhere/libssl.so", 69, "the crypto library /nowhere/libssl.so cannot be used: "),
    ("openssl", 2, "FASTDERP_CRYPTO='openssl': it is bundled, system, or the path of a libssl"),
]


@pytest.mark.parametrize(("crypto", "code", "line"), UNUSABLE)
def test_an_unusable_library_is_one_line(crypto: str, code: int, line: str) -> None:
    found, said = refused("--dev", "-stun-port", "0", env={"FASTDERP_CRYPTO": crypto})
    assert found == code
    assert said.startswith(f"fastderp-relay: {line}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("crypto", "code", "line"), UNUSABLE)
def test_version_names_an_unusable_library(crypto: str, code: int, line: str) -> None:
    found, said = refused("-version", env={"FASTDERP_CRYPTO": crypto})
    assert found == 0
    assert said.splitlines()[1].startswith(f"crypto missing: {line}")
