"""The routing table: members, forwarders, watchers, and what a reader may still hold."""

from __future__ import annotations

import pytest

from tests.unit.dataplane.shims import routing


def key(i: int) -> bytes:
    return i.to_bytes(32)


def find(table: routing.Routing, wanted: bytes) -> tuple[int, int, int] | None:
    """Return (address, active handle, forwarder) of a key, or None."""
    table.enter(0)
    found = table.find(wanted)
    table.leave(0)
    return found


def route_of(table: routing.Routing, wanted: bytes) -> tuple[int, int, int]:
    found = find(table, wanted)
    assert found is not None
    return found


def test_thousands_of_keys_are_found_while_they_are_registered() -> None:
    table = routing.Routing()
    for i in range(1, 5001):
        assert table.register(key(i), i) == 1
    for i in range(1, 5001, 2):
        assert table.unregister(key(i), i) == set()
    for i in range(1, 5001):
        found = find(table, key(i))
        assert (found is None) == (i % 2 == 1)
        assert found is None or found[1] == i
    assert table.counts == (2500, 2500, 0)


def test_the_last_to_send_is_active_and_the_previous_one_succeeds_it() -> None:
    table = routing.Routing()
    assert [table.register(key(1), handle) for handle in (11, 12, 13)] == [1, 2, 3]
    table.speak(key(1), 12)
    assert route_of(table, key(1))[1] == 12
    assert table.unregister(key(1), 12) is None
    assert route_of(table, key(1))[1] == 13
    assert table.members(key(1)) == [11, 13]
    assert table.counts == (1, 1, 1)


def test_a_forwarder_serves_a_key_when_its_last_session_leaves() -> None:
    table = routing.Routing()
    table.register(key(1), 11)
    table.add_forwarder(key(1), 901)
    table.add_forwarder(key(1), 902)
    assert table.unregister(key(1), 11) is None, "still in the region: no departure"
    assert route_of(table, key(1))[1:] == (0, 901)
    table.remove_forwarder(key(1), 901)
    assert route_of(table, key(1))[1:] == (0, 902)
    assert table.remove_forwarder(key(1), 902) == set()
    assert find(table, key(1)) is None


def test_watchers_are_returned_once_with_the_departure() -> None:
    table = routing.Routing()
    table.register(key(1), 11)
    table.alive.update(range(100, 200))
    for handle in (*range(100, 200), *range(100, 150)):
        table.add_gone_watcher(key(1), handle)
    assert table.gone_watchers_bytes > 0
    assert table.unregister(key(1), 11) == set(range(100, 200))
    assert table.gone_watchers_bytes == 0


def test_watchers_that_have_left_make_room_for_others() -> None:
    table = routing.Routing()
    table.register(key(1), 11)
    for handle in range(100, 10_000):
        table.alive.clear()
        table.alive.add(handle)
        table.add_gone_watcher(key(1), handle)
    assert table.gone_watchers_bytes < 4096
    table.unregister(key(1), 11)


def test_watchers_beyond_the_cap_are_not_recorded() -> None:
    table = routing.Routing(cap_bytes=4096)
    table.register(key(1), 11)
    table.alive.update(range(100, 10_000))
    for handle in range(100, 10_000):
        table.add_gone_watcher(key(1), handle)
    assert table.gone_watchers_bytes <= 4096
    told = table.unregister(key(1), 11)
    assert told is not None and 100 < len(told) <= 512, "8 bytes each"
    assert told < table.alive


@pytest.mark.parametrize("n_others", [1, 3000])
def test_a_route_that_a_reader_holds_is_not_used_again_until_the_reader_leaves(
    n_others: int,
) -> None:
    table = routing.Routing()
    table.register(key(1), 11)
    table.enter(1)
    found = table.find(key(1))
    assert found is not None
    held, _, _ = found
    table.unregister(key(1), 11)
    for i in range(2, 2 + n_others):
        table.register(key(i), i)
        assert route_of(table, key(i))[0] != held
    assert table.n_waiting == 1
    table.leave(1)
    table.register(key(n_others + 2), 1)
    assert table.n_waiting == 0
    assert route_of(table, key(n_others + 2))[0] == held
