"""Decides which clients may use the relay. PROTOCOL §8.

Key lists, the local tailscaled and an admission URL decide; each configured one must agree.
`Server(verify=…)` takes an `Admission`. While it is `watching` a server it also disconnects clients
that lose their permission: at once after a change of a list, within a minute after one at a
service. Loop thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from fastderp.errors import LoginError
from fastderp.server.admission.connected_client import ConnectedClient
from fastderp.server.admission.key_lists import KeyLists, Reading
from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.server.observe.log_throttle import LogThrottle, more_text
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.wire.keys import NodePublic
from fastderp.wire.login import ClientInfo

log: logging.Logger = logging.getLogger("fastderp")

# Interval between checks of the key files.
LISTS_POLL_S = 2.0
# Interval between two queries about a client. With a quarter of it (rounds have four parts), a
# cached answer and a slow one, a revoked client is disconnected within 60 s.
RECHECK_S = 36.0
ROUND_PARTS = 4
# Maximum of concurrent queries per round, so that logins come first.
RECHECKS_AT_ONCE = 16
# Clients revoked within this time are disconnected in one pass over all sessions.
REVOKE_BATCH_S = 0.2
# Lifetime of a cached answer, for clients that reconnect repeatedly.
REMEMBER_S = 10.0
REMEMBERED = 10_000


class Clients(Protocol):
    """The interface of a relay for admission, such as `Server`."""

    def clients(self) -> list[ConnectedClient]:
        """Return the connected clients, mesh peers left out."""

    def disconnect(self, unwanted: Callable[[ConnectedClient], bool]) -> list[ConnectedClient]:
        """Close the connections for which `unwanted` is true; return their clients."""


class Verifier(Protocol):
    """A service that verifies clients, such as `verifiers.Tailscaled`."""

    @property
    def name(self) -> str:
        """The label for counters, one word."""

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Return the verdict about the client with a key and an address, within bounded time."""

    async def close(self) -> None:
        """Close its connections."""


