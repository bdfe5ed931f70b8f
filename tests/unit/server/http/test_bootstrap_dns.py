"""`/bootstrap-dns`: answers and counters, with a nameserver on loopback. PROTOCOL §9.6, §20."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable

import pytest

from fastderp.server.http import bootstrap_dns as bootstrap
from fastderp.server.http.bootstrap_dns import (
    BootstrapDns,
    Unpublished,
    checked_name,
    fraction,
    is_chosen,
)
from fastderp.server.http.message import Request, Response
from fastderp.server.net.resolver import SystemResolver
from tests.kit.nameserver import FAILURE, SILENCE, Nameserver, Records, nameserver

BOTH = ["A 192.0.2.1", "AAAA 2001:db8::1"]
CLIENT = "192.0.2.200"


class Answers:
    """A resolver that answers from a table."""

    def __init__(
        self, addresses: dict[str, list[str]], texts: dict[str, str] | None = None
    ) -> None:
        self.known = addresses
        self.texts = texts or {}

    async def addresses(self, name: str) -> list[str]:
        return list(self.known[name])

    async def text(self, name: str) -> str:
        return self.texts[name]


def resolver_of(server: Nameserver) -> SystemResolver:
    return SystemResolver("127.0.0.1", server.port)


def ask(dns: BootstrapDns, query: str = "", ip: str = CLIENT) -> Response:
    return dns.respond(
        Request("GET", "/bootstrap-dns", "/bootstrap-dns", query, "1.1", [], remote=(ip, 1))
    )


def told(dns: BootstrapDns, name: str = "", ip: str = CLIENT) -> dict[str, list[str]]:
    """Return the answer to a client's query for a name."""
    found: dict[str, list[str]] = json.loads(ask(dns, f"q={name}" if name else "", ip).body)
    return found


def counted(dns: BootstrapDns) -> dict[str, object]:
    """Return the counters that are not zero, without their common prefix."""
    return {
        name.removeprefix("bootstrap_dns_"): value for name, value in dns.metrics().items() if value
    }


async def resolved(
    records: Records, published: Iterable[str] = (), unpublished: Iterable[str] = ()
) -> BootstrapDns:
    """Look names up once, at a nameserver with these records."""
    with nameserver(records) as server:
        dns = BootstrapDns(
            list(published), [Unpublished.parse(text) for text in unpublished], resolver_of(server)
        )
        await dns.refresh()
        return dns


# Published names


async def test_published_names_are_given_with_the_addresses_of_both_families_and_sorted() -> None:
    records: Records = {"b.example.com": BOTH, "a.example.com": ["A 192.0.2.3"]}
    dns = await resolved(records, ["b.example.com", "a.example.com"])
    response = ask(dns)
    assert response.status == 200
    assert response.content_type == "application/json"
    assert response.close
    assert ("X-Frame-Options", "DENY") in response.headers
    found = json.loads(response.body)
    assert list(found) == ["a.example.com", "b.example.com"]
    assert sorted(found["b.example.com"]) == ["192.0.2.1", "2001:db8::1"]
    assert response.body.startswith(
        b'{\n\t"a.example.com": [\n\t\t"192.0.2.3"\n\t],\n\t"b.example.com": ['
    )


def test_without_names_the_answer_is_empty_and_counted() -> None:
    dns = BootstrapDns()
    assert ask(dns).body == b""
    assert ask(dns, "q=login.example.com").body == b""
    assert counted(dns) == {"requests": 2, "unpublished_misses": 1, "queried_domains": 1}


