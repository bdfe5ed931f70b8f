"""Random delays stay in their bounds, and shuffling keeps every item."""

from fastderp.util import jitter


def test_uniform_numbers_cover_their_range() -> None:
    numbers = [jitter.uniform(-2.0, 6.0) for _ in range(1000)]
    assert all(-2.0 <= number < 6.0 for number in numbers)
    # Each quarter is missed with a probability of 0.75 ** 1000.
    assert {int((number + 2) // 2) for number in numbers} == {0, 1, 2, 3}


def test_an_empty_range_has_one_number() -> None:
    assert jitter.uniform(3.0, 3.0) == 3.0


def test_shuffled_items_are_the_same_in_another_order() -> None:
    items = list(range(1000))
    shuffled = jitter.shuffled(items)
    assert sorted(shuffled) == items
    assert shuffled != items
