"""Runs that predict numbers compared with a base run, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.numbers import paired_errors
from featcache.evaluation.paired import ScoreDifference, holm
from featcache.runs.compare import ALPHA, ComparedRuns, MatchedRows, matched_runs, same_rows
from featcache.runs.numbers.predictions import NumberPredictions, number_predictions
from featcache.runs.run import Run, best_run


@dataclass(frozen=True)
class ErrorChange:
    """An error of a run minus that of the base, with the p-value corrected for all comparisons made."""

    difference: ScoreDifference
    corrected_p: float

    @property
    def tie(self) -> bool:
        return self.corrected_p >= ALPHA

    @property
    def worse(self) -> bool:
        """The error is larger, by more than chance."""
        return not self.tie and self.difference.value > 0


@dataclass(frozen=True, kw_only=True)
class ErrorTests:
    """One run against the base on some rows: MAE and RMSE by paired bootstrap."""

    rows: int
    mae: ErrorChange
    rmse: ErrorChange

    @property
    def tie(self) -> bool:
        """Neither error tells the two apart."""
        return self.mae.tie and self.rmse.tie

    @property
    def worse(self) -> bool:
        """Significantly worse than the base in one error at least."""
        return self.mae.worse or self.rmse.worse


@dataclass(frozen=True, kw_only=True)
class NumberComparison(ErrorTests):
    """One run against the base on the rows both have.

    Attributes:
        only_base, only_run: rows left out because the other one does not have them.
        clean: the same on the rows that leak for neither; None where no row leaks, or every one.
    """

    run: Run
    only_base: int
    only_run: int
    clean: ErrorTests | None

    @property
    def against_base(self) -> str:
        """`+0.12 [+0.03, +0.21]`: how much larger the RMSE is, with its interval; `tie` before chance."""
        found = self.rmse.difference
        return f"{'tie ' * self.rmse.tie}{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"


NumberComparisons: TypeAlias = ComparedRuns[NumberComparison]


def compare_number_runs(
    runs: Sequence[Run],
    base: Run | None = None,
    split: str = "test",
    *,
    skip: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> NumberComparisons:
    """As `featcache.runs.compare.compare_runs`, by MAE and RMSE; both p-values of all runs are corrected.

    Raises:
        HeadError: as `compare_runs`; a run that predicts labels.
    """
    base = base or best_run(list(runs))
    if base is None:
        raise HeadError("no runs to compare", hint="train one with: featcache train-head --head ridge")
    own = number_predictions(base, split)
    raw, refused = matched_runs(
        base, runs, split, lambda run: _matched(own, number_predictions(run, split)), skip=skip
    )
    whole = _tests({run.folder: rows for run, rows in raw}, resamples, seed)
    clean = _tests({run.folder: some for run, rows in raw if (some := rows.clean())}, resamples, seed)
    made = tuple(
        NumberComparison(
            **vars(whole[run.folder]),
            run=run,
            only_base=rows.only_base,
            only_run=rows.only_run,
            clean=clean.get(run.folder),
        )
        for run, rows in raw
    )
    return ComparedRuns(base, split, made, refused)


def _matched(base: NumberPredictions, run: NumberPredictions) -> MatchedRows:
    """The rows both have, found by row hash and label."""
    here, there = same_rows(base.row_hash, base.labels, run.row_hash, run.labels)
    left, right = (
        {row.tobytes() for row in np.delete(part.row_hash, used, axis=0)}
        for part, used in ((base, here), (run, there))
    )
    other = len(left & right)
    if other:
        raise HeadError(
            f"{other} of their shared rows have another label", hint="train both on the same labels"
        )
    if not len(here):
        raise HeadError("they have no row in common", hint="runs on the same data can be compared")
    leaked = np.zeros(len(here), bool)
    for part, rows in ((base, here), (run, there)):
        if part.leaked is not None:
            leaked |= part.leaked[rows]
    return MatchedRows(
        labels=base.labels[here],
        base=base.predicted[here],
        run=run.predicted[there],
        label_names=(),
        only_base=len(base) - len(here),
        only_run=len(run) - len(here),
        leaked=leaked,
    )


def _tests(pairs: Mapping[Path, MatchedRows], resamples: int, seed: int) -> dict[Path, ErrorTests]:
    """All pairs, with p-values that are corrected together."""
    found = {
        folder: paired_errors(rows.labels, rows.base, rows.run, resamples=resamples, seed=seed)
        for folder, rows in pairs.items()
    }
    corrected = holm([p for one in found.values() for p in (one.mae.p, one.rmse.p)]).tolist()
    return {
        folder: ErrorTests(
            rows=len(pairs[folder].labels),
            mae=ErrorChange(one.mae, corrected[2 * place]),
            rmse=ErrorChange(one.rmse, corrected[2 * place + 1]),
        )
        for place, (folder, one) in enumerate(found.items())
    }
