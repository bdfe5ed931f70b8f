"""Lists and verifiers together: verdicts, cache, disconnects. PROTOCOL §8, RELIABILITY F30."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.errors import ConfigError, LoginError
from fastderp.server.admission import admission
from fastderp.server.admission.admission import Admission
from fastderp.server.admission.connected_client import ConnectedClient
from fastderp.server.admission.key_lists import KeyLists, Reading
from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.server.observe import supervisor as supervisor_module
from fastderp.server.observe.supervisor import supervisor
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo

ANN, BOB, EVE = (NodePrivate.generate().public_key for _ in range(3))
NO = Verdict(False, "denied", "says no")
SILENCE = Verdict(False, "timeout", "no answer")
IP = "192.0.2.7"


class Oracle:
    """A verifier with the test's verdicts."""

    def __init__(self, name: str = "oracle") -> None:
        self.name = name
        self.verdict = ALLOWED
        self.asked: list[tuple[NodePublic, str]] = []

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        self.asked.append((key, ip))
        await asyncio.sleep(0)
        return self.verdict

    async def close(self) -> None:
        pass


class Connected:
    """The relay's side: the connected keys."""

    def __init__(self, *clients: ConnectedClient) -> None:
        self.connected = list(clients)

    def clients(self) -> list[ConnectedClient]:
        return list(self.connected)

    def disconnect(self, unwanted: Callable[[ConnectedClient], bool]) -> list[ConnectedClient]:
        closed = [client for client in self.connected if unwanted(client)]
        self.connected = [client for client in self.connected if client not in closed]
        return closed


async def is_let_in(asked: Admission, key: NodePublic = ANN, ip: str = IP) -> bool:
    try:
        return await asked(key, ClientInfo(), ip)
    except LoginError as error:
        assert key.short in str(error)
        return False


def internal_errors(task: str) -> int:
    """Return the count of unexpected exceptions of background tasks."""
    errors = supervisor.metrics()["fastderp_internal_errors_total"]
    assert isinstance(errors, dict)
    return int(errors.get(task, 0))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def lists(
    tmp_path: Path, *, allow: tuple[NodePublic, ...] = (), deny: tuple[NodePublic, ...] = ()
) -> KeyLists:
    paths: list[Path | None] = []
    for name, keys in (("allow", allow), ("deny", deny)):
        path = tmp_path / name
        path.write_text("".join(f"{key.text}\n" for key in keys))
        paths.append(path if keys else None)
    return KeyLists.load(*paths)


async def test_every_configured_check_must_agree(tmp_path: Path) -> None:
    first, second = Oracle("first"), Oracle("second")
    both = Admission(lists(tmp_path, deny=(EVE,)), [first, second], clock=lambda: 0.0)
    assert await is_let_in(both, ANN)
    second.verdict = NO
    assert not await is_let_in(both, BOB)
    first.verdict, second.verdict = SILENCE, ALLOWED
    assert not await is_let_in(both, BOB, "192.0.2.8")
    assert not await is_let_in(both, EVE)
    assert both.metrics()["fastderp_admission_verdicts_total"] == {
        ("lists", "allowed"): 3, ("lists", "denied"): 1, ("first", "allowed"): 2, ("first",
        "timeout"): 1,
        ("second", "allowed"): 1, ("second", "denied"): 1,
    }  # fmt: skip


async def test_verifiers_are_not_asked_about_keys_that_the_lists_refuse(tmp_path: Path) -> None:
    oracle = Oracle()
    assert not await is_let_in(Admission(lists(tmp_path, allow=(ANN,)), [oracle]), BOB)
    assert oracle.asked == []


async def test_a_repeated_query_is_answered_from_the_cache() -> None:
    now = 100.0
    oracle = Oracle()
    asked = Admission(None, [oracle], clock=lambda: now)
    for _ in range(3):
        assert await is_let_in(asked)
    assert len(oracle.asked) == 1
    await is_let_in(asked, ANN, "192.0.2.8")
    await is_let_in(asked, BOB)
    assert len(oracle.asked) == 3
    now += admission.REMEMBER_S
    oracle.verdict = NO
    assert not await is_let_in(asked)


async def test_a_failed_query_is_not_cached() -> None:
    oracle = Oracle()
    asked = Admission(None, [oracle])
    for verdict, let_in in (
        (SILENCE, False),
        (Verdict(True, "fail_open", "down"), True),
        (NO, False),
    ):
        oracle.verdict = verdict
        assert await is_let_in(asked) is let_in


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "REMEMBERED", 10)
    asked = Admission(None, [Oracle()])
    for number in range(50):
        await is_let_in(asked, ANN, f"192.0.2.{number}")
    assert len(asked._remembered) == 10


