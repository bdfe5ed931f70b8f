"""Objects that belong to one event loop, and their use in another one. Any thread."""

from __future__ import annotations

import asyncio

from fastderp.errors import WrongLoopError


def check_loop(what: str, loop: asyncio.AbstractEventLoop | None) -> None:
    """Raise WrongLoopError outside `loop`, to which the object of this kind belongs, if any."""
    if loop is not None and asyncio.get_running_loop() is not loop:
        raise WrongLoopError(
            f"the {what} belongs to another event loop; make one for each loop and process"
        )
