"""The answer to the question whether a client may use the relay; what every kind of admission gives. PROTOCOL §8."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client is let in, and why.

    Args:
        allowed: let it in.
        outcome: one word for a counter: allowed, denied, fail_open, or what went wrong: unreachable, timeout, busy, status, malformed.
        detail: the reason in words, without a subject.
    """

    allowed: bool
    outcome: str
    detail: str = ""

    @property
    def certain(self) -> bool:
        """Whether somebody said yes or no, so that it can be remembered and acted upon."""
        return self.outcome in ("allowed", "denied")


ALLOWED = Verdict(True, "allowed")
