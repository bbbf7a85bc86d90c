"""A fuzzer over everything that commands and the server read; see `tests/support/fuzz.py`."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.support.cli_tools import arrow_in, plain_terminal
from tests.support.fuzz import Findings, Fuzzer, fuzz, make_world

pytestmark = pytest.mark.bad_input
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


def _check(found: Findings, first: int) -> None:
    examples = "\n\n".join(f"{kind}\n{example[-3000:]}" for kind, example in found.failures.items())
    assert not found.failures, f"python -m tests.support.fuzz --seed {first}\n{examples}"


@pytest.mark.usefixtures("arrow_cache")
def test_odd_content_is_no_defect(template: Path, tmp_path: Path) -> None:
    """A few seconds of it, always with the same seed."""
    found = fuzz(template, tmp_path, seconds=3, first=1)
    assert found.cases > 0
    _check(found, 1)


@pytest.mark.hostile
@pytest.mark.usefixtures("arrow_cache")
def test_odd_content_of_every_kind_is_no_defect(
    tmp_path: Path, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_terminal(monkeypatch)
    first = secrets.randbelow(1 << 31)
    with arrow_in(tmp_path / "arrow"):
        found = fuzz(make_world(tmp_path / "world", tiny("bert")), tmp_path, seconds=90, first=first)  # type: ignore[operator]
    print(f"seed {first}: {found.cases} cases")
    _check(found, first)


@pytest.mark.usefixtures("arrow_cache")
def test_the_fuzzer_notices_a_defect(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("validation")

    monkeypatch.setattr("featcache.runs.record.read_json", broken)
    fuzzer = Fuzzer(template, tmp_path, 60, ["run"])
    said = fuzzer.attempt(Path("reports/linear-last-cls-1/run.json"), b"{}", ["compare", "linear-last-cls-1"])
    assert "unexpected KeyError" in said
