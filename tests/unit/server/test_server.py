"""The relay's event loop and the reports of the data plane."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import pytest

from fastderp.server.server import Server
from fastderp.wire.keys import MeshKey
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer


def test_a_flood_of_mesh_frames_is_spread_over_many_iterations_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_frames = 2000
    handled: list[int] = []

    async def flood() -> None:
        async with Server(mesh_key=MeshKey(os.urandom(32)), workers=1) as relay:
            turn = 0

            def received(_: Any) -> bool:
                handled.append(turn)
                return True

            monkeypatch.setattr(relay._region, "received", received)
            mesh = PlanePeer(relay._plane, mesh=True)
            mesh.write(frame(FrameType.CLOSE_PEER, bytes(32)) * n_frames)
            mesh.sync()  # all of them wait for the loop, which this call has blocked
            while len(handled) < n_frames:
                await asyncio.sleep(0)
                turn += 1
            mesh.close()

    asyncio.run(asyncio.wait_for(flood(), 10))
    assert max(Counter(handled).values()) <= 256
