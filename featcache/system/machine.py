"""The processor cores that this process may use, and shares of them for several workers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence


def available_cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_groups(cores: Sequence[int], count: int) -> list[list[int]]:
    """`cores` in `count` groups of neighbours, as equal as can be; empty ones where there are too few."""
    ends = [len(cores) * number // count for number in range(count + 1)]
    return [list(cores[start:end]) for start, end in itertools.pairwise(ends)]


def keep_to(cores: Sequence[int]) -> None:
    """Run on these cores alone, where the system lets a process choose."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
