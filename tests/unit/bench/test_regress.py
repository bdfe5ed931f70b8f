"""`bench.regress` distinguishes a slower build from a noisy machine."""

import pytest

from bench.regress import judge


def slower(old: list[float], new: list[float]) -> bool:
    [verdict] = judge({"x": old}, {"x": new})
    return verdict.is_slower


def test_a_build_that_always_takes_longer_is_slower() -> None:
    assert slower([1.00, 1.01, 1.00], [1.20, 1.21, 1.20])


@pytest.mark.parametrize("disturbed", [[1.5, 1.0, 1.01], [1.01, 1.0, 9.0]])
def test_a_disturbed_repetition_does_not_count(disturbed: list[float]) -> None:
    assert not slower([1.00, 1.01, 1.00], disturbed)


def test_the_tolerance_grows_with_the_spread_of_the_repetitions() -> None:
    assert slower([1.0, 1.0, 1.0], [1.15, 1.15, 1.15])
    assert not slower([1.0, 1.1, 1.2], [1.15, 1.25, 1.3])


def test_two_builds_of_the_same_source_may_differ_a_little() -> None:
    assert not slower([1.0, 1.0], [1.05, 1.05])
    assert not slower([1.0, 1.0], [0.5, 0.5])


def test_a_bench_that_only_one_build_can_run_is_ignored() -> None:
    assert judge({"old": [1.0]}, {"new": [1.0]}) == []