async def test_a_verifier_that_raises_admits_no_client(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Oracle):
        async def ask(self, key: NodePublic, ip: str) -> Verdict:
            raise KeyError("oops")

    assert not await is_let_in(Admission(None, [Broken()]))
    assert "internal error in admission oracle: 'oops'" in caplog.text


async def test_an_admission_without_an_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    oracle = Oracle()
    oracle.verdict = Verdict(True, "fail_open", "example.com: no answer")
    asked = Admission(None, [oracle])
    for _ in range(20):
        assert await is_let_in(asked)
    assert (
        caplog.text.count("is admitted without a verdict, as configured: example.com: no answer")
        == 1
    )


async def test_a_key_that_leaves_the_list_is_disconnected_at_once_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LISTS_POLL_S", 0.01)
    relay = Connected(
        ConnectedClient(ANN, IP), ConnectedClient(BOB, IP), ConnectedClient(BOB, "192.0.2.8")
    )
    asked = Admission(lists(tmp_path, allow=(ANN, BOB)))
    async with asked.watching(relay):
        (tmp_path / "allow").write_text("")
        await until(
            lambda: asked.metrics()["fastderp_admission_list_refused_total"] == {"allow": 1}
        )
        assert len(relay.connected) == 3
        (tmp_path / "allow").write_text(ANN.text)
        await until(lambda: relay.connected == [ConnectedClient(ANN, IP)])
    assert asked.metrics()["fastderp_admission_revoked_total"] == {"lists": 2}
    assert asked.metrics()["fastderp_admission_list_keys"] == {"allow": 1}


async def test_a_reload_does_not_wait_for_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LISTS_POLL_S", 3600)
    relay = Connected(ConnectedClient(EVE, IP))
    asked = Admission(lists(tmp_path, deny=(BOB,)))
    async with asked.watching(relay):
        (tmp_path / "deny").write_text(EVE.text)
        assert await asked.reload() == "1 keys denied"
        await until(lambda: relay.connected == [])
        assert await asked.reload() == "1 keys denied, unchanged"
        (tmp_path / "deny").write_text("nobody")
        with pytest.raises(ConfigError, match="deny, line 1"):
            await asked.reload()


async def test_a_key_denied_during_the_query_is_refused(
    tmp_path: Path,
) -> None:
    class Slow(Oracle):
        async def ask(self, key: NodePublic, ip: str) -> Verdict:
            (tmp_path / "deny").write_text(ANN.text)
            found.reload()
            return ALLOWED

    found = lists(tmp_path, deny=(EVE,))
    assert not await is_let_in(Admission(found, [Slow()]), ANN)


async def test_an_unexpected_error_of_the_list_watch_is_counted_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "LISTS_POLL_S", 0.01)
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 0.01)
    n_before = internal_errors("admission lists")
    relay = Connected(ConnectedClient(EVE, IP), ConnectedClient(ANN, IP))
    asked = Admission(lists(tmp_path, deny=(BOB,)))
    failures = iter([KeyError("oops"), MemoryError(), RuntimeError("can't start new thread")])
    read = KeyLists.read

    def failing(self: KeyLists, *, force: bool = False) -> list[Reading | None]:
        for failure in failures:
            raise failure
        return read(self, force=force)

    monkeypatch.setattr(KeyLists, "read", failing)
    async with asked.watching(relay):
        (tmp_path / "deny").write_text(EVE.text)
        await until(lambda: relay.connected == [ConnectedClient(ANN, IP)])
    assert internal_errors("admission lists") == n_before + 3
    assert (
        "internal error in admission lists: 'oops'; admission lists starts again in" in caplog.text
    )


async def test_a_list_read_elsewhere_still_disconnects_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LISTS_POLL_S", 0.01)
    relay = Connected(ConnectedClient(EVE, IP), ConnectedClient(ANN, IP))
    asked = Admission(lists(tmp_path, deny=(BOB,)))
    async with asked.watching(relay):
        (tmp_path / "deny").write_text(EVE.text)
        asked.lists.reload()
        assert not await is_let_in(asked, EVE)
        await until(lambda: relay.connected == [ConnectedClient(ANN, IP)])


