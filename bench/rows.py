"""The rows of the relay's goals: measurements and verdicts.

A row measures the compared relays one after another, round by round, and finds numbers: one value
per round, beside the goal. Rows do not use files and terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from bench.capacity import DELAY_MS, Search, capacity_of, searched
from bench.lab import TLS, Lab, Measurement, cost, cost_per_login
from bench.relays import Relay

# The relay trims its memory every ten seconds.
SETTLE_S = 12
# rates of the sweep for the peak, as shares of the rate of senders that never wait
SWEEP = (0.7, 0.85, 1.0, 1.15)
STORM_LOAD = 0.7

Value = Callable[[Measurement], float]


@dataclass(frozen=True, slots=True)
class Finding:
    """A number per round and its bounds, if any: at least or at most `goal`, or `stretch`."""

    what: str
    values: Sequence[float]
    sense: Literal[">=", "<="]
    goal: float | None = None
    stretch: float | None = None
    unit: str = ""


@dataclass(slots=True)
class Bench:
    """The tools of the rows; it collects all `measurements`, `notes` and `capacities`."""

    lab: Lab
    rounds: int
    derper: Relay
    floor: Relay
    fastderp: Relay
    two_workers: Relay
    say: Callable[[str], None]
    # fastderp with other crypto libraries, beside it in the rows about TLS.
    variants: Sequence[Relay] = ()
    # An earlier release of derper, beside it in the rows of the short table.
    older_derper: Sequence[Relay] = ()
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    capacities: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, relay: Relay, load: str, *flags: str, **where: frozenset[int]) -> Measurement:
        """Put a load on a fresh relay, and keep the result."""
        result = self.lab.measure(relay, load, *flags, **where)
        return self.keep(relay, load, result, flags, n_cores=len(where.get("cores", "1")))

    def keep(
        self,
        relay: Relay,
        load: str,
        result: Measurement,
        flags: Sequence[str] = (),
        *,
        n_cores: int = 1,
    ) -> Measurement:
        """Keep and announce a measurement."""
        self.say(
            f"  {' '.join((load, *flags)):<40} {relay.name:<10} {cost(result):8.2f} µs/packet  "
            f"p99 {result['latency']['p99_us']:,.0f} µs  loss {result['loss']:.2%}"
        )
        self.measurements.append(result | {"load": load, "flags": list(flags), "n_cores": n_cores})
        return result

    def in_turn(
        self, load: str, *relays: Relay, flags: Sequence[str] = ()
    ) -> list[list[Measurement]]:
        """Measure the relays in every round, in rotating order; return one list per relay."""
        results: list[list[Measurement]] = [[] for _ in relays]
        for number in range(self.rounds):
            order = [(number + i) % len(relays) for i in range(len(relays))]
            for i in order:
                results[i].append(self.measure(relays[i], load, *flags))
        return results


def _ratios(over: list[Measurement], under: list[Measurement], value: Value = cost) -> list[float]:
    return [value(o) / value(u) for o, u in zip(over, under, strict=True)]


def _p50(result: Measurement) -> float:
    return float(result["latency"]["p50_us"])


def _p99(result: Measurement) -> float:
    return float(result["latency"]["p99_us"])


def _beside_derper_and_floor(load: str, least: float) -> Callable[[Bench], Iterator[Finding]]:
    def find(bench: Bench) -> Iterator[Finding]:
        theirs, least_possible, ours = bench.in_turn(
            load, bench.derper, bench.floor, bench.fastderp
        )
        yield Finding("CPU per packet: derper ÷ fastderp", _ratios(theirs, ours), ">=", least)
        yield Finding(
            "CPU per packet: fastderp ÷ floor", _ratios(ours, least_possible), "<=", stretch=1.2
        )

    return find


def _tls(bench: Bench) -> Iterator[Finding]:
    for load in ("pairs-10", "pairs-50"):
        relays = [bench.fastderp, *bench.variants]
        theirs, least, *each = bench.in_turn(TLS + load, bench.derper, bench.floor, *relays)
        for relay, ours in zip(relays, each, strict=True):
            what = f"{load}: CPU per packet: derper ÷ {relay.name}"
            yield Finding(what, _ratios(theirs, ours), ">=", 5 if _is_bundled(relay) else 3.5)
        yield Finding(
            f"{load}: CPU per packet: fastderp ÷ floor", _ratios(each[0], least), "<=", 1.15
        )


def _is_bundled(relay: Relay) -> bool:
    """Whether a variant uses the wheel's crypto library, for which the goals are higher."""
    return relay.environment.get("FASTDERP_CRYPTO") == "bundled"


