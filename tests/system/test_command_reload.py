"""Settings that change while the relay runs: the log names those that wait for a restart."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import RunningRelay, relay

AT_START = '[listen]\na = "127.0.0.1:0"\n\n[limits]\ndrain-time = "0s"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "relay.toml"
    path.write_text(AT_START)
    return path


@pytest.fixture
def running(path: Path, tmp_path: Path) -> Iterator[RunningRelay]:
    flags = ("-stun=false", "-c", str(tmp_path / "key"))
    with relay(*flags, "-config", str(path), env={"FASTDERP_HOME": "blank"}) as running:
        yield running


def reloaded(running: RunningRelay, part: str = "reload: configuration: ") -> str:
    """Reload, and return what the log says about the configuration."""
    running.process.send_signal(signal.SIGHUP)
    return running.hears(part).partition(part)[2].strip()


def test_a_changed_setting_that_waits_for_a_restart_is_named_in_the_log(
    running: RunningRelay, path: Path
) -> None:
    assert reloaded(running) == f"{path}: no setting differs from those in force"
    path.write_text(AT_START.replace('"0s"', '"3s"') + "accept-connection-limit = 5\n")
    assert reloaded(running) == (
        f"{path}: accept-connection-limit, drain-time changed; restart the relay to apply"
    )
    path.write_text(AT_START)
    assert reloaded(running) == f"{path}: no setting differs from those in force"


def test_a_setting_that_a_flag_or_variable_overrides_does_not_count_as_changed(
    running: RunningRelay, path: Path
) -> None:
    path.write_text(AT_START + '\n[serve]\nhome = "https://example.com"\n')
    assert reloaded(running) == f"{path}: no setting differs from those in force"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[limits", "not TOML"),
        (
            '[limits]\ndrain-tim = "1s"\n',
            "[limits] drain-tim: unknown key; did you mean drain-time?",
        ),
        ('[certificates]\ncertmode = "none"\n', 'unknown -certmode "none"'),
    ],
)
def test_a_file_that_the_next_start_would_refuse_is_reported(
    running: RunningRelay, path: Path, text: str, error: str
) -> None:
    path.write_text(text)
    line = reloaded(running)
    assert error in line and line.endswith("; the previous one stays in force")
    assert 'fastderp_reloads_refused_total{part="configuration"} 1\n' in running.varz()


def test_a_change_is_noticed_without_a_signal(running: RunningRelay, path: Path) -> None:
    path.write_text(AT_START.replace('"0s"', '"4s"'))
    line = running.hears("files changed: configuration: ")
    assert line.rstrip().endswith(f"{path}: drain-time changed; restart the relay to apply")
