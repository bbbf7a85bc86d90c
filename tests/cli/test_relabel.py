"""`featcache label --from RUN`: doubted labels are asked again, and heads of both labels compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli_tools import Cli, read_rows, shell, write_rows

pytest.importorskip("cleanlab")


@pytest.fixture
def flipped(work: Path, cli: Cli) -> list[int]:
    """A run on train rows of which some have the other label; the numbers of these rows."""
    path = next(iter(sorted((work / "reviews").glob("train*"))))
    rows = read_rows(path)
    wrong = list(range(3, len(rows), 11))
    names = sorted({row["label"] for row in rows})
    assert len(names) == 2
    changed = [
        (row["text"], names[1 - names.index(row["label"])] if number in wrong else row["label"])
        for number, row in enumerate(rows)
    ]
    write_rows(path, changed)
    cli.ok("extract", "--all-splits", "--quiet")
    cli.ok("train-head", "--head", "exact", "--view", "last/mean", "--name", "first", "--quiet")
    return wrong


def test_doubted_labels_are_asked_again_and_corrected(flipped: list[int], work: Path, cli: Cli) -> None:
    path = next(iter(sorted((work / "reviews").glob("train*"))))
    before = path.read_bytes()
    rows = read_rows(path)
    names = sorted({row["label"] for row in rows})
    command = ["label", "--from", "first", "--terminal", "--json", "--annotator", "anna"]
    done = shell(*command, stdin="12q")
    assert done.code == 0, done.err
    assert "train texts have a doubtful label" in done.err
    assert "other texts rather say" in done.err
    found = done.json
    assert found["asked"] == 2 and found["split"] == "test" and 0 <= found["p"] <= 1
    corrected = read_rows(found["file"])
    assert [row["text"] for row in corrected] == [row["text"] for row in rows]
    changed = [n for n, (one, two) in enumerate(zip(rows, corrected, strict=True)) if one != two]
    assert len(changed) == found["changed"]
    answered = [
        json.loads(line) for line in next(work.rglob("*relabel.jsonl")).read_text("utf-8").splitlines()
    ]
    assert answered[0]["labels"] == names
    assert {line["chosen"] for line in answered[1:]} <= {"doubted", "conflict", "near"}
    assert path.read_bytes() == before  # the original stays
    again = shell(*command, stdin="q")
    assert again.json["asked"] == 2  # it goes on, and nothing is asked twice


def test_what_does_not_fit_is_refused(flipped: list[int], cli: Cli) -> None:
    cli.refused(2, ["label", "a.csv", "--from", "first", "--terminal"], "cannot be given together")
    cli.refused(6, ["label", "--from", "second", "--terminal"], "second")
    cli.refused(2, ["label", "--terminal"], "a file of texts is needed")
