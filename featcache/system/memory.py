"""How much memory this process has taken."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int | None:
    """The most that this process ever had resident, mapped files too, in bytes; None where nobody tells."""
    status = Path("/proc/self/status")  # on Linux `ru_maxrss` keeps the parent's peak across exec
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return None if line is None else 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
