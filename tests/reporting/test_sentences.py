"""The sentences at the top of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.reporting.build import build_report
from featcache.reporting.document import HeadlineMetric
from featcache.reporting.sentences import report_sentences
from featcache.reporting.verdict import verdict
from featcache.runs.run import Run
from tests.support.reports import report
from tests.support.saved_runs import predictions, save


@pytest.fixture
def one(tmp_path: Path) -> Run:
    labels = np.arange(30) % 2
    return save(tmp_path, test=predictions(labels, labels))


def test_sentences_end_with_the_checks_that_found_something(one: Run) -> None:
    shown, found = report(), verdict(one, None)
    assert report_sentences(shown, found)[-1] == "Look at the data: similar labels (1 of 2 checks)."
    good = report_sentences(replace(shown, checks=shown.checks[:1]), found)
    assert good[-1] == "All data checks are good." and all(said.endswith(".") for said in good)


def test_sentences_are_those_of_the_verdict_with_a_capital_and_a_stop(one: Run) -> None:
    found = verdict(one, None)
    said = report_sentences(report(), found)
    assert [line.lower() for line in said[: len(found.sentences)]] == [
        f"{line}.".lower() for line in found.sentences
    ]


def test_sentences_name_micro_f1_of_several_labels_a_row(one: Run) -> None:
    shown = report()
    several = replace(
        shown,
        about=replace(shown.about, task="multi-label"),
        headline={**shown.headline, "micro_f1": HeadlineMetric(0.8, (0.7, 0.85))},
    )
    said = report_sentences(several, verdict(one, None))
    assert "Over all labels together, F1 is 80.00 % (95 %: 70.00 to 85.00)." in said


def test_only_the_best_on_validation_is_recommended(runs: list[Run]) -> None:
    """None of these has validation scores: the newest counts as the best of them."""
    first, *_, best = runs
    assert build_report([first, best], inspect=False).verdict[0].startswith(f"{first.name} is right on")
    assert build_report([best, first], inspect=False).verdict[0].startswith(f"Use {best.name}: best")
    assert build_report([best], inspect=False).verdict[0].startswith(f"{best.name} is right on")
