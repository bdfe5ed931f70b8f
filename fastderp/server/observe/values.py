"""The values of metrics: numbers, numbers by labels, histograms (PROTOCOL §14).

Components return them on request, by the names of the table in `metrics`; none of this runs per
packet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from fastderp.dataplane.counters import COUNTERS

Number = int | float
Labelled = Mapping[Any, Number]  # by label values: a tuple of str, or one str for a single label


class Histogram:
    """The number of observations up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start empty; `bounds` ascend, and values above the last are counted, too."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: Number = 0

    @classmethod
    def of(cls, bounds: Sequence[float], counts: Sequence[int], total: Number) -> Histogram:
        """Wrap counts made elsewhere: one per bucket, one above the last bound, and the sum."""
        histogram = cls(bounds)
        histogram._counts = list(counts)
        histogram._sum = total
        return histogram

    def observe(self, value: Number) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> list[tuple[str, Number]]:
        """Return the numbers of the exposition, by the suffix of the metric's name."""
        rows = [(f'_bucket{{le="{bound}"}}', n) for bound, n in self._buckets()]
        return [*rows, ("_sum", self._sum), ("_count", sum(self._counts))]

    def members(self) -> dict[str, Number]:
        """Return the members of its object on `/debug/vars`."""
        return {**dict(self._buckets()), "sum": self._sum, "count": sum(self._counts)}

    def _buckets(self) -> Iterable[tuple[str, Number]]:
        """Yield each bound with the number of observations up to it."""
        bounds = map(written, (*self._bounds, math.inf))
        return zip(bounds, accumulate(self._counts), strict=True)


Value = Number | Labelled | Histogram
_COUNTER_OF = {row.name: row for row in COUNTERS if row.owner != "part"}


def counted_values(counters: Mapping[str, Any]) -> dict[str, Value]:
    """Return the values of `Plane.counters()` by the names of their metrics."""
    return {
        row.metric: Histogram.of(row.bounds, *value) if row.bounds else value
        for row, value in ((_COUNTER_OF[name], value) for name, value in counters.items())
    }


def written(value: Number) -> str:
    """Return a number as in Prometheus text."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else str(value)
