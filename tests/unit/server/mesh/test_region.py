"""The decision that a client is a mesh peer. RELIABILITY F25."""

from __future__ import annotations

from typing import NoReturn

import pytest
from nacl.bindings import sodium_memcmp

from fastderp.dataplane.plane import Plane
from fastderp.server.mesh.region import Region
from fastderp.wire.keys import MeshKey, NodePrivate
from fastderp.wire.login import ClientInfo


def never_joins(*_: object) -> NoReturn:
    """Stand for the function that makes links sessions."""
    raise NotImplementedError


def test_an_offered_secret_is_compared_in_constant_time_with_every_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = [MeshKey.generate() for _ in range(3)]
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return sodium_memcmp(one, other)

    monkeypatch.setattr("fastderp.wire.keys.sodium.are_equal", compare)
    plane = Plane(workers=1)
    region = Region(plane, NodePrivate.generate(), secrets, never_joins, None)
    for offered, expected in ((secrets[0], True), (secrets[2], True), (MeshKey.generate(), False)):
        compared.clear()
        assert region.is_mesh_peer(ClientInfo(mesh_key=offered)) is expected
        assert len(compared) == len(secrets)
    plane.close()
