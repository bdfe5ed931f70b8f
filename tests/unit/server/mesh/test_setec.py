"""The region's secret from a setec server: its answers, and the copy on disk. PROTOCOL §12."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.errors import ConfigError, DerpError, SecretsError
from fastderp.server.mesh import setec as secrets
from fastderp.server.mesh.setec import SecretsServer
from tests.kit.service import Answer, ok, response, serving

NAME = "prod/derp/meshkey"
UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the waits between attempts and the proxies of this machine."""
    monkeypatch.setattr(secrets, "PAUSE_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def value(text: str, version: int = 1) -> bytes:
    """Build a server's answer."""
    return ok({"Value": base64.b64encode(text.encode()).decode(), "Version": version})


async def fetched(url: str, cache: Path, read: Callable[[str], str] = str) -> str:
    """Fetch once."""
    server = SecretsServer(url, NAME, cache)
    try:
        return await server.fetch(read)
    finally:
        await server.close()


async def fetched_from(answer: Answer, cache: Path, read: Callable[[str], str] = str) -> str:
    with serving(answer) as service:
        return await fetched(service.url, cache, read)


def no_z(text: str) -> str:
    """Parse a secret like the relay: return it or raise ValueError."""
    if "z" in text:
        raise ValueError("hex digits only")
    return text


async def test_the_request_is_setecs_and_the_copy_is_private(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "new" / "derper-secrets"
    with serving(value("ab" * 32, 7)) as service:
        assert await fetched(service.url.removesuffix("/admit") + "/", cache) == "ab" * 32
    [request] = service.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/get HTTP/1.1\r\n")
    assert b"\r\nSec-X-Tailscale-No-Browsers: setec\r\n" in head
    assert json.loads(body) == {"Name": NAME}
    assert cache.stat().st_mode & 0o777 == 0o600
    kept = json.loads(cache.read_text())
    assert kept == {
        NAME: {
            "secret": {"Value": base64.b64encode(b"ab" * 32).decode(), "Version": 7},
            "lastAccess": "0",
        }
    }
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


async def test_a_path_below_the_host_is_kept(tmp_path: Path) -> None:
    with serving(value("x")) as service:
        await fetched(service.url, tmp_path / "c")
    assert service.requests[0].startswith(b"POST /admit/api/get ")


async def test_the_copy_is_used_while_the_server_cannot_be_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fastderp")
    await fetched_from(value("one"), tmp_path)
    assert (tmp_path / "secrets.json").exists(), "in a directory it is a file of its own"
    assert await fetched(UNREACHABLE, tmp_path) == "one"
    assert await fetched_from(response(500), tmp_path) == "one"
    assert "Connection refused" in caplog.text
    assert f"{NAME}: the relay uses the copy in {tmp_path}/secrets.json" in caplog.text


async def test_other_secrets_in_the_copy_are_left_alone(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    cache.write_text('{"other": {"secret": {"Value": "AAAA", "Version": 3}, "lastAccess": "5"}}')
    await fetched_from(value("one"), cache)
    assert json.loads(cache.read_text())["other"] == {
        "secret": {"Value": "AAAA", "Version": 3},
        "lastAccess": "5",
    }


@pytest.mark.parametrize(
    "copy",
    ["", "{", "[]", "7", '{"prod/derp/meshkey": null}', '{"prod/derp/meshkey": {"secret": []}}'],
)
async def test_without_server_and_without_a_usable_copy_the_start_fails(
    tmp_path: Path, copy: str
) -> None:
    (tmp_path / "c").write_text(copy)
    with pytest.raises(
        SecretsError,
        match=r"^secrets server 127\.0\.0\.1: Connection refused; there is no copy in ",
    ):
        await fetched(UNREACHABLE, tmp_path / "c")


async def test_an_invalid_secret_leaves_the_copy_unchanged_and_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "c"
    await fetched_from(value("ab" * 32), cache, no_z)
    kept = cache.read_bytes()
    assert await fetched_from(value("zz"), cache, no_z) == "ab" * 32
    assert cache.read_bytes() == kept
    assert (
        f"secrets server 127.0.0.1: {NAME}: hex digits only; "
        f"{NAME}: the relay uses the copy in {cache}" in caplog.text
    )
    assert await fetched(UNREACHABLE, cache, no_z) == "ab" * 32


async def test_an_invalid_secret_without_a_copy_is_refused_and_not_kept(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^secrets server 127\.0\.0\.1: {NAME}: hex digits only; "
        rf"there is no copy in {tmp_path}/c$",
    ):
        await fetched_from(value("zz"), tmp_path / "c", no_z)
    assert not (tmp_path / "c").exists()


async def test_an_invalid_copy_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    await fetched_from(value("zz"), cache)
    with pytest.raises(
        SecretsError,
        match=f"Connection refused; the copy in {cache} is unusable, too: hex digits only$",
    ):
        await fetched(UNREACHABLE, cache, no_z)


async def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    answers = iter([response(503), response(503), value("late")])
    assert await fetched_from(lambda request: next(answers), tmp_path / "c") == "late"


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (response(403), ConfigError, f"denies this machine the secret {NAME}"),
        (response(404), ConfigError, f"does not have the secret {NAME}"),
        (response(400), ConfigError, f"does not understand the request for {NAME}"),
        (ok({"Value": "?"}), ConfigError, f"{NAME}: the value is not text"),
        (
            ok({"Value": base64.b64encode(b"\xff").decode()}),
            ConfigError,
            f"{NAME}: the value is not text",
        ),
        (ok({}), ConfigError, f"{NAME}: the value is not text"),
        (response(302, b"", "Location: http://127.0.0.1/"), SecretsError, "it redirects"),
        (ok(b"["), SecretsError, "the answer is not JSON"),
        (ok([]), SecretsError, "the answer is not a JSON object"),
        (ok(b'{"Value":"' + b"A" * 100_000), SecretsError, "the answer is not JSON"),
        (b"nonsense\r\n\r\n", SecretsError, "the answer is not HTTP"),
    ],
)
async def test_a_refusal_or_malformed_answer_is_one_line_that_names_the_server(
    tmp_path: Path, answer: bytes, error: type[DerpError], message: str
) -> None:
    with pytest.raises(error) as refused:
        await fetched_from(answer, tmp_path / "c")
    assert str(refused.value).startswith("secrets server 127.0.0.1")
    assert message in str(refused.value)
    assert not (tmp_path / "c").exists()


async def test_a_copy_that_cannot_be_written_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert await fetched_from(value("one"), tmp_path / "file" / "c") == "one"
    assert "no copy written to" in caplog.text


@pytest.mark.parametrize("url", ["setec", "ftp://setec", "http://", "http://[::1"])
def test_a_malformed_url_is_refused_without_being_quoted(url: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^(malformed URL|want a URL such as https://setec\.example\.ts\.net)$"
    ):
        SecretsServer(url, NAME, tmp_path)
