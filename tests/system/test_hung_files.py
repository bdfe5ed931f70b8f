"""A file on a file system that hangs keeps its own part from a reload, and nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastderp.server.app import Configuration, RelayApp
from fastderp.server.observe import reloads, watched_files
from fastderp.server.settings import (
    AdmissionSettings,
    LimitSettings,
    ListenSettings,
    ManualSettings,
    MeshSettings,
)
from fastderp.util import files
from fastderp.wire.keys import NodePrivate
from tests.unit.server.test_app import SETTINGS

PATIENCE_S = 20.0
# the file that hangs, and its part
FILES = {
    "127.0.0.1.key": "certificate",
    "127.0.0.1.crt": "certificate",
    "deny": "admission",
    "limits.json": "limits",
    "mesh.key": "mesh",
    "members": "mesh",
    "relay.toml": "configuration",
}
PARTS = set(FILES.values())


class HungFiles:
    """The files that do not answer, on every call that reads them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hung: set[str] = set()
        self.go_on = threading.Event()
        self.calls: list[str] = []
        for name in ("read", "fingerprint"):
            self._wrap(monkeypatch, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        function = getattr(files, name)

        def slow(path: Path, **options: int) -> object:
            self.wait(Path(path).name)
            return function(path, **options)

        monkeypatch.setattr(files, name, slow)

    def wait(self, name: str) -> None:
        if name in self.hung:
            self.calls.append(name)
            assert threading.current_thread() is not threading.main_thread(), "blocks the loop"
            assert self.go_on.wait(PATIENCE_S)


@pytest.fixture
def hung_files(monkeypatch: pytest.MonkeyPatch) -> HungFiles:
    return HungFiles(monkeypatch)


@pytest.fixture
async def app(
    tmp_path: Path, hung_files: HungFiles, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RelayApp]:
    monkeypatch.setattr(watched_files, "POLL_S", 0.01)
    (tmp_path / "deny").write_text(NodePrivate.generate().public_key.text)
    (tmp_path / "limits.json").write_text("{}")
    (tmp_path / "mesh.key").write_text(os.urandom(32).hex())
    (tmp_path / "members").write_text("# none")

    def changed() -> list[str]:
        hung_files.wait("relay.toml")
        return []

    app = RelayApp(
        SETTINGS._replace(
            listen=ListenSettings("127.0.0.1", 0, tls=True, http_port=None),
            manual=ManualSettings(tmp_path, "127.0.0.1"),
            admission=AdmissionSettings(deny_file=tmp_path / "deny"),
            mesh=MeshSettings(psk_file=tmp_path / "mesh.key", members=f"@{tmp_path}/members"),
            limits=LimitSettings(rate_file=tmp_path / "limits.json", workers=1),
        ),
        configuration=Configuration(tmp_path / "relay.toml", changed),
    )
    await app.start()
    yield app
    hung_files.go_on.set()
    await app.close()


def reloaded(caplog: pytest.LogCaptureFixture, outcome: str, cause: str = "reload") -> set[str]:
    """Return the parts with an outcome."""
    found = [getattr(record, "fields", {}) for record in caplog.records]
    return {
        fields["part"]
        for fields in found
        if (fields.get("cause"), fields.get("outcome")) == (cause, outcome)
    }


async def until_reloaded(
    caplog: pytest.LogCaptureFixture, outcome: str, parts: set[str], cause: str = "reload"
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not parts <= reloaded(caplog, outcome, cause):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("name", "part"), FILES.items(), ids=FILES)
async def test_a_hung_file_keeps_no_other_part_from_its_reload(
    app: RelayApp,
    hung_files: HungFiles,
    name: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reloads, "LIMIT_S", 0.3)
    caplog.set_level(logging.INFO, "fastderp")
    hung_files.hung.add(name)
    async with asyncio.timeout(PATIENCE_S):
        await app.reload()
        await until_reloaded(caplog, "done", PARTS - {part})
        assert part not in reloaded(caplog, "done")
        await until_reloaded(caplog, "delayed", {part})
        assert "not done after 0.3 s; the previous one stays in force until then" in caplog.text
        if part != "limits":
            limits = {"PerClientRateLimitBytesPerSec": 1 << 20, "PerClientRateBurstBytes": 1 << 20}
            (tmp_path / "limits.json").write_text(json.dumps(limits))
            await until_reloaded(caplog, "done", {"limits"}, "files changed")
        caplog.clear()
        await app.reload()
        await until_reloaded(caplog, "done", PARTS - {part})
        assert part not in reloaded(caplog, "done")
        assert name in hung_files.calls
        caplog.clear()
        hung_files.go_on.set()
        await until_reloaded(caplog, "done", {part})
