"""The counts of the tests of bad input; as a script, runs all of them and prints one line of counts.

`python -m tests.support.hostile_counts` is `make test-hostile`. A test or a module is marked with
`@pytest.mark.bad_input`, or with the harm that its failure would mean: `@pytest.mark.bad_input("code run")`.
The longer ones are marked `hostile` too, and left out of `make test`.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

HARMS = ("defects", "code run", "files touched outside", "wrong vectors")


def name_harm(items: list[pytest.Item]) -> None:
    """Write the harm that a failure means into the report of each test of bad input."""
    for item in items:
        marker = item.get_closest_marker("bad_input") or item.get_closest_marker("hostile")
        if marker is not None:
            harm = marker.args[0] if marker.args else HARMS[0]
            assert harm in HARMS, f"{item.nodeid}: {harm!r} is none of {HARMS}"
            item.user_properties.append(("harm", harm))


class HarmCounter:
    """A pytest plugin that counts tests of bad input and their failures by harm."""

    def __init__(self) -> None:
        self.cases, self.harms = 0, Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        harm = dict(report.user_properties).get("harm")
        if harm and report.when == "call" and not report.skipped:
            self.cases += 1
        if harm and report.failed:
            self.harms[str(harm)] += 1

    def __str__(self) -> str:
        counts = (f"{self.harms[harm]} {harm}" for harm in HARMS)
        return f"hostile: {self.cases} cases, {', '.join(counts)}"


def main() -> int:
    """Run all tests of bad input and print the counts; returns the exit code of pytest."""
    counter = HarmCounter()
    arguments = ["-n", "2", "--dist", "worksteal", "-m", "bad_input or hostile", *sys.argv[1:]]
    code = pytest.main(arguments, plugins=[counter])
    print(counter)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