def _latency(bench: Bench) -> Iterator[Finding]:
    for kind, prefix, least in (("plain", "", 2.0), ("TLS", TLS, 1.7)):
        others = [*bench.older_derper, *(bench.variants if prefix else ())]
        theirs, ours, floor, *_ = bench.in_turn(
            prefix + "latency", bench.derper, bench.fastderp, bench.floor, *others
        )
        yield Finding(
            f"{kind}: CPU per packet: derper ÷ fastderp", _ratios(theirs, ours), ">=", least
        )
        what = f"{kind}: CPU per packet: fastderp ÷ floor"
        yield Finding(what, _ratios(ours, floor), "<=", 1.2, 1.1)
        yield Finding(f"{kind}: p50: fastderp ÷ derper", _ratios(ours, theirs, _p50), "<=", 1.0)
        yield Finding(f"{kind}: p99: fastderp ÷ derper", _ratios(ours, theirs, _p99), "<=", 1.0)


def _never_wait(bench: Bench) -> Iterator[Finding]:
    theirs, least_possible, ours = bench.in_turn(
        "never-wait", bench.derper, bench.floor, bench.fastderp
    )
    yield Finding("goodput per CPU second: fastderp ÷ derper", _ratios(theirs, ours), ">=", 20)
    yield Finding("p99 delay", [_p99(r) / 1e3 for r in ours], "<=", 10, unit="ms")
    bench.notes.append(
        "p99 delay of the floor under the same load: "
        + ", ".join(f"{_p99(r) / 1e3:.1f} ms" for r in least_possible)
    )
    busy = max(r["relay"]["cpu_share"] for r in ours)
    bench.notes.append(
        f"fastderp used at most {busy:.0%} of its core: below 100 % the load is the limit"
    )
    yield _overload(bench, max(r["packets_per_s"] for r in ours))
    [crowded] = bench.in_turn("never-wait-16-to-1", bench.fastderp)
    yield Finding(
        "Jain's index between 16 senders of one receiver",
        [r["fairness"] for r in crowded],
        ">=",
        stretch=0.98,
    )


def _overload(bench: Bench, about: float) -> Finding:
    """Find the offered rate with the highest throughput; compare it with three times that rate."""

    def goodput(rate: float) -> float:
        result = bench.measure(bench.fastderp, "never-wait", "--rate", f"{rate:.0f}")
        return float(result["packets_per_s"])

    best = max((share * about for share in SWEEP), key=goodput)
    ratios = []
    for _ in range(bench.rounds):
        at_peak = goodput(best)
        ratios.append(goodput(3 * best) / at_peak)
    return Finding("goodput at 3 × saturation ÷ peak", ratios, ">=", 0.95)


def _fans(bench: Bench) -> Iterator[Finding]:
    for load in ("fan-in", "fan-out", "all-to-all"):
        others = bench.older_derper if load == "fan-in" else ()
        theirs, ours, *_ = bench.in_turn(load, bench.derper, bench.fastderp, *others)
        yield Finding(f"{load}: CPU per packet: derper ÷ fastderp", _ratios(theirs, ours), ">=", 5)
        bench.notes.append(
            f"{load}: derper lost at most {_most_lost(theirs):.2%} of the packets, "
            f"fastderp {_most_lost(ours):.2%}"
        )
    theirs, ours = bench.in_turn("fan-in", bench.derper, bench.fastderp, flags=("--window", "2"))
    bench.notes.append(f"fan-in with two in flight each: {median(_ratios(theirs, ours)):.2f}")


