"""The composition root starts, reloads, measures and closes each component."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

import pytest

from fastderp.errors import ConfigError
from fastderp.server import settings
from fastderp.server.app import RelayApp
from fastderp.server.components.component import Component
from fastderp.server.observe.log_queue import LogQueue
from fastderp.server.server import Server

SETTINGS = settings.RelaySettings(
    key=settings.KeySettings(),
    listen=settings.ListenSettings("127.0.0.1", 0, tls=False, http_port=None),
    manual=None,
    acme=None,
    admission=settings.AdmissionSettings(),
    mesh=settings.MeshSettings(),
    limits=settings.LimitSettings(workers=1),
    stun=settings.StunSettings("127.0.0.1", 0),
    bootstrap_dns=settings.BootstrapSettings(),
    pages=settings.PageSettings(),
    observe=settings.ObserveSettings(),
    warnings=("a setting has no effect",),
)


class Recorder(Component):
    """Records its calls; fails where the test requires it."""

    def __init__(self, name: str, events: list[str], fails_in: str = "") -> None:
        self.name = name  # type: ignore[misc]
        self._events = events
        self._fails_in = fails_in

    def _note(self, event: str) -> None:
        self._events.append(f"{self.name} {event}")
        if event == self._fails_in:
            raise ConfigError(f"{self.name} fails")

    async def open(self) -> None:
        self._note("open")

    async def start(self, server: Server) -> None:
        self._note("start")

    async def close(self) -> None:
        self._note("close")

    async def reload(self) -> str:
        self._note("reload")
        return f"{self.name} is new"


def app_with(lines: LogQueue, *components: Component) -> RelayApp:
    app = RelayApp(SETTINGS, lines)
    app._above += components
    return app


async def test_a_component_that_fails_in_its_reload_does_not_stop_the_others(
    lines: LogQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    events: list[str] = []
    app = app_with(lines, *(Recorder(name, events, "reload" * (name == "b")) for name in "abc"))
    await app.start()
    try:
        caplog.clear()
        await app.reload()
        assert events[-3:] == ["a reload", "b reload", "c reload"]
        assert sorted(caplog.messages) == [
            "reload: a: a is new",
            "reload: b: b fails; the previous one stays in force",
            "reload: c: c is new",
            "reloading",
        ]
    finally:
        await app.close()


async def test_an_internal_error_in_a_reload_is_counted_and_does_not_stop_the_others(
    lines: LogQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Component):
        name = "broken"

        async def reload(self) -> str:
            raise KeyError("oops")

    events: list[str] = []
    app = app_with(lines, Broken(), Recorder("b", events))
    await app.start()
    try:
        await app.reload()
        assert events[-1] == "b reload"
        assert "internal error in reload: 'oops'; broken stays as it is" in caplog.text
        errors = app.metrics()["fastderp_internal_errors_total"]
        assert isinstance(errors, dict) and errors["reload"] >= 1
    finally:
        await app.close()


async def test_components_close_in_reverse_order_even_if_one_fails(
    lines: LogQueue,
) -> None:
    events: list[str] = []
    app = app_with(lines, *(Recorder(name, events, "close" * (name == "b")) for name in "abc"))
    await app.start()
    with pytest.raises(ConfigError):
        await app.close()
    assert events[-3:] == ["c close", "b close", "a close"]
    assert app.server is not None and not app.server.clients()


def open_sockets() -> set[str]:
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.parametrize("fails_in", ["open", "start"])
async def test_a_failed_start_closes_every_socket(lines: LogQueue, fails_in: str) -> None:
    before = open_sockets()
    app = app_with(lines, Recorder("a", [], fails_in))
    with pytest.raises(ConfigError, match="a fails"):
        await app.start()
    await app.close()
    await asyncio.sleep(0)
    assert open_sockets() <= before


async def test_the_start_logs_first_its_addresses_and_last_its_warnings(
    lines: LogQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    app = app_with(lines)
    await app.start()
    await app.close()
    assert "serves http on 127.0.0.1:" in caplog.messages[0]
    assert caplog.messages[-1] == "a setting has no effect"
