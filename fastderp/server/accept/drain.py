"""Stops new logins and sends the clients of a relay away. PROTOCOL §6.11. Loop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fastderp.dataplane.plane import Plane
from fastderp.server.accept.listener import Listener
from fastderp.server.accept.registrar import Registrar
from fastderp.server.accept.waves import Waves


async def drain(
    plane: Plane,
    registrar: Registrar,
    listeners: Iterable[Listener],
    seconds: float,
    has_other_relays: bool,
) -> None:
    """Send the clients away within `seconds`; return early when all are gone.

    A client tries the next relay of its region, or another process on the port, when its connection
    is refused, and only then (PROTOCOL §13). So the ports close where there is one; else they stay
    open, and a new login gets 503. A second call waits for the first.
    """
    if registrar.waves is not None:
        await registrar.waves.wait()
        return
    waves = registrar.waves = Waves(plane, seconds)
    leaving = [
        one
        for one in listeners
        if one.reuse_port or (has_other_relays and one.is_main and one.owns_sockets)
    ]
    registrar.refuses_logins = not any(one.is_main for one in leaving)
    registrar.bridges.leave()
    async with asyncio.TaskGroup() as tasks:
        for listener in leaving:
            tasks.create_task(listener.stop_accepting())
        tasks.create_task(waves.run())
