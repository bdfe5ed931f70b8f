"""The answer of a verifier: whether a client may use the relay. PROTOCOL §8."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client is let in, and why.

    Args:
        allowed: let it in.
        outcome: one word for a counter: allowed, denied, fail_open, or why there is no answer:
            unreachable, timeout, busy, status, malformed, not_ready (the service does not know yet),
            shortage (of descriptors, memory or threads here), error (an internal one).
        detail: the reason in words, without a subject.
    """

    allowed: bool
    outcome: str
    detail: str = ""

    @property
    def certain(self) -> bool:
        """Whether the verdict is a yes or a no, which may be cached and enforced."""
        return self.outcome in ("allowed", "denied")


ALLOWED = Verdict(True, "allowed")
