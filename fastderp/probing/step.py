"""The steps of a probe and their results. Values for any thread."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


def ms(seconds: float) -> str:
    """Return a time as the lines of a probe show it."""
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


class Outcome(enum.StrEnum):
    """How a step ended. A note does not fail the probe, but deserves a look."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step that ran to its end has found.

    Args:
        text: for the operator, one line.
        details: for a program, values of JSON by name.
        seconds: the time that the step measured; None for that of the whole step.
        outcome: FAILED when all was answered, but wrongly.
    """

    text: str
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    outcome: Outcome = Outcome.OK


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step; `seconds` is None when it was skipped."""

    name: str
    outcome: Outcome
    text: str
    seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether the relay has passed the step."""
        return self.outcome in (Outcome.OK, Outcome.NOTE)

    def as_json(self) -> dict[str, Any]:
        """Return the members of its JSON object."""
        return {
            "step": self.name,
            "outcome": self.outcome.value,
            "text": self.text,
            "seconds": None if self.seconds is None else round(self.seconds, 6),
            **self.details,
        }
