"""Planes with one worker and with two, for plain sessions and for sessions with TLS records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastderp.dataplane.plane import Plane
from tests.kit.plane import PlanePeer, SealedPeer, running_plane


@pytest.fixture(params=[PlanePeer, SealedPeer], ids=["plain", "records"])
def peers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the module's tests with plain sessions and again with TLS records."""
    monkeypatch.setattr(request.module, "PlanePeer", request.param)


@pytest.fixture(
    params=[
        pytest.param(1, id="one worker"),
        pytest.param(2, id="two workers", marks=pytest.mark.threads),
    ]
)
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    with running_plane(workers=request.param) as running:
        yield running
