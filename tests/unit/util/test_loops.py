"""Objects of one event loop."""

import asyncio

import pytest

from fastderp.errors import WrongLoopError
from fastderp.util.loops import check_loop


async def test_an_object_without_a_loop_or_in_its_own_may_be_used() -> None:
    check_loop("relay", None)
    check_loop("relay", asyncio.get_running_loop())


async def test_the_error_in_another_loop_names_the_object_and_the_remedy() -> None:
    other = asyncio.new_event_loop()
    with pytest.raises(WrongLoopError, match="the relay belongs to .*; make one for each loop"):
        check_loop("relay", other)
    other.close()
