"""The token bucket: bursts, rates, overdrafts, no limit."""

from __future__ import annotations

import math

from fastderp.util.token_bucket import TokenBucket


def test_a_bucket_begins_with_a_burst_and_continues_at_the_rate() -> None:
    now = 0.0
    bucket = TokenBucket(2.0, 3, clock=lambda: now)
    assert [bucket.take() for _ in range(5)] == [True] * 3 + [False] * 2
    now = 0.4
    assert not bucket.take()
    now = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert bucket.is_full
    assert [bucket.take() for _ in range(4)] == [True] * 3 + [False]
    assert not bucket.is_full


def test_without_a_limit_everything_passes_and_without_a_burst_nothing() -> None:
    assert TokenBucket(math.inf, 0).take(1e9)
    assert not TokenBucket(1000.0, 0).take()


def test_tokens_that_are_not_there_are_not_taken() -> None:
    bucket = TokenBucket(1.0, 10, clock=lambda: 0.0)
    assert not bucket.take(11)
    assert bucket.take(10)


def test_an_overdraft_is_paid_back_at_the_rate() -> None:
    now = 0.0
    bucket = TokenBucket(10_000, 20_000, clock=lambda: now)
    assert bucket.overdraw(16_000) == 0
    assert bucket.overdraw(14_000) == 1.0
    assert bucket.overdraw(4096) == 1.0 + 0.4096
    now = 100.0
    assert bucket.overdraw(20_000) == 0
