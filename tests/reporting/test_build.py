"""What a report contains for runs with and without their cached features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.errors import HeadError, UsageError
from featcache.heads.fit import Epoch
from featcache.reporting.build import build_report
from featcache.reporting.document import HeadlineMetric
from featcache.runs.record import CacheReference
from featcache.runs.run import Run
from featcache.system.documents import json_document
from tests.support.saved_runs import BINARY, predictions, save


def test_build_report_of_a_run_without_its_cache(runs: list[Run]) -> None:
    told = build_report(runs)
    assert json.loads(json.dumps(json_document(told), allow_nan=False))["notes"] == told.notes
    assert told.headline["accuracy"] == HeadlineMetric(0.8, (0.8125, 0.925))
    assert [run.run for run in told.runs] == [run.name for run in runs]
    assert told.cost is told.map is told.lengths is told.data is None
    assert any("not inspected" in note for note in told.notes) and any("texts" in note for note in told.notes)
    assert len(told.mistakes) == 20 and told.mistakes[0].text is None
    assert told.mistakes[0].label in BINARY and len(told.mistakes[0].row_hash) == 64


def test_build_report_has_the_paired_tests_of_compare_runs(runs: list[Run]) -> None:
    from featcache.runs.compare import compare_runs

    told = build_report(runs, inspect=False)
    assert told.base == runs[0].name
    for line, made in zip(told.comparisons, compare_runs(runs, runs[0]).made, strict=True):
        assert line.run == made.run.name
        assert line.accuracy.difference == made.accuracy.difference.value
        assert line.accuracy.p == made.accuracy.corrected_p
    assert [line.accuracy.tie for line in told.comparisons] == [False, True]


def test_build_report_notes_a_run_that_cannot_be_compared(runs: list[Run], tmp_path: Path) -> None:
    other = save(tmp_path / "reports", "mlp", test=predictions([0, 1], [0, 1], texts=["x", "y"]))
    told = build_report([*runs, other])
    assert len(told.comparisons) == 2
    assert any(other.name in note and "no row in common" in note for note in told.notes)


def test_build_report_on_validation_without_test_predictions(tmp_path: Path) -> None:
    run = save(tmp_path, validation=predictions([0, 1, 1], [0, 1, 0]))
    told = build_report([run])
    assert told.split == "validation" and any("validation" in note for note in told.notes)
    with pytest.raises(HeadError, match="no run"):
        build_report([])


def test_build_report_thins_out_curves_but_keeps_the_best_epoch(runs: list[Run]) -> None:
    history = tuple(Epoch(n, 1.0, 0.5, 1.0, n / 5000) for n in range(1, 5001))
    run = replace(runs[0], record=replace(runs[0].record, history=history, best_epoch=2501))
    curve = build_report([run]).curves[0]
    assert len(curve.epoch) <= 301 and {1, 2501, 5000} <= set(curve.epoch)
    assert curve.validation_accuracy == [n / 5000 for n in curve.epoch]


def test_build_report_shows_learning_curves_of_the_same_features(runs: list[Run], tmp_path: Path) -> None:
    caches = {"train": CacheReference("gone.h5", "f")}
    run = replace(runs[0], record=replace(runs[0].record, caches=caches))
    point = {"rows": 10, "score": 0.5, "low": 0.4, "high": 0.6}
    curve = {"kind": "exact", "metric": "accuracy", "split": "test", "points": [point]}
    for name, train in (("curve-a", "f"), ("curve-b", "other")):
        folder = tmp_path / "reports" / name
        folder.mkdir()
        request = {"caches": {"train": train}, "view": "last/mean"}
        (folder / "curve.json").write_text(json.dumps(curve | {"request": request}))
    (tmp_path / "reports" / "curve-c").mkdir()
    (tmp_path / "reports" / "curve-c" / "curve.json").write_text("[1]")
    told = build_report([run], reports_dir=tmp_path / "reports")
    assert [one.points for one in told.learning_curves] == [[[10, 0.5, 0.4, 0.6]]]
    other = json.dumps(curve | {"points": [point, point | {"rows": 20}], "request": request | {"view": "x"}})
    (tmp_path / "reports" / "curve-c" / "curve.json").write_text(other.replace('"other"', '"f"'))
    told = build_report([run], reports_dir=tmp_path / "reports")
    assert len(told.learning_curves) == 1  # the figure is about the run's own view
    assert any("head on x changed by +0.00 points" in line for line in told.verdict)
    assert any("gone.h5" in note for note in told.notes)


def test_build_report_shows_the_largest_comparison_of_recipes_on_the_same_features(
    runs: list[Run], tmp_path: Path
) -> None:
    caches = {"train": CacheReference("gone.h5", "f")}
    run = replace(runs[0], record=replace(runs[0].record, caches=caches))
    score = {"recipe": "ridge on last/mean", "rows_per_class": 8, "accuracy": 0.5, "deviation": None}
    saved = {"split": "test", "seeds": 1, "caches": {"train": "f"}}
    found = {
        "a": saved | {"scores": [score]},
        "b": saved | {"scores": [score, score | {"rows_per_class": 16}]},
        "c": saved | {"scores": [score] * 3, "caches": {"train": "other"}},
        "d": {"split": "test", "seeds": 1, "scores": [score] * 3},  # as earlier versions wrote it
        "e": [1],
    }
    for name, content in found.items():
        folder = tmp_path / "reports" / f"curve-recipes-{name}"
        folder.mkdir()
        (folder / "recipes.json").write_text(json.dumps(content))
    told = build_report([run], reports_dir=tmp_path / "reports").few_labels
    assert told is not None and [one.rows_per_class for one in told.scores] == [8, 16]
    assert build_report([run]).few_labels is None


def test_build_report_refuses_a_map_it_cannot_make(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="sphere"):
        build_report(runs, projection="sphere")
    monkeypatch.setattr("featcache.reporting.numbers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="UMAP is not installed"):
        build_report(runs, projection="umap")