async def test_one_family_is_enough_and_its_absence_is_not_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dns = await resolved({"six.example.com": ["AAAA 2001:db8::6"]}, ["six.example.com"])
    assert told(dns) == {"six.example.com": ["2001:db8::6"]}
    assert not caplog.records


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (None, "there is no such name"),
        (["TXT x"], "it has no A record"),
        (FAILURE, "the nameserver cannot answer"),
        ("no listener", "the nameserver does not answer"),
    ],
)
async def test_a_name_without_an_answer_is_left_out_and_logged(
    records: str | list[str] | None,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: Records = {"good.example.com": BOTH}
    if records is not None:
        known["bad.example.com"] = records
    if records == "no listener":
        known["bad.example.com"] = SILENCE
        patched = SystemResolver._resolver

        def hasty(self: SystemResolver) -> object:
            made = patched(self)
            made.lifetime = 1.0
            return made

        monkeypatch.setattr(SystemResolver, "_resolver", hasty)
    caplog.set_level(logging.WARNING, "fastderp")
    dns = await resolved(known, ["bad.example.com", "good.example.com"])
    assert list(told(dns)) == ["good.example.com"]
    assert caplog.messages == [f"bootstrap DNS: bad.example.com is left out: {why}"]


async def test_a_name_that_takes_too_long_does_not_delay_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Answers):
        async def addresses(self, name: str) -> list[str]:
            if name == "slow.example.com":
                await asyncio.Event().wait()
            return await super().addresses(name)

    monkeypatch.setattr(bootstrap, "BUDGET_S", 0.05)
    dns = BootstrapDns(
        ["slow.example.com", "good.example.com"], (), Stuck({"good.example.com": ["192.0.2.1"]})
    )
    await dns.refresh()
    assert told(dns) == {"good.example.com": ["192.0.2.1"]}
    assert "slow.example.com is left out: no answer in time" in caplog.text


async def test_the_next_lookup_replaces_all_answers() -> None:
    with nameserver({"a.example.com": BOTH, "b.example.com": BOTH}) as server:
        dns = BootstrapDns(["a.example.com", "b.example.com"], (), resolver_of(server))
        await dns.refresh()
        server.records = {"b.example.com": ["A 192.0.2.9"]}
        await dns.refresh()
    assert told(dns) == {"b.example.com": ["192.0.2.9"]}


async def test_addresses_are_shuffled_at_every_lookup() -> None:
    addresses = [f"192.0.2.{number}" for number in range(64)]
    dns = BootstrapDns(["a.example.com"], (), Answers({"a.example.com": addresses}))
    orders = set()
    for _ in range(3):
        await dns.refresh()
        assert sorted(told(dns)["a.example.com"]) == sorted(addresses)
        orders.add(ask(dns).body)
    assert len(orders) == 3


async def test_names_are_looked_up_at_once_and_the_task_ends_with_the_relay() -> None:
    with nameserver({"a.example.com": BOTH}) as server:
        async with BootstrapDns(["a.example.com"], (), resolver_of(server)).running() as dns:
            async with asyncio.timeout(10):
                while not ask(dns).body:
                    await asyncio.sleep(0.002)
            assert told(dns)
    assert len(asyncio.all_tasks()) == 1


# Unpublished names


async def test_an_unpublished_name_is_given_alone_and_only_on_request() -> None:
    dns = await resolved(
        {"open.example.com": BOTH, "hidden.example.com": ["A 192.0.2.7"]},
        ["open.example.com"],
        ["hidden.example.com"],
    )
    assert told(dns, "hidden.example.com") == {"hidden.example.com": ["192.0.2.7"]}
    for name in (
        "",
        "open.example.com",
        "other.example.com",
        "HIDDEN.example.com",
        "hidden.example.com.",
    ):
        assert list(told(dns, name)) == ["open.example.com"]
    assert counted(dns) == {
        "requests": 6,
        "published_hits": 1,
        "unpublished_hits": 1,
        "unpublished_misses": 3,
        "queried_domains": 5,
    }


