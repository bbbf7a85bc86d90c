"""The report on runs that predict numbers: what it shows is what the runs have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.runs.numbers.predictions import number_predictions
from featcache.runs.run import load_run
from tests.support.cli_tools import Cli, read_rows
from tests.support.rated_reviews import LINEAR, RIDGE

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.usefixtures("arrow_cache")


def test_a_report_has_scores_intervals_and_the_largest_errors(rated: Path, cli: Cli) -> None:
    done = cli.ok("report", RIDGE, LINEAR, "--output", "page.html", "--json").json
    report = done["report"]
    run = load_run(Path("reports"), RIDGE)
    said = number_predictions(run, "test")
    assert report == json.loads(Path("page.json").read_text(encoding="utf-8"))
    assert report["headline"]["mae"]["value"] == run.record.metrics["test"]["mae"]
    assert report["headline"]["mae"]["clean"] is not None  # some rows leak
    assert report["interval"]["half_width"] == run.record.interval.half_width  # type: ignore[union-attr]
    worst = np.argsort(-np.abs(said.errors), kind="stable")[:20]
    texts = [row["text"] for row in read_rows("reviews/test.jsonl")]
    assert [one["text"] for one in report["errors"]] == [texts[row] for row in worst]
    assert [one["error"] for one in report["errors"]] == pytest.approx(said.errors[worst].tolist())
    assert len(report["points"]) == len(said)
    first, second = report["runs"]
    assert first["tie"] is None and second["tie"] is not None
    page, text = (Path(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    for words in ("R²", "90 % interval", "new texts come from", "The largest errors", LINEAR, "房间"):
        assert words in page and words in text, words
    for words in ("is off by", "Data checks", "Made on", "featcache report"):
        assert words in page and words in text, words
    assert page.count("<svg") == 2 and "<script" not in page
    assert "accuracy" not in page and "accuracy" not in text


def test_a_report_shows_runs_of_one_task(rated: Path, cli: Cli, template: Path) -> None:
    import shutil

    shutil.copytree(template / "reports", "reports", dirs_exist_ok=True)
    labels = next(path.name for path in (template / "reports").iterdir() if path.name.startswith("l"))
    report = cli.ok("report", RIDGE, labels, "--json").json["report"]
    assert [run["run"] for run in report["runs"]] == [RIDGE]
    assert f"± {report['interval']['half_width']:.4g}" in cli.ok("report", RIDGE).out
