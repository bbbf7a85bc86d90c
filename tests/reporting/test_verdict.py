"""The verdict on runs: how good the best one is, against always the same label and against the other runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.reporting.verdict import RunVerdict, verdict
from featcache.runs.compare import compare_runs
from featcache.runs.learning_curve import SavedCurve, SavedPoint, SavedRequest
from featcache.runs.run import Run
from tests.support.saved_runs import predictions, save


def made(folder: Path, rows: int, wrong: int, head: str = "linear", **more: str) -> Run:
    """A run that is wrong on the first `wrong` rows, validation and test alike; labels are 2/3 bad."""
    labels = np.arange(rows) % 3 == 0
    found = predictions(labels, labels ^ (np.arange(rows) < wrong))
    return save(folder, head, validation=found, test=found, **more)


def of(*runs: Run) -> RunVerdict:
    return verdict(runs[0], compare_runs(list(runs), runs[0]))


def test_a_head_that_is_better_than_the_most_frequent_label(tmp_path: Path) -> None:
    found = of(made(tmp_path, 300, 30))
    assert (found.accuracy, found.rows, found.majority) == (0.9, 300, "bad")
    assert found.gain and found.gain.first == 2 / 3 and found.gain.low > 0.15
    assert found.sentences[0].startswith("use linear-last-mean-1: best on validation, right on 90.0 % of 300")
    assert found.sentences[1].startswith("23.3 points above always saying bad (66.7 %)")
    assert found.sentences[1].endswith("more than chance")
    assert not any("other runs" in sentence for sentence in found.sentences)


def test_a_head_that_learned_nothing_is_not_praised(tmp_path: Path) -> None:
    found = of(made(tmp_path, 60, 18))
    assert "the difference may be chance" in found.sentences[1]
    assert any("60 test rows are few" in sentence for sentence in found.sentences)


def test_other_runs_and_the_words_alone(tmp_path: Path) -> None:
    best = made(tmp_path, 300, 30)
    tied, worse = made(tmp_path, 300, 31, "mlp"), made(tmp_path, 300, 120, "lexical", view="lexical")
    said = of(best, tied, worse).sentences
    assert "the backbone adds 30.0 points to what the words alone (no-backbone-1) say" in said
    assert said[-1] == "of 2 other runs, by accuracy: 1 tied with it, 1 worse"


def saved(*scores: float, around: float = 0.0) -> SavedCurve:
    """A curve whose sizes are 10, 100, ..., and half the width of its intervals."""
    points = [
        SavedPoint(10 ** (place + 1), score, score - around, score + around)
        for place, score in enumerate(scores)
    ]
    return SavedCurve(
        "exact", "accuracy", "test", tuple(points[::-1]), SavedRequest("last/mean", {"train": "f"})
    )


def test_the_first_learning_curve_says_whether_more_labels_would_help(tmp_path: Path) -> None:
    run = made(tmp_path, 300, 30)
    said = verdict(run, None, curves=[saved(0.5, 0.7), saved(0.7, 0.7)]).sentences
    assert said[-1] == (
        "from 10 to 100 train rows the accuracy of the exact head on last/mean changed by +20.00 points: "
        "more labels are likely to help"
    )
    assert verdict(run, None, curves=[saved(0.5, 0.7, 0.701)]).sentences[-1].endswith("would add little")
    assert verdict(run, None, curves=[saved(0.5, 0.7, around=0.1)]).sentences[-1].endswith("labels may help")
    alone = verdict(run, None).sentences
    assert verdict(run, None, curves=[saved(0.5)]).sentences == alone


def test_rows_that_leak_are_left_out_and_said(tmp_path: Path) -> None:
    labels = np.arange(200) % 2
    right = predictions(labels, np.where(np.arange(200) < 100, labels, 1 - labels))
    some = replace(right, leaked=np.arange(200) < 50)
    found = of(save(tmp_path, test=some, validation=some))
    assert found.rows == 150 and abs(found.accuracy - 1 / 3) < 1e-9
    assert "150 test rows that do not leak" in found.sentences[0]
    every = replace(right, leaked=np.ones(200, bool))
    assert "does not measure new texts" in of(save(tmp_path, test=every, validation=every)).sentences[-1]


def test_several_labels_have_no_majority(tmp_path: Path) -> None:
    hot = np.tile(np.eye(2, dtype=np.uint8), (20, 1))
    found = of(save(tmp_path, test=predictions(hot, hot), validation=predictions(hot, hot)))
    assert found.majority is None and found.gain is None and found.accuracy == 1