async def test_a_failed_disconnect_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Connected):
        n_failures = 2

        def disconnect(self, unwanted: Callable[[ConnectedClient], bool]) -> list[ConnectedClient]:
            if self.connected and unwanted(self.connected[0]) and self.n_failures:
                self.n_failures -= 1
                raise OSError("not now")
            return super().disconnect(unwanted)

    monkeypatch.setattr(admission, "LISTS_POLL_S", 0.01)
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 0.01)
    relay = Failing(ConnectedClient(EVE, IP))
    asked = Admission(lists(tmp_path, deny=(BOB,)))
    async with asked.watching(relay):
        (tmp_path / "deny").write_text(EVE.text)
        await until(lambda: relay.connected == [])


async def test_a_client_that_logs_in_during_a_change_of_the_list_is_disconnected_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LISTS_POLL_S", 0.01)
    relay = Connected(ConnectedClient(EVE, IP))
    asked = Admission(lists(tmp_path, deny=(BOB,)))
    async with asked.watching(relay):
        assert await is_let_in(asked, EVE)
        (tmp_path / "deny").write_text(EVE.text)
        await until(lambda: relay.connected == [])
        relay.connected.append(ConnectedClient(EVE, "192.0.2.8"))
        await until(lambda: relay.connected == [])


async def test_the_repeated_check_survives_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 0.01)
    relay = Connected(ConnectedClient(ANN, IP), ConnectedClient(BOB, IP))
    n_before = internal_errors("admission recheck")
    clients = relay.clients
    failures = iter([KeyError("oops"), OSError("oops")])

    def failing() -> list[ConnectedClient]:
        for failure in failures:
            raise failure
        return clients()

    monkeypatch.setattr(relay, "clients", failing)
    oracle = Oracle()
    oracle.verdict = NO
    async with Admission(None, [oracle], recheck_s=0.04).watching(relay):
        await until(lambda: relay.connected == [])
    assert internal_errors("admission recheck") == n_before + 2


async def test_one_line_gives_the_cause_of_missing_answers_and_one_their_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    oracle = Oracle()
    oracle.verdict = Verdict(False, "not_ready", "tailscaled: its state is Starting, not Running")
    asked = Admission(None, [oracle])
    for _ in range(5):
        assert not await is_let_in(asked)
    oracle.verdict = ALLOWED
    for _ in range(5):
        assert await is_let_in(asked)
    assert [record.getMessage() for record in caplog.records] == [
        "admission: no answer from oracle: tailscaled: its state is Starting, not Running;"
        " new clients are refused, connected clients stay",
        "admission: oracle answers again",
    ]


async def test_connected_clients_are_checked_again_and_revoked_ones_closed() -> None:
    relay = Connected(ConnectedClient(ANN, IP), ConnectedClient(BOB, IP))
    oracle = Oracle()
    asked = Admission(None, [oracle], recheck_s=0.04)
    async with asked.watching(relay):
        await until(lambda: {(ANN, IP), (BOB, IP)} <= set(oracle.asked))
        oracle.verdict = SILENCE
        n_asked = len(oracle.asked)
        await until(lambda: len(oracle.asked) > n_asked + 4)
        assert len(relay.connected) == 2
        oracle.verdict = NO
        await until(lambda: relay.connected == [])
    assert asked.metrics()["fastderp_admission_revoked_total"] == {"oracle": 2}


async def test_repeated_checks_are_spread_over_the_round() -> None:
    clients = [
        ConnectedClient(NodePublic(bytes([number]) + bytes(31)), IP) for number in range(256)
    ]
    oracle = Oracle()
    asked = Admission(None, [oracle], recheck_s=1000)
    part = asyncio.create_task(asked._recheck_some(Connected(), set(clients), 0.5))
    await until(lambda: oracle.asked)
    assert len(oracle.asked) < 128
    await part
    assert len(oracle.asked) == 256


async def test_the_self_test_reports_a_verifier_that_refuses_our_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def own_key() -> NodePublic:
        return ANN

    async def absent() -> NodePublic:
        raise ConnectionError("no tailscaled")

    oracle = Oracle()
    asked = Admission(None, [oracle], own_key=own_key)
    assert await asked.self_test() == []
    assert oracle.asked == [(ANN, "::1")]
    oracle.verdict = NO
    for _ in range(2):
        assert await asked.self_test() == ["this machine's own node would be refused: says no"]
    assert len(caplog.records) == 1
    assert await Admission(None, [oracle], own_key=absent).self_test() == ["no tailscaled"]