def _most_lost(results: list[Measurement]) -> float:
    return max(float(result["loss"]) for result in results)


def _memory(bench: Bench) -> Iterator[Finding]:
    """Run all relays at once, as they mostly wait and only their own memory is measured."""
    loads = [kind + size for kind in ("", TLS) for size in ("memory-5000", "memory-15000")]
    derpers = [bench.derper, *bench.older_derper]
    flags = ("--warmup", "0", "--duration", "1", "--settle", str(SETTLE_S))
    with ThreadPoolExecutor(len(loads) + len(derpers)) as pool:
        running = [pool.submit(bench.lab.measure, bench.fastderp, load, *flags) for load in loads]
        theirs = [
            pool.submit(bench.lab.measure, relay, TLS + "memory-5000", *flags) for relay in derpers
        ]
        results = [future.result() for future in running]
        for relay, future in zip(derpers, theirs, strict=True):
            kept = bench.keep(relay, TLS + "memory-5000", future.result())
            bench.notes.append(
                f"tls/5000: {relay.name} {relay.version}: {idle_kib(kept):.1f} KiB each, idle"
            )
    for load, result in zip(loads, results, strict=True):
        bench.keep(bench.fastderp, load, result)
        name = load.replace("memory-", "")
        relay, n = result["relay"], result["n_clients"]
        settled = (relay["rss_settled_kib"] - relay["rss_before_kib"]) / n
        yield Finding(f"{name} sessions: KiB each, idle", [idle_kib(result)], "<=", 1.5, 1.0, "KiB")
        yield Finding(
            f"{name} sessions: KiB each, after a burst through all of them",
            [settled],
            "<=",
            1.5,
            1.0,
            "KiB",
        )
        bench.notes.append(f"{name}: measured {relay['settle_s']:.0f} s after the burst")
    for kind, (few, many) in {"plain": results[:2], "TLS": results[2:]}.items():
        more = many["relay"]["rss_idle_kib"] - few["relay"]["rss_idle_kib"]
        each = more / (many["n_clients"] - few["n_clients"])
        bench.notes.append(
            f"{kind}: {each:.2f} KiB for each further idle session between the two sizes; "
            "the rest is there once"
        )


def idle_kib(result: Measurement) -> float:
    """Return the memory of each idle session."""
    relay = result["relay"]
    return float((relay["rss_idle_kib"] - relay["rss_before_kib"]) / result["n_clients"])


def _single_login(bench: Bench) -> Iterator[Finding]:
    """Log clients in one after the other: full handshakes, no fast start."""
    flags = ("--warmup", "0", "--duration", "0.1")
    for kind, prefix, most, stretch in (("plain", "", 0.40, 2.0), ("TLS", TLS, 0.80, 1.25)):
        relays = [bench.fastderp, *(bench.variants if prefix else ())]
        theirs, least, *each = bench.in_turn(
            prefix + "login",
            bench.derper,
            bench.floor,
            *relays,
            *(bench.older_derper if prefix else ()),
            flags=flags,
        )
        for relay, ours in zip(relays, each, strict=False):
            yield Finding(
                f"{kind}: CPU per login: {relay.name} ÷ derper",
                _ratios(ours, theirs, cost_per_login),
                "<=",
                0.60 if _is_bundled(relay) else most,
            )
        yield Finding(
            f"{kind}: CPU per login: fastderp ÷ floor",
            _ratios(each[0], least, cost_per_login),
            "<=",
            stretch=stretch,
        )


