"""The file of client limits. PROTOCOL §6.8."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from fastderp.errors import ConfigError
from fastderp.server.admission.limit_file import load_limits
from fastderp.server.admission.limits import MAX_CLASSES, AddressLimit, ClientClass, Limits
from fastderp.server.admission.rate_limit import MIN_BURST_BYTES, RateLimit
from fastderp.wire.keys import NodePrivate


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
    found = load_limits(file).rate
    assert found is not None
    assert (found.bytes_per_s, found.burst_bytes) == limit


def test_a_mistyped_member_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text('{"PerClientRateLimitBytePerSec": 5, "perClientRateBurstBytes": 6}')
    assert load_limits(file) == Limits(RateLimit())
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
        load_limits(file)


def test_an_error_of_json_is_reported_with_its_place(file: Path) -> None:
    file.write_text('{\n  "PerClientRateLimitBytesPerSec": 1000000\n  "Classes": []\n}\n')
    with pytest.raises(
        ConfigError, match="not valid JSON: line 3, column 3: Expecting ',' delimiter$"
    ):
        load_limits(file)


def test_an_error_of_json_that_python_names_with_its_place_ends_with_its_cause(file: Path) -> None:
    file.write_text('{"Classes": "')
    with pytest.raises(ConfigError, match="line 1, column 13: Unterminated string$"):
        load_limits(file)


def test_a_missing_file_is_refused_by_name(file: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"rate configuration {file}: cannot read it: No such file"
    ):
        load_limits(file)


KEY = NodePrivate.generate().public_key


def test_classes_take_what_they_do_not_name_from_the_limits_of_all_clients(file: Path) -> None:
    file.write_text(
        json.dumps(
            {
                "PerClientRateLimitBytesPerSec": 1_000_000,
                "PerClientRateBurstBytes": 200_000,
                "PerAddressConnections": 64,
                "PerAddressLoginsPerSec": 0.5,
                "Classes": [
                    {"Name": "office", "CIDRs": ["203.0.113.0/24"], "PerAddressConnections": 0},
                    {"Keys": [KEY.text], "PerClientRateLimitBytesPerSec": 0},
                    {"apps": ["ci", "cd"], "perClientRateBurstBytes": 300_000},
                ],
            }
        )
    )
    rate = RateLimit(1_000_000, 200_000)
    address = AddressLimit(64, 0.5, 20)
    assert load_limits(file) == Limits(
        rate,
        address,
        (
            ClientClass(
                "office",
                networks=(ip_network("203.0.113.0/24"),),
                rate=rate,
                address=AddressLimit(0, 0.5, 20),
            ),
            ClientClass("2", keys=frozenset({KEY.raw}), rate=RateLimit(), address=address),
            ClientClass(
                "3",
                apps=frozenset({"ci", "cd"}),
                rate=RateLimit(1_000_000, 300_000),
                address=address,
            ),
        ),
    )


def test_the_file_takes_precedence_over_the_flags_of_an_address(file: Path) -> None:
    flags = AddressLimit(10, 2.0, 30)
    file.write_text('{"PerAddressConnections": 0, "PerAddressLoginBurst": 5}')
    assert load_limits(file, flags).address == AddressLimit(0, 2.0, 5)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"PerAddressConnections": -1}, "PerAddressConnections is -1: want 0 to 1000000"),
        ({"PerAddressConnections": 1.5}, "PerAddressConnections is not a whole number"),
        ({"PerAddressLoginsPerSec": "1"}, "PerAddressLoginsPerSec is not a number"),
        ({"PerAddressLoginBurst": 0}, "PerAddressLoginBurst is 0: want 1 to 1000000"),
        ({"classes": {}}, "classes is not a list of objects"),
        ({"Classes": [1]}, "Classes is not a list of objects"),
        (
            {"Classes": [{"Apps": ["a"]}] * (MAX_CLASSES + 1)},
            "Classes has 256 classes, the limit is 255",
        ),
        ({"Classes": [{"Name": "a"}]}, "Classes 1: no condition: want Keys, Apps or CIDRs"),
        ({"Classes": [{"Apps": []}]}, "Classes 1: Apps is empty"),
        ({"Classes": [{"Apps": "a"}]}, "Classes 1: Apps is not a list of texts"),
        ({"Classes": [{"Apps": ["a"], "Name": 1}]}, "Classes 1: Name is not a text"),
        (
            {"Classes": [{"Apps": ["a"]}, {"CDIRs": ["10.0.0.0/8"]}]},
            "Classes 2: unknown member CDIRs; did you mean CIDRs?",
        ),
        (
            {"Classes": [{"Keys": ["nodekey:12"]}]},
            'Classes 1: Keys has "nodekey:12", which is not nodekey:… with 64 hex digits',
        ),
        (
            {"Classes": [{"CIDRs": ["10.0.0.1/8"]}]},
            "Classes 1: CIDRs has 10.0.0.1/8 has host bits set; want 192.0.2.0/24",
        ),
        (
            {"Classes": [{"Apps": ["a"], "CIDRs": ["10.0.0.0/8"], "PerAddressConnections": 1}]},
            "Classes 1: PerAddressConnections needs a class with CIDRs only",
        ),
    ],
)
def test_a_wrong_member_is_named_with_its_class(file: Path, document: Any, reason: str) -> None:
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as error:
        load_limits(file)
    assert str(error.value).startswith(f"rate configuration {file}: {reason}")
    assert "\n" not in str(error.value)
