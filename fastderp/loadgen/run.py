"""One run of one scenario against one relay: log in, warm up, measure, drain.

The caller's thread waits and reports progress; the engine runs in its own thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fastderp.loadgen.connect import Crowd, Joined, Target
from fastderp.loadgen.engine import Engine
from fastderp.loadgen.process import Processes
from fastderp.loadgen.result import Latency, RelayUse, Result, fairness
from fastderp.loadgen.scenario import Scenario

MAX_S = 7 * 86400.0  # of each period
DRAIN_LIMIT_S = 1.0
# Seconds for the relays of one region to exchange presence; they need far less.
PRESENCE_S = 1.0
SETTLED = 1.005  # times the memory before the load: the natural variation of resident memory
SETTLE_LOOK_S = 0.5
PROGRESS_EVERY_S = 0.25

Progress = Callable[[str, float], None]
"""Called with the current phase and its progress, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The durations of a run, in seconds.

    `settle_s` is how long clients stay idle before the load, and the longest wait after it until
    the relay's memory is back at the level of that time.
    """

    warm_up_s: float = 0.5
    measure_s: float = 3.0
    settle_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.warm_up_s <= MAX_S and 0 < self.measure_s <= MAX_S):
            raise ValueError(
                f"cannot warm up {self.warm_up_s:g} s and measure {self.measure_s:g} s; the most is "
                f"{MAX_S:g} s"
            )
        if not 0 <= self.settle_s <= MAX_S:
            raise ValueError(f"cannot wait {self.settle_s:g} s for memory; the most is {MAX_S:g} s")


@dataclass(slots=True)
class _Measured:
    """The outcome of the engine's thread."""

    cpu_s: float = 0.0
    load_cpu_s: float = 0.0
    error: BaseException | None = None


def run(
    target: Target,
    scenario: Scenario,
    timing: Timing = Timing(),
    *,
    to: Target | None = None,
    pids: Sequence[int] = (),
    verify: bool = False,
    seed: int = 0,
    sources: Sequence[str] = (),
    on_progress: Progress = lambda what, share: None,
) -> Result:
    """Run `scenario` against `target` and return the result.

    `to` is another relay of the same region, where clients that only receive log in; `pids` are the
    relays' processes, whose CPU time and memory are added up; `verify` compares every payload byte;
    `sources` are the local addresses to connect from. Raises DialError when clients cannot log in,
    ProcessLookupError when a process does not exist, ValueError for sizes that cannot be sent.
    KeyboardInterrupt ends a run cleanly.
    """
    relay = Processes(pids) if pids else None
    rss_before = relay.rss_kib() if relay else 0
    n_clients = scenario.n_clients + scenario.idle
    on_progress("preparing", 0.0)
    there = _only_receivers(scenario) if to is not None else set()
    crowd = _crowd(target, n_clients - len(there), scenario, sources)
    beyond = _crowd(to, len(there), scenario, sources) if to is not None else None
    cpu_before = relay.cpu_s() if relay else 0.0
    joined = crowd.log_in(lambda n: on_progress("logging in", n / n_clients))
    if beyond is not None:
        joined = _joined_beyond(joined, beyond, there)
    login_cpu_s = relay.cpu_s() - cpu_before if relay else 0.0
    rss_connected = relay.rss_kib() if relay else 0
    if to is not None:
        time.sleep(PRESENCE_S)
    rss_idle = _idle(relay, timing.settle_s, on_progress) if relay else 0

    cipher = joined[0].records.suite if joined[0].records else ""
    engine = _engine(joined, scenario, verify, seed)
    try:
        with _Storm(target, scenario, sources) as storm:
            measured = _drive(engine, timing, relay, storm, on_progress)
        totals = engine.totals()
        use = None
        if relay:
            rss_after = relay.rss_kib()
            settle_s = _settle(relay, rss_idle, timing.settle_s, on_progress)
            use = RelayUse(
                cpu_us_per_packet=_ratio(measured.cpu_s * 1e6, totals["delivered"]),
                cpu_share=measured.cpu_s / totals["seconds"],
                cpu_us_per_login=login_cpu_s * 1e6 / n_clients,
                rss_before_kib=rss_before,
                rss_connected_kib=rss_connected,
                rss_idle_kib=rss_idle,
                rss_after_kib=rss_after,
                rss_settled_kib=relay.rss_kib(),
                settle_s=settle_s,
            )
        return Result(
            url=target.url,
            scenario=asdict(scenario),
            n_clients=n_clients,
            cipher=cipher,
            seconds=totals["seconds"],
            sent=totals["sent"],
            delivered=totals["delivered"],
            lost=totals["lost"],
            corrupt=totals["corrupt"],
            unexpected=totals["unexpected"],
            connections_lost=totals["connections_lost"],
            packets_per_s=totals["delivered"] / totals["seconds"],
            mbit_per_s=totals["delivered_bytes"] * 8e-6 / totals["seconds"],
            loss=_ratio(totals["lost"], totals["sent"]) or 0.0,
            fairness=fairness(engine.delivered_by_flow()),
            latency=_latency(engine, totals["latency_max_ns"]),
            logins_per_s=crowd.logins_per_s,
            storm_logins_per_s=storm.logins_per_s,
            load_cpu_share=measured.load_cpu_s / totals["seconds"],
            relay=use,
        )
    finally:
        engine.close()