def _logins(bench: Bench) -> Iterator[Finding]:
    flags = ("--warmup", "0", "--duration", "0.1")
    for kind, prefix, most in (("plain", "", 1 / 2), ("TLS", TLS, 2 / 3)):
        relays = [bench.fastderp, *(bench.variants if prefix else ())]
        older = bench.older_derper if prefix else ()
        theirs, *each = bench.in_turn(prefix + "logins", bench.derper, *relays, *older, flags=flags)
        ours = each[0]
        for relay, its in zip(relays, each, strict=False):
            what = f"{kind}: CPU per login: {relay.name} ÷ derper"
            goal = 0.50 if _is_bundled(relay) else most
            yield Finding(what, _ratios(its, theirs, cost_per_login), "<=", goal)
    two = [
        bench.measure(bench.fastderp, TLS + "logins", *flags, cores=bench.lab.two_cores)
        for _ in ours
    ]
    yield Finding(
        "TLS: logins/s on two cores ÷ one core",
        _ratios(two, ours, lambda r: float(r["logins_per_s"])),
        ">=",
        stretch=1.6,
    )
    busy = max(cost_per_login(r) * r["logins_per_s"] / 1e6 for r in ours)
    bench.notes.append(
        f"on one core the relay was busy {busy:.0%} of the time; the load limited the rate"
    )
    if bench.lab.load_core in bench.lab.two_cores:
        bench.notes.append(
            "the load uses the second of the two cores, too: this machine has no third"
        )


def _workers(bench: Bench) -> Iterator[Finding]:
    one, two = [], []
    cores = bench.lab.two_cores
    for _ in range(bench.rounds):
        one.append(bench.measure(bench.fastderp, "pairs-50", cores=cores))
        two.append(bench.measure(bench.two_workers, "pairs-50", cores=cores))
    yield Finding("CPU per packet: 2 workers ÷ 1", _ratios(two, one), "<=", 1.15)
    if bench.lab.load_core in cores:
        bench.notes.append(
            "both relays may use two cores, one of which the load uses too: "
            "this machine has no third"
        )


def _crowd(bench: Bench) -> Iterator[Finding]:
    crowd, few = [], []
    for _ in range(min(2, bench.rounds)):
        few.append(bench.measure(bench.fastderp, "pairs-50"))
        crowd.append(bench.measure(bench.fastderp, "crowd"))
    yield Finding("CPU per packet: crowd ÷ pairs-50", _ratios(crowd, few), "<=", 1.3)
    [floor] = _ratios(
        [bench.measure(bench.floor, "crowd")], [bench.measure(bench.floor, "pairs-50")]
    )
    bench.notes.append(
        f"the same for the floor: {floor:.2f}; the difference is the work of the kernel and the "
        "caches for many sockets"
    )


def _storm(bench: Bench) -> Iterator[Finding]:
    ours = [_p99_above_quiet_ms(bench, bench.fastderp) for _ in range(bench.rounds)]
    yield Finding("p99 in the storm, above quiet", ours, "<=", 1.0, unit="ms")
    floor = _p99_above_quiet_ms(bench, bench.floor)
    bench.notes.append(
        f"the same for the floor: {floor:.2f} ms; the storm's clients share the load's core"
    )
    stormy = [
        r
        for r in bench.measurements
        if r["scenario"]["storm"] and r["relay_name"] == bench.fastderp.name
    ]
    busy = max(r["relay"]["cpu_share"] for r in stormy)
    late = max(1 - r["packets_per_s"] / r["scenario"]["rate"] for r in stormy)
    bench.notes.append(
        f"fastderp used at most {busy:.0%} of its core in the storm, and the load fell behind its "
        f"own schedule by up to {late:.1%}: late packets then wait in the load"
    )


def _p99_above_quiet_ms(bench: Bench, relay: Relay) -> float:
    """Measure the capacity of `relay`, offer a part of it twice, the second time with the storm."""
    with bench.lab.running(relay) as target:

        def load(name: str, *flags: str) -> Measurement:
            return bench.keep(relay, name, bench.lab.load(target, relay, name, *flags), flags)

        rate = f"{STORM_LOAD * load('pairs-50')['packets_per_s']:.0f}"
        quiet = load("storm", "--rate", rate, "--storm", "0")
        stormy = load("storm", "--rate", rate)
    return (_p99(stormy) - _p99(quiet)) / 1e3