class Admission:
    """Decides which clients may use a relay. PROTOCOL §8.

    Args:
        lists: keys in files.
        verifiers: asked in this order, until one refuses.
        recheck_s: the verifiers are asked about every connected client again within 1.25 of this
            many seconds; 0 for never.
        own_key: returns the key of this machine's own node, which all verifiers must admit; for
            `problems`.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        lists: KeyLists | None = None,
        verifiers: Sequence[Verifier] = (),
        *,
        recheck_s: float = RECHECK_S,
        own_key: Callable[[], Awaitable[NodePublic]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lists: KeyLists = lists or KeyLists()
        self.verifiers: tuple[Verifier, ...] = tuple(verifiers)
        self.recheck_s = recheck_s
        self.problems: list[str] = []
        self._own_key = own_key
        self._clock = clock
        # (verifier, key, ip) -> (verdict, its expiry), oldest first
        self._remembered: dict[tuple[str, bytes, str], tuple[Verdict, float]] = {}
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._revoked: Counter[str] = Counter()
        self._throttle = LogThrottle(log)
        # Verifiers without an answer, and the outcome that was logged.
        self._silent: dict[str, str] = {}
        self._reload = asyncio.Event()
        # settled by the next forced reading
        self._awaited: list[asyncio.Future[None]] = []
        # (verifier, verdict) of connected clients that are no longer allowed.
        self._denied: dict[ConnectedClient, tuple[str, Verdict]] = {}
        self._revoking: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return "; ".join(filter(None, [str(self.lists), *map(str, self.verifiers)]))

    async def __call__(self, key: NodePublic, info: ClientInfo, ip: str) -> bool:
        """Admit or refuse a client that logs in: the hook of `Server`.

        Args:
            key: the client's key.
            info: the client's ClientInfo, which is ignored.
            ip: the client's address, without a port.

        Raises LoginError with the reason.
        """
        verdict = self._listed(key)
        for verifier in self.verifiers:
            if verdict.allowed:
                verdict = await self._ask(verifier, key, ip)
        if verdict.allowed and self.verifiers:
            # A list may have changed meanwhile, and its revocation does not cover this client.
            verdict = self.lists.judge(key)
        if not verdict.allowed:
            raise LoginError("denied", f"{key.short} is not allowed: {verdict.detail}")
        return True

    @contextlib.asynccontextmanager
    async def watching(self, clients: Clients) -> AsyncIterator[Admission]:
        """Follow the files and recheck the connected `clients` of a Server within the block."""
        # The thread is kept, because the system may refuse a new one later.
        reader = ThreadPoolExecutor(1, "fastderp-lists")
        tasks = [supervisor.start("admission lists", lambda: self._follow_lists(clients, reader))]
        if self.verifiers and self.recheck_s:
            tasks.append(supervisor.start("admission recheck", lambda: self._recheck(clients)))
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            reader.shutdown(wait=False, cancel_futures=True)
            if self._revoking is not None:
                self._revoking.cancel()
                self._revoking = None

    async def close(self) -> None:
        """Close the connections to the verifiers, after the last login."""
        for verifier in self.verifiers:
            await verifier.close()

    async def reload(self) -> str:
        """Read the files again now, changed or not; return what is in force.

        Raises ConfigError when a file cannot be used; the others are in force.
        """
        read: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.append(read)
        self._reload.set()
        before = self.lists.in_force
        await read
        return f"{self}{', unchanged' if self.lists.in_force == before else ''}"

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        lists = {"allow": self.lists.allow, "deny": self.lists.deny}
        return {
            "fastderp_admission_verdicts_total": dict(self._verdicts),
            "fastderp_admission_revoked_total": dict(self._revoked),
            "fastderp_admission_list_keys": {
                name: len(found.keys) for name, found in lists.items() if found
            },
            "fastderp_admission_list_refused_total": {
                name: found.n_refused for name, found in lists.items() if found
            },
        }

    # Judging

    def _listed(self, key: NodePublic) -> Verdict:
        verdict = self.lists.judge(key)
        if self.lists.in_force:
            self._verdicts["lists", verdict.outcome] += 1
        return verdict

    async def _ask(self, verifier: Verifier, key: NodePublic, ip: str) -> Verdict:
        """Return the cached answer, or ask."""
        verdict, until = self._remembered.get((verifier.name, key.raw, ip), (ALLOWED, 0.0))
        if until <= self._clock():
            verdict = await self._ask_now(verifier, key, ip)
        return verdict

    async def _ask_now(self, verifier: Verifier, key: NodePublic, ip: str) -> Verdict:
        try:
            verdict = await verifier.ask(key, ip)
        except Exception as error:
            supervisor.note(f"admission {verifier.name}", error)
            verdict = Verdict(False, "error", f"internal error in the query to {verifier.name}")
        self._verdicts[verifier.name, verdict.outcome] += 1
        self._note_silence(verifier, verdict)
        if verdict.certain:
            self._remember((verifier.name, key.raw, ip), verdict)
        elif verdict.allowed:
            self._throttle.log(
                verifier.name,
                "%s is admitted without a verdict, as configured: %s",
                key.short,
                verdict.detail,
            )
        return verdict

    def _note_silence(self, verifier: Verifier, verdict: Verdict) -> None:
        """Log when a verifier stops answering, and when it answers again."""
        logged = self._silent.get(verifier.name, "")
        outcome = "" if verdict.certain else verdict.outcome
        if outcome == logged:
            return
        # The throttle limits the lines of a verifier that answers only sometimes.
        n_held = self._throttle.n_held((verifier.name, outcome))
        if n_held is None:
            return
        self._silent[verifier.name] = outcome
        if outcome:
            log.warning(
                "admission: no answer from %s: %s; new clients are %s, connected clients stay%s",
                verifier.name,
                verdict.detail,
                "admitted as configured" if verdict.allowed else "refused",
                more_text(n_held),
            )
        else:
            log.info("admission: %s answers again%s", verifier.name, more_text(n_held))

    def _remember(self, question: tuple[str, bytes, str], verdict: Verdict) -> None:
        self._remembered.pop(question, None)
        self._remembered[question] = (verdict, self._clock() + REMEMBER_S)
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    # Revoking by lists

    async def _follow_lists(self, clients: Clients, reader: ThreadPoolExecutor) -> None:
        """Read the files when they change, and disconnect clients that the new keys exclude.

        Compares the keys in force with those of the last round, not with the last reading, and so
        detects readings by other callers.
        """
        loop = asyncio.get_running_loop()
        in_force: tuple[frozenset[bytes], ...] | None = None
        n_rounds = 0
        while True:
            if self.lists.in_force != in_force:
                # Check twice: a client judged by the previous keys may still be logging in.
                in_force, n_rounds = self.lists.in_force, 2
            if n_rounds:
                self._revoke(clients, lambda client: ("lists", self.lists.judge(client.key)))
                n_rounds -= 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reload.wait(), LISTS_POLL_S)
            force = self._reload.is_set()
            self._reload.clear()
            try:
                # A thread reads: a large file would block the loop for too long.
                readings = await loop.run_in_executor(reader, self._read_lists, force)
            except Exception:
                if force:
                    self._reload.set()
                raise
            self.lists.apply(readings)
            if force:
                self._settle(readings)

    def _settle(self, readings: list[Reading | None]) -> None:
        """Return the outcome of a forced reading to those who have asked for it."""
        errors = [reading.error for reading in readings if reading and reading.error]
        awaited, self._awaited = self._awaited, []
        for read in awaited:
            if read.done():
                continue
            if errors:
                read.set_exception(errors[0])
            else:
                read.set_result(None)

    def _read_lists(self, force: bool) -> list[Reading | None]:
        return self.lists.read(force=force)

    # Revoking by verifiers

    async def _recheck(self, clients: Clients) -> None:
        """Query every client once per round, evenly spread, to limit the load on the service."""
        while True:
            for part in range(ROUND_PARTS):
                due = {
                    client
                    for client in clients.clients()
                    if client.key.raw[0] * ROUND_PARTS >> 8 == part
                }
                await self._recheck_some(clients, due, self.recheck_s / ROUND_PARTS)
            await self.self_test()

    async def _recheck_some(
        self, clients: Clients, due: set[ConnectedClient], within_s: float
    ) -> None:
        pause_s = within_s / (len(due) + 1)
        free = asyncio.Semaphore(RECHECKS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for client in due:
                await asyncio.sleep(pause_s)
                await free.acquire()
                task = group.create_task(self._recheck_one(clients, client))
                task.add_done_callback(lambda _: free.release())
            await asyncio.sleep(pause_s)

    async def _recheck_one(self, clients: Clients, client: ConnectedClient) -> None:
        for verifier in self.verifiers:
            verdict = await self._ask_now(verifier, client.key, client.ip)
            # Without an answer the client stays: the service may be restarting.
            if verdict.certain and not verdict.allowed:
                self._deny(clients, client, verifier.name, verdict)
                return

    def _deny(self, clients: Clients, client: ConnectedClient, by: str, verdict: Verdict) -> None:
        """Disconnect a client soon, together with others: each pass checks every session."""
        self._denied[client] = (by, verdict)
        if self._revoking is None:
            self._revoking = asyncio.get_running_loop().call_later(
                REVOKE_BATCH_S,
                supervisor.guarded("admission recheck", self._revoke_denied),
                clients,
            )

    def _revoke_denied(self, clients: Clients) -> None:
        self._revoking = None
        denied, self._denied = self._denied, {}
        self._revoke(clients, lambda client: denied.get(client, ("", ALLOWED)))

    def _revoke(
        self, clients: Clients, judge: Callable[[ConnectedClient], tuple[str, Verdict]]
    ) -> None:
        """Disconnect the clients that `judge` does not allow."""
        for client in clients.disconnect(lambda client: not judge(client)[1].allowed):
            by, verdict = judge(client)
            self._revoked[by] += 1
            log.info(
                "%s is disconnected: it is no longer allowed: %s", client.key.short, verdict.detail
            )

    # Self-test

    async def self_test(self) -> list[str]:
        """Ask all verifiers about this machine's own node. PROTOCOL §6.9.

        Stores the problems in `problems`, logs the new ones, and returns all.
        """
        found = await self._test_own_node() if self._own_key else []
        for problem in found:
            if problem not in self.problems:
                log.warning("admission: %s", problem)
        self.problems = found
        return found

    async def _test_own_node(self) -> list[str]:
        assert self._own_key is not None
        try:
            key = await self._own_key()
        except Exception as error:
            return [str(error)]
        # This query is neither cached nor counted, because the node is not a client.
        verdicts = [await verifier.ask(key, "::1") for verifier in self.verifiers]
        return [
            f"this machine's own node would be refused: {verdict.detail}"
            for verdict in verdicts
            if not verdict.allowed
        ]
