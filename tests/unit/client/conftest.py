"""The relay that clients connect to."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.fake_relay import FakeServer, fake_server


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fake_server() as server:
        yield server
