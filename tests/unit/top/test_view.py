"""The lines that the view makes of figures: what is in them, and that they fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastderp.top.figures import Clients, Metrics, Rates, Reading, client_rates
from fastderp.top.view import (
    SORT_OF,
    SORTS,
    Sort,
    State,
    duration,
    line_text,
    ordered,
    scaled,
    screen,
    snapshot,
)
from tests.unit.top.test_figures import item, page, rates

TRAFFIC = SORT_OF["traffic"]


def state(n_clients: int = 3, **members: Any) -> State:
    """Return a view whose client N has moved N kB per second."""
    items = [item(n, remote=f"192.0.2.{n}:4{n:03}", rxBytes=0, txBytes=0) for n in range(n_clients)]
    later = [one | {"rxBytes": n * 2000} for n, one in enumerate(items)]
    rows = client_rates(Clients.parse([page(*items)], 10.0), Clients.parse([page(*later)], 12.0))
    shown = State("http://127.0.0.1:80", "12:30:05", rates(), rows, n_clients)
    return replace(shown, **members)


def text_of(shown: State, width: int = 80, height: int = 24) -> str:
    return "\n".join(line_text(line) for line in screen(shown, TRAFFIC, width, height, None))


def test_the_head_has_rates_and_reasons() -> None:
    text = text_of(state())
    for part in (
        ", at http://127.0.0.1:80 ",
        "12:30:05",
        "250 packets/s",
        "2.0/s",
        "dropped  25/s: write_error 15/s, queue_head 10/s",
        "up to 2.5 ms (p99)",
    ):
        assert part in text


def test_the_head_of_a_large_relay_fits_80_columns() -> None:
    large = Metrics.parse(
        "process_resident_memory_bytes 987654321\nprocess_open_fds 123456\n"
        "process_max_fds 1048576\nderp_current_connections 123456\n"
        "derp_current_home_connections 100000\nfastderp_connections_not_logged_in 12346\n"
    )
    text = text_of(state(rates=Rates.between(None, Reading(1.0, large))))
    assert "988 MB, 123k of 1.05M files" in text
    assert "123,456, 100,000 at home" in text and "12,345 before their login" in text


def test_clients_are_sorted_by_traffic() -> None:
    lines = text_of(state()).splitlines()
    [first] = [n for n, line in enumerate(lines) if line.startswith("KEY")]
    assert [line.split()[1] for line in lines[first + 1 : first + 4]] == [
        "192.0.2.2:4002",
        "192.0.2.1:4001",
        "192.0.2.0:4000",
    ]
    assert "1.00k" in lines[first + 2]


@pytest.mark.parametrize("sort", SORTS, ids=lambda sort: sort.name)
def test_every_order_takes_rows_with_unknown_values(sort: Sort) -> None:
    known = state().rows
    unknown = client_rates(None, Clients.parse([page(item(9, appName=""))], 12.0))
    rows = ordered([*unknown, *known], sort)
    assert len(rows) == 4


def test_rows_with_unknown_rates_come_last() -> None:
    unknown = client_rates(None, Clients.parse([page(item(9, rxBytes=10**12))], 12.0))
    assert ordered([*unknown, *state().rows], TRAFFIC)[-1] == unknown[0]


@pytest.mark.parametrize("trouble", ["", "http://127.0.0.1:80: connection refused " * 4])
@pytest.mark.parametrize("width", [1, 20, 40, 80, 140, 300])
@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
def test_a_screen_fills_every_terminal_exactly(width: int, height: int, trouble: str) -> None:
    lines = screen(state(30, trouble=trouble), TRAFFIC, width, height, None)
    assert len(lines) == height
    assert max(sum(len(part.text) for part in line) for line in lines) <= width


def test_the_table_has_as_many_rows_as_the_terminal() -> None:
    assert text_of(state(100), 80, 40).count("[q6urq]") == 40 - 12
    assert "28 of 100 clients" in text_of(state(100), 80, 40)


def test_a_long_address_is_cut_before_the_rates_are() -> None:
    long = client_rates(None, Clients.parse([page(item(remote="[2001:db8::1:2:3:4]:41234"))], 1.0))
    text = text_of(state(rows=long), 60)
    assert "[2001:db8::1:~" in text and "OUT B/s" in text


def test_a_wide_terminal_shows_app_and_flags() -> None:
    text = text_of(state(), 120)
    assert "ci-runner" in text and "home" in text.split("FLAGS")[1]


def test_a_wider_one_shows_drops_queue_and_round_trip_time_that_another_relay_does_not_tell() -> (
    None
):
    text = text_of(state(), 160)
    heading = text.index("DROPPED QUEUED    RTT")
    assert " 3  4.10k   23ms " in text[heading:]
    derpers = item()
    for name in ("dropped", "waitingBytes", "rttMicros"):
        del derpers[name]
    unknown = client_rates(None, Clients.parse([page(derpers)], 12.0))
    assert " -      -      - " in text_of(state(rows=unknown), 160)


def test_trouble_is_shown_and_the_previous_figures_stay() -> None:
    text = text_of(state(trouble="http://127.0.0.1:80: connection refused"))
    assert "connection refused" in text and "[q6urq]" in text


def test_a_large_relay_says_how_its_clients_were_chosen() -> None:
    assert "chosen among the 3 with the most bytes so far" in text_of(state(n_connections=5000))


def test_a_snapshot_is_plain_and_ends_with_the_clients() -> None:
    lines = [line_text(line) for line in snapshot(state(5), TRAFFIC, 80, 2)]
    assert lines[-3].startswith("KEY") and lines[-1].startswith("[q6urq]")
    assert all(line.isascii() and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (0.4, "0.4"), (9.96, "10"), (999, "999"), (999.6, "1.00k"),
        (1234, "1.23k"), (99_960, "100k"), (999_600, "1.00M"), (45.6e6, "45.6M"), (7e12, "7000G"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert scaled(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (187, "3m07s"), (18720, "5h12m"), (276_000, "3d4h"), (1e7, "115d")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
