"""A clock that a test moves."""

from __future__ import annotations


class Clock:
    """Replaces the module `time`: seconds pass when the test changes `now`."""

    now = 100.0

    def perf_counter(self) -> float:
        """The time that the test has set, in seconds."""
        return self.now

    monotonic = perf_counter