def _mesh(bench: Bench) -> Iterator[Finding]:
    for kind, prefix in (("plain", ""), ("TLS", TLS)):
        load = prefix + "pairs-10"
        ratios = [_hop(bench, bench.fastderp, load) for _ in range(bench.rounds)]
        yield Finding(f"{kind}: CPU per packet: both relays ÷ one relay, no hop", ratios, "<=", 2.2)
    bench.notes.append(
        "the same for two derpers, which link over TLS only: "
        f"{_hop(bench, bench.derper, TLS + 'pairs-10'):.2f}"
    )


def _hop(bench: Bench, relay: Relay, load: str) -> float:
    """Return the cost of a packet between two relays over that within one."""
    local = bench.measure(relay, load)
    with bench.lab.region(relay, load) as target:
        across = bench.keep(relay, load, bench.lab.load(target, relay, load), ["--to"])
    return cost(across) / cost(local)


def _capacity(bench: Bench) -> Iterator[Finding]:
    """Search for the highest rate that each relay carries, once per round."""
    for load in ("pairs-10", "pairs-50", TLS + "pairs-10", TLS + "pairs-50"):
        variants = bench.variants if load.startswith(TLS) else ()
        relays = [bench.derper, *bench.older_derper, bench.fastderp, *variants]
        searches: dict[str, list[Search]] = {relay.name: [] for relay in relays}
        for number in range(bench.rounds):
            turn = number % len(relays)
            for relay in relays[turn:] + relays[:turn]:
                earlier = searches[relay.name]
                before = earlier[0].packets_per_s if earlier else None
                search = searched(bench.lab, relay, load, before)
                assert search.carried is not None
                bench.keep(relay, load, search.carried, ["--rate"])
                earlier.append(search)
        for relay in relays:
            bench.capacities.append(capacity_of(relay, load, searches[relay.name]))
        name = load.replace(TLS, "TLS, ") if load.startswith(TLS) else f"plain, {load}"
        ours = [search.packets_per_s for search in searches[bench.fastderp.name]]
        theirs = [search.packets_per_s for search in searches[bench.derper.name]]
        yield Finding(f"{name}: packets/s: fastderp", ours, ">=")
        ratios = [o / t for o, t in zip(ours, theirs, strict=True)]
        yield Finding(f"{name}: packets/s: fastderp ÷ derper", ratios, ">=")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `find` measures and judges."""

    number: int
    name: str
    title: str
    find: Callable[[Bench], Iterator[Finding]]


ROWS = (
    Row(
        1,
        "pairs-10",
        "plain, 1400 bytes, 10 pairs, 16 in flight",
        _beside_derper_and_floor("pairs-10", 5),
    ),
    Row(
        2,
        "pairs-50",
        "plain, 1400 bytes, 50 pairs, 16 in flight",
        _beside_derper_and_floor("pairs-50", 6.5),
    ),
    Row(
        3,
        "small",
        "plain, 100 bytes, 10 pairs, 16 in flight",
        _beside_derper_and_floor("small", 3.5),
    ),
    Row(4, "tls", "TLS 1.3, 1400 bytes, a record per packet, 16 in flight", _tls),
    Row(5, "latency", "plain and TLS 1.3, one packet in flight", _latency),
    Row(6, "never-wait", "plain, senders never wait", _never_wait),
    Row(7, "fan", "fan-in 100 → 1, fan-out 1 → 100, all-to-all 50", _fans),
    Row(8, "memory", "resident memory per session, plain and TLS 1.3", _memory),
    Row(9, "logins", "64 logins at a time, fast start over TLS 1.3", _logins),
    Row(10, "workers", "2 workers instead of 1, 50 pairs", _workers),
    Row(11, "crowd", "1,000 active pairs beside 10,000 idle sessions", _crowd),
    Row(12, "storm", "2,000 logins beside 50 pairs at 70 % load", _storm),
    Row(
        13,
        "mesh",
        "10 pairs, each from one relay of a region to another, 1400 bytes, 16 in flight",
        _mesh,
    ),
    Row(14, "login", "logins one at a time, full handshake, no fast start", _single_login),
    Row(
        15,
        "capacity",
        f"packets/s of one core at p99 ≤ {DELAY_MS:.0f} ms, 1400 bytes, by schedule",
        _capacity,
    ),
)
