"""Restarts background work: logs and counts each unexpected exception, and continues.

Long-lived tasks run under `start`, callbacks of the event loop under `guard` or `guarded`. One per
process, because the log is per process. Loop thread only, except `note`. RELIABILITY F36.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from fastderp.server.observe.log_throttle import LogThrottle, more_text
from fastderp.server.observe.values import Value
from fastderp.util import jitter
from fastderp.util.log_lines import logger
from fastderp.util.shortage import shortage_of

log: logging.Logger = logger("fastderp")

P = ParamSpec("P")

# The delay before a restart doubles from the first to the last value, ± 20 %.
FIRST_RESTART_S = 0.5
LAST_RESTART_S = 30.0
JITTER = 0.2
# A run of this length resets the delay.
GOOD_RUN_S = 60.0


class Supervisor:
    """Logs, counts and survives internal errors."""

    def __init__(self) -> None:
        self._errors: Counter[str] = Counter()
        self._throttle = LogThrottle(log)

    def start(
        self, task: str, work: Callable[[], Coroutine[Any, Any, None]], *, name: str = ""
    ) -> asyncio.Task[None]:
        """Run `work` in a task until it returns or is cancelled; start it again when it raises.

        Args:
            task: the kind of task, for the log and the label of the counter; of a bounded set.
            work: makes a new coroutine for every start.
            name: distinguishes tasks of one kind in the log; "" for `task`.
        """
        self._errors.setdefault(task, 0)
        name = name or task
        return asyncio.get_running_loop().create_task(self._run(task, name, work), name=name)

    async def _run(
        self, task: str, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        loop = asyncio.get_running_loop()
        wait_s = FIRST_RESTART_S
        while True:
            began_s = loop.time()
            try:
                await work()
            except asyncio.CancelledError as error:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
                # An object that the work awaited was cancelled; the task was not.
                failure: BaseException = error
            except Exception as error:
                failure = error
            else:
                return
            if loop.time() - began_s >= GOOD_RUN_S:
                wait_s = FIRST_RESTART_S
            pause_s = wait_s * jitter.uniform(1 - JITTER, 1 + JITTER)
            self.note(task, failure, f"{name} starts again in {pause_s:.1f} s")
            wait_s = min(2 * wait_s, LAST_RESTART_S)
            await asyncio.sleep(pause_s)

    def guard(
        self, task: str, callback: Callable[P, object], *args: P.args, **kw: P.kwargs
    ) -> bool:
        """Call `callback`; log and count an exception. Return whether it succeeded."""
        try:
            callback(*args, **kw)
        except Exception as error:
            self.note(task, error)
            return False
        return True

    def guarded(self, task: str, callback: Callable[P, object]) -> Callable[P, None]:
        """Return a callback for the event loop that runs `callback` under `guard`."""
        self._errors.setdefault(task, 0)

        def call(*args: P.args, **kw: P.kwargs) -> None:
            try:
                callback(*args, **kw)
            except Exception as error:
                self.note(task, error)

        return call

    def note(self, task: str, error: BaseException, what_now: str = "") -> None:
        """Count an unexpected exception of `task`; log it once per window.

        Its traceback follows, unless the system's resources were short.
        """
        self._errors[task] += 1
        n_held = self._throttle.n_held(task)
        if n_held is not None:
            shortage = shortage_of(error)
            log.error(
                "%s in %s: %s%s%s",
                "shortage" if shortage else "internal error",
                task,
                shortage or error or type(error).__name__,
                f"; {what_now}" if what_now else "",
                more_text(n_held),
                exc_info=None if shortage else error,
                extra={"fields": {"event": "error", "task": task, "more": n_held or None}},
            )

    def note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Count and log the error of an unguarded callback: the exception handler of the loop."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self.note("event loop", error, str(context.get("message", "")))
        else:
            loop.default_exception_handler(context)

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        return {"fastderp_internal_errors_total": dict(self._errors)}


supervisor: Supervisor = Supervisor()
