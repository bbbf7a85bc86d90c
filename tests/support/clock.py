"""A clock that a test moves."""

from __future__ import annotations


class Clock:
    """Stands for `time` in a module: seconds pass when the test says so."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter
