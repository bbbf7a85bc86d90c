"""The counts of the fault tests; as a script, runs all of them and prints one line of counts.

`python -m tests.support.fault_counts` is `make test-faults`: the tests in `tests/faults/`, the slow ones too.
"""

from __future__ import annotations

import sys
from pathlib import Path

Site = tuple[str, str, int]  #: file, function, line
COUNT = {"cuts": 0, "kills": 0, "flips": 0, "lost": 0, "wrong": 0}


class Fault(AssertionError):
    """Acknowledged work is gone (lost), or other data were returned than were written (wrong)."""


def require(holds: bool, kind: str, what: str) -> None:
    """Unless it `holds`, count and raise a fault; `kind` is `lost` or `wrong`."""
    if not holds:
        COUNT[kind] += 1
        raise Fault(f"{kind}: {what}")


def main() -> int:
    """Run all fault tests and print the counts; returns the exit code of pytest."""
    import pytest

    from tests.support import fault_counts as faults  # the module the tests import, not this script

    tests = Path(__file__).parents[1] / "faults"
    code = pytest.main(["-m", "", *sys.argv[1:], str(tests)])
    print("faults:", *(f"{kind}={number}" for kind, number in faults.COUNT.items()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
