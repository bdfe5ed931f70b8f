"""The file of client rates, and the limit of accepted connections. PROTOCOL §6.8, §9.9."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastderp.errors import ConfigError
from fastderp.server.admission.rate_limit import MIN_BURST_BYTES, RateLimit


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rate.json"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (
            '{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 200000}',
            (1_000_000, 200_000),
        ),
        (
            '{"perclientratelimitbytespersec": 5, "PERCLIENTRATEBURSTBYTES": 70000, "Other": []}',
            (5, 70_000),
        ),
        ('{"PerClientRateLimitBytesPerSec": 5}', (5, MIN_BURST_BYTES)),
        (
            '{"PerClientRateLimitBytesPerSec": 5, "PerClientRateBurstBytes": 1}',
            (5, MIN_BURST_BYTES),
        ),
        ('{"PerClientRateLimitBytesPerSec": 0, "PerClientRateBurstBytes": 200000}', (0, 0)),
        ('{"PerClientRateLimitBytesPerSec": null}', (0, 0)),
        (
            '{"PerClientRateLimitBytesPerSec": 18446744073709551615}',
            ((1 << 64) - 1, MIN_BURST_BYTES),
        ),
        ("{}", (0, 0)),
        (" null\n", (0, 0)),
    ],
)
def test_a_file_is_read_as_derper_reads_it(file: Path, text: str, limit: tuple[int, int]) -> None:
    file.write_text(text)
    found = RateLimit.load(file)
    assert (found.bytes_per_s, found.burst_bytes) == limit


def test_a_mistyped_member_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text('{"PerClientRateLimitBytePerSec": 5, "perClientRateBurstBytes": 6}')
    assert RateLimit.load(file) == RateLimit()
    assert caplog.messages == [
        f'rate configuration {file}: unknown member "PerClientRateLimitBytePerSec" is ignored'
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"PerClientRateLimitBytesPerSec": -1}',
    '{"PerClientRateLimitBytesPerSec": 1.5}', "[" * 5000,
     '{"PerClientRateLimitBytesPerSec": "1"}', '{"PerClientRateBurstBytes": true}',
     '{"PerClientRateBurstBytes": 18446744073709551616}',
     "{} {}"],
)  # fmt: skip
def test_a_malformed_file_is_refused_by_name(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"rate configuration {file}: "):
        RateLimit.load(file)


def test_a_missing_file_is_refused_by_name(file: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"rate configuration {file}: cannot read it: No such file"
    ):
        RateLimit.load(file)
