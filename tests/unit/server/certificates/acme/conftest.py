"""Fixtures of the tests of ACME."""

import pytest

from tests.unit.server.certificates.acme.ca import Ca


@pytest.fixture
def ca() -> Ca:
    return Ca()
