"""Few labels beside SetFit: the table, the draws, and the process that is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.bench.few import FewPlan
from featcache.errors import UsageError
from tests.support.cli_tools import Cli, make_work, widest

pytestmark = pytest.mark.usefixtures("arrow_cache")

STAND_IN = """#!{python}
import json, sys
job = json.load(open(sys.argv[2], encoding="utf-8"))
json.dump(job, open({seen!r}, "w"))
shares = {{name: [[1.0, 0.0]] * len(part["texts"]) for name, part in job["splits"].items()}}
versions = {{"setfit": "9.9"}}
answer = {{**shares, "seconds": 70.0, "learning_seconds": 60.0, "versions": versions}}
json.dump(answer, open(sys.argv[3], "w"))
"""


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_work(tmp_path / "work", tiny("bert"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def stand_in(folder: Path) -> tuple[Path, Path]:
    """An interpreter that answers every job with the first class, and where it keeps the job."""
    python, seen = folder / "python", folder / "job.json"
    python.write_text(STAND_IN.format(python=sys.executable, seen=str(seen)))
    python.chmod(0o755)
    return python, seen


def test_three_methods_on_the_same_rows(cli: Cli, folder: Path) -> None:
    python, seen = stand_in(folder)
    flags = ("--rows-per-class", "4", "--seeds", "2", "--test-rows", "11", "--peer-steps", "3")
    asked = ("bench", "few", *flags, "--peer-python", str(python))
    made = cli.ok(*asked, "--json").json
    rows = made["rows"]
    assert [(row["seed"], row["method"]) for row in rows] == [
        (seed, method) for seed in (0, 1) for method in ("auto", "contrastive", "setfit")
    ]
    assert {row["rows"] for row in rows} == {8} and {row["rows_per_class"] for row in rows} == {4}
    assert list(made["test_rows"].values()) == [11] and not made["left_out"]
    assert all(row["accuracy"] * 11 == pytest.approx(round(row["accuracy"] * 11), abs=1e-4) for row in rows)
    assert rows[2]["seconds"] == 60 and rows[2]["note"] == "setfit 9.9"
    job: dict[str, Any] = json.loads(seen.read_text())
    own = job["splits"]["train"]
    assert job["steps"] == 3 and job["seed"] == 1 and len(own["texts"]) == 8 and sum(own["labels"]) == 4
    labels = job["splits"]["test"]["labels"]
    assert rows[5]["accuracy"] == pytest.approx(labels.count(0) / 11, abs=1e-4)
    assert not Path("cache").exists()  # nothing is left in the user's cache


def test_setfit_that_is_not_installed_is_left_out(cli: Cli, folder: Path) -> None:
    broken = folder / "python"
    broken.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'setfit'\" >&2\nexit 1\n")
    broken.chmod(0o755)
    flags = ("--rows-per-class", "3", "--seeds", "1", "--methods", "auto,setfit")
    result = cli.ok("bench", "few", *flags, "--peer-python", str(broken))
    said = " ".join(result.out.split())
    assert "left out: setfit on" in said and "No module named 'setfit'" in said
    assert widest(result.out) <= 80


@pytest.mark.parametrize(
    "changes", [{"methods": ("auto", "magic")}, {"seeds": 0}, {"sizes": (1,)}, {"sizes": ()}]
)
def test_plans_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FewPlan(**changes)
