class LatencyHistogram:
    """The engine's histogram, for Python code that needs the same percentiles."""

    def record(self, value: int) -> None:
        """Count one value, in any unit (the engine uses nanoseconds)."""
    def percentile(self, percent: float) -> int:
        """Return the value that `percent` (0 to 100) of all values do not exceed, within 0.8 %."""
    @property
    def n(self) -> int:
        """The number of recorded values."""
    @property
    def maximum(self) -> int:
        """The largest value, exact."""
