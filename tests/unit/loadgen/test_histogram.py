import random

import pytest

from fastderp.loadgen.histogram import LatencyHistogram


def test_an_empty_histogram_returns_zero() -> None:
    assert LatencyHistogram().percentile(99) == 0


def test_small_values_are_exact() -> None:
    histogram = LatencyHistogram()
    for value in range(128):
        histogram.record(value)
    assert histogram.percentile(50) == 63
    assert histogram.percentile(100) == 127


@pytest.mark.parametrize("percent", [1.0, 50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_within_one_percent_of_the_sorted_list(percent: float) -> None:
    rng = random.Random(7)
    values = sorted(int(rng.lognormvariate(11, 2)) for _ in range(20_000))
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    exact = values[max(0, round(percent / 100 * len(values)) - 1)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.01)


def test_percentiles_never_exceed_the_maximum() -> None:
    histogram = LatencyHistogram()
    histogram.record(1_000_003)
    assert histogram.percentile(50) == histogram.maximum == 1_000_003


def test_a_value_beyond_the_range_is_counted_in_the_last_bucket() -> None:
    histogram = LatencyHistogram()
    histogram.record(2**60)
    assert histogram.n == 1
    assert 2**37 < histogram.percentile(100) <= 2**60