async def test_an_unpublished_name_without_addresses_is_a_miss_and_gets_the_published_names() -> (
    None
):
    dns = BootstrapDns(
        ["open.example.com", "empty.example.com"],
        [Unpublished("hidden.example.com")],
        Answers(
            {"open.example.com": ["192.0.2.1"], "empty.example.com": [], "hidden.example.com": []}
        ),
    )
    await dns.refresh()
    assert told(dns, "hidden.example.com") == {
        "open.example.com": ["192.0.2.1"],
        "empty.example.com": [],
    }
    told(dns, "empty.example.com")
    assert counted(dns) == {
        "requests": 2,
        "unpublished_misses": 1,
        "published_misses": 1,
        "queried_domains": 2,
    }


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ('TXT "100"', True),
        ('TXT "10" "0"', True),
        ('TXT "0"', False),
        ('TXT "x"', False),
        ("A 192.0.2.1", False),
    ],
)
async def test_the_rollouts_record_decides_whether_an_unpublished_name_is_given(
    text: str, is_told: bool
) -> None:
    dns = await resolved(
        {"hidden.example.com": BOTH, "rollout.example.com": [text]},
        (),
        ["hidden.example.com/rollout.example.com"],
    )
    assert bool(ask(dns, "q=hidden.example.com").body) is is_told
    assert dns.metrics()["bootstrap_dns_unpublished_hits"] == 1
    assert dns.metrics()["bootstrap_dns_unpublished_percent_misses"] == (0 if is_told else 1)


async def test_half_a_rollout_reaches_the_clients_of_the_published_sample() -> None:
    dns = await resolved(
        {"hidden.example.com": BOTH, "rollout.example.com": ['TXT "50"']},
        (),
        ["hidden.example.com/rollout.example.com"],
    )
    reached = [
        bool(ask(dns, "q=hidden.example.com", f"1.2.3.{last}").body) for last in range(4, 11)
    ]
    assert reached == [True, True, False, True, False, True, True]
    assert dns.metrics()["bootstrap_dns_unpublished_percent_misses"] == 2


def test_distinct_requested_names_are_counted_up_to_a_limit() -> None:
    dns = BootstrapDns()
    for number in range(bootstrap.QUERIED_LIMIT):
        ask(dns, f"q=name{number}")
        ask(dns, f"q=name{number}")
    ask(dns, "q=" + "x" * 10_000)
    assert dns.metrics()["bootstrap_dns_queried_domains"] == bootstrap.QUERIED_LIMIT
    ask(dns, "q=one-more")
    assert dns.metrics()["bootstrap_dns_queried_domains"] == 0


# The gate


def test_zero_and_one_hundred_percent_need_no_address() -> None:
    assert not is_chosen("nonsense", 0.0)
    assert is_chosen("nonsense", 1.0)
    assert not is_chosen("nonsense", 0.5)


@pytest.mark.parametrize(
    ("last", "number"),
    [(4, 0.0687), (5, 0.0175), (6, 0.8583), (7, 0.4065), (8, 0.8468), (9, 0.0112), (10, 0.2941)],
)
def test_an_address_has_the_same_number_at_every_relay(last: int, number: float) -> None:
    for ip in (f"1.2.3.{last}", f"::ffff:1.2.3.{last}"):
        assert not is_chosen(ip, number - 0.0001)
        assert is_chosen(ip, number + 0.0001)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_addresses_is_that_share_of_clients(share: float) -> None:
    chosen = sum(is_chosen(f"10.7.{number >> 8}.{number & 255}", share) for number in range(65536))
    assert abs(chosen / 65536 - share) < 0.005


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_gets_a_new_decision_each_time(ip: str) -> None:
    assert {is_chosen(ip, 0.5) for _ in range(200)} == {True, False}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("0", 0.0),
        ("7", 0.07),
        ("100", 1.0),
        ("101", 0.0),
        ("-1", 0.0),
        ("", 0.0),
        ("50%", 0.0),
        ("٥", 0.0),
    ],
)
def test_a_percentage_is_read_strictly(text: str, share: float) -> None:
    assert fraction(text) == share


@pytest.mark.parametrize(
    "text", ["", "a b", "a..b", ".a", "a/b/c", "a/", "/a", "x" * 64, "a." * 127 + "aa", "ä.example"]
)
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="want a host name"):
        Unpublished.parse(text)


def test_a_name_may_end_with_a_dot_and_have_underscores() -> None:
    assert checked_name("_rollout.example.com.") == "_rollout.example.com."