def _only_receivers(scenario: Scenario) -> set[int]:
    flows = scenario.flows()
    found = {target for _, target in flows} - {source for source, _ in flows}
    if not found:
        raise ValueError(
            f"{scenario.name}: every client sends, so none can log in at the second relay"
        )
    return found


def _joined_beyond(here: list[Joined], beyond: Crowd, there: set[int]) -> list[Joined]:
    """Log the clients `there` in and return all clients in the scenario's order."""
    try:
        others = iter(beyond.log_in())
    except BaseException:
        for connection in here:
            connection.close()
        raise
    ours = iter(here)
    return [next(others if index in there else ours) for index in range(len(here) + len(there))]


def _engine(joined: Sequence[Joined], scenario: Scenario, verify: bool, seed: int) -> Engine:
    try:
        return Engine(
            joined,
            scenario.flows(),
            sizes=scenario.sizes,
            window=scenario.window,
            rate=scenario.rate,
            in_a_row=scenario.in_a_row,
            slow=scenario.slow_readers(),
            slow_bytes_per_s=scenario.slow_kib_per_s * 1024,
            joined_records=scenario.joined_records,
            busy_wait=scenario.busy_wait,
            verify=verify,
            seed=seed,
        )
    except BaseException:
        for connection in joined:
            connection.close()
        raise


def _crowd(target: Target, n: int, scenario: Scenario, sources: Sequence[str]) -> Crowd:
    return Crowd(
        target,
        n,
        sources=sources,
        at_once=scenario.at_once,
        fast_start=scenario.fast_start,
        busy_wait=scenario.busy_wait,
    )


class _Storm:
    """Clients that log in while the load is measured and stay connected until it ends.

    Its thread yields to the load's thread, so that the measurement shows the storm's effect on the
    relay. Leaving the context waits for the thread.
    """

    def __init__(self, target: Target, scenario: Scenario, sources: Sequence[str]) -> None:
        self._thread = threading.Thread(target=self._log_in, name="storm")
        self._joined: Sequence[Joined] = ()
        self._error: BaseException | None = None
        self._crowd: Crowd | None = None
        if scenario.storm:
            self._crowd = Crowd(target, scenario.storm, sources=sources, rate=scenario.storm_rate)

    @property
    def logins_per_s(self) -> float:
        """The rate of the storm's logins; 0 without a storm."""
        return self._crowd.logins_per_s if self._crowd else 0.0

    def start(self) -> None:
        """Start the storm, unless the scenario has no storm."""
        if self._crowd:
            self._thread.start()

    def _log_in(self) -> None:
        assert self._crowd is not None
        # A niced thread keeps the core for milliseconds; a thread under SCHED_IDLE yields as soon
        # as the load's thread is ready.
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        try:
            self._joined = self._crowd.log_in()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> _Storm:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._crowd and failure:
            self._crowd.stop()
        if self._thread.ident:
            self._thread.join()
        for connection in self._joined:
            connection.close()
        if self._error:
            raise self._error


def _idle(relay: Processes, seconds: float, on_progress: Progress) -> int:
    """Leave the relay idle for `seconds`; return its memory at the end, in KiB."""
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        on_progress("idle", 1 - left_s / seconds)
        time.sleep(min(left_s, SETTLE_LOOK_S))
    return relay.rss_kib()


def _settle(relay: Processes, wanted_kib: int, limit_s: float, on_progress: Progress) -> float:
    """Wait up to `limit_s` for the relay's memory to be back at `wanted_kib`; return the seconds."""
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < limit_s:
        if relay.rss_kib() <= wanted_kib * SETTLED:
            break
        on_progress("settling", waited_s / limit_s)
        time.sleep(SETTLE_LOOK_S)
    return waited_s


def _drive(
    engine: Engine, timing: Timing, relay: Processes | None, storm: _Storm, on_progress: Progress
) -> _Measured:
    """Run the phases in a thread; report progress and handle an interrupt in this one."""
    measured = _Measured()

    def phases() -> None:
        try:
            engine.warm_up(timing.warm_up_s)
            cpu_before = relay.cpu_s() if relay else 0.0
            load_before = time.thread_time()
            storm.start()
            engine.measure(timing.measure_s)
            measured.load_cpu_s = time.thread_time() - load_before
            measured.cpu_s = relay.cpu_s() - cpu_before if relay else 0.0
            engine.drain(DRAIN_LIMIT_S)
        except BaseException as error:
            measured.error = error

    thread = threading.Thread(target=phases, name="load")
    started = time.monotonic()
    whole_s = timing.warm_up_s + timing.measure_s
    try:
        thread.start()  # inside the try block, because an interrupt may arrive
        while thread.is_alive():
            on_progress("running", min(1.0, (time.monotonic() - started) / whole_s))
            thread.join(PROGRESS_EVERY_S)
    finally:
        engine.stop()
        if thread.ident:
            thread.join()
    if measured.error:
        raise measured.error
    return measured


def _latency(engine: Engine, max_ns: int) -> Latency:
    p50, p99, p999 = (engine.percentile_ns(percent) / 1e3 for percent in (50.0, 99.0, 99.9))
    return Latency(p50, p99, p999, max_ns / 1e3)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
