"""Packet forwarders without descriptors or memory."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from typing import Any, cast

import pytest

from fastderp.dataplane.plane import Plane, PlaneError
from fastderp.server.mesh.forwarders import Forwarders
from tests.kit.descriptors import n_descriptors


class FullPlane:
    """A data plane without memory for another session."""

    def promote(self, descriptor: int, *args: Any, **options: Any) -> int:
        os.close(descriptor)
        raise PlaneError("no memory left for another connection")


class Forwarder:
    def forward_packet(self, source: object, destination: object, data: bytes) -> None:
        pass


async def test_a_refused_session_leaves_no_socket_to_the_garbage_collector() -> None:
    forwarders = Forwarders(cast(Plane, FullPlane()))
    n_open = n_descriptors()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(PlaneError):
            forwarders.add(bytes(32), Forwarder())
        assert n_descriptors() == n_open
    assert [warning for warning in caught if warning.category is ResourceWarning] == []
    await forwarders.close()


async def test_without_descriptors_a_forwarder_is_refused_and_can_be_added_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    plane = Plane(workers=1)
    plane.start()
    forwarders, forwarder = Forwarders(plane), Forwarder()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr(socket, "socketpair", refused)
        forwarders.add(bytes(32), forwarder)
    assert forwarders.keys == set()
    forwarders.add(bytes(32), forwarder)
    assert forwarders.keys == {bytes(32)}
    await forwarders.close()
    plane.close()
