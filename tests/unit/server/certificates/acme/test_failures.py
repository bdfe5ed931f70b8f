"""The file of failed orders, as a crash, a disk or an operator may leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastderp.server.certificates.acme.failures import Failures

NAME = "derp.example.com"
NOW = 1e9


def test_a_delay_lasts_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "failures.json"
    assert Failures(path, clock=lambda: NOW).add(NAME) == 60
    assert Failures(path, clock=lambda: NOW + 20).wait_s(NAME) == 40


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"derp.example.com":1}',
        '{"derp.example.com":["x",1e9]}',
        '{"derp.example.com":[NaN,1e9]}',
        '{"derp.example.com":[1e999,1e9]}',
        '{"derp.example.com":[1,1e999]}',
        f'{{"derp.example.com":[1,{"9" * 400}]}}',
        "\0" * 100,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_malformed_file_of_failed_orders_does_not_stop_the_start(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "failures.json"
    path.write_text(content)
    failures = Failures(path, clock=lambda: NOW)
    assert failures.wait_s(NAME) == 0
    assert failures.add(NAME) == 60
