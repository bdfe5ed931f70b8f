"""The answer of a verifier: whether a client may use the relay. PROTOCOL §8."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """Whether a client is admitted, and the reason.

    Args:
        allowed: whether the client is admitted.
        outcome: one word for a counter: allowed, denied, fail_open, or why there is no answer:
            unreachable, timeout, busy, status, malformed, not_ready (the service is starting),
            shortage (of descriptors, memory or threads on this machine), error (an internal one).
        detail: the reason in words, without a subject.
    """

    allowed: bool
    outcome: str
    detail: str = ""

    @property
    def certain(self) -> bool:
        """Whether the verdict is certain, so that it may be cached and enforced."""
        return self.outcome in ("allowed", "denied")


ALLOWED = Verdict(True, "allowed")
