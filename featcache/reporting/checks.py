"""The data checks of a report: those of row hashes and counts, and those that need features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from featcache.data.text_lookup import RowTexts
from featcache.inspection.data_checks import DataCheck, data_checks, rows_to_check
from featcache.inspection.inspection import Inspection, LeakageScore
from featcache.reporting.cached import CachedFeatures
from featcache.runs.run import Run
from featcache.settings import DataSettings, Settings
from featcache.system.units import interval_text, percent_text, share_text
from featcache.translation.language import gettext as _
from featcache.translation.language import noted

DOUBTED = (0.01, 0.2)  # shares of likely label errors from which on a check says `look`, and `bad`


def report_checks(
    run: Run,
    cached: CachedFeatures,
    texts: RowTexts,
    inspection: Inspection | None,
    without_leaks: LeakageScore | None,
    settings: Settings,
) -> list[DataCheck]:
    """Every check that can be made; none where the train features are not cached."""
    if "train" not in cached.files:
        return []
    # A source that may not be read, or cannot be, is not tried again.
    data = DataSettings() if texts.reason else run.record.data or DataSettings()
    rows, names, rule = rows_to_check(replace(settings, data=data, seed=run.record.seed), cached.files)
    found = data_checks(rows, names, rule=rule, record=run.record)
    exact = run.record.clean.leaked.get(cached.split, 0) if run.record.clean else 0
    return [*found, *_near_leaks(without_leaks, exact), *_label_errors(inspection)]


def _near_leaks(score: LeakageScore | None, exact: int) -> Iterator[DataCheck]:
    """Rows that are nearly equal to one of an earlier split, beside those that are equal."""
    if score is None:
        return
    name, near, split = noted("nearly equal rows"), score.removed - exact, _(score.split)
    if near <= 0:
        none = _("no {split} row is nearly equal to a row of an earlier split", split=split)
        yield DataCheck(name, "good", none)
        return
    low, high = score.whole_interval
    moved = score.rows > score.removed and not low <= score.without <= high
    alone = (
        "{near:,} of {rows:,} {split} rows ({share}) are nearly equal to rows of an earlier split; "
        "without them the share of right rows is {score} {ends}"
    )
    leaked = (
        "{near:,} of {rows:,} {split} rows ({share}) are nearly equal to rows of an earlier split; "
        "without them and leaked rows the share of right rows is {score} {ends}"
    )
    said = _(
        leaked if exact else alone, near=near, rows=score.rows, split=split,
        share=share_text(near, score.rows), score=percent_text(score.without, " %"),
        ends=interval_text(*score.without_interval),
    )  # fmt: skip
    yield DataCheck(name, "bad" if moved else "look", said, _("featcache inspect lists them"))


def _label_errors(inspection: Inspection | None) -> Iterator[DataCheck]:
    if inspection is None or inspection.doubts.reason:
        return
    rows, total = len(inspection.doubts.rows), len(inspection.rows)
    share, (look, bad) = rows / max(total, 1), DOUBTED
    doubted = (
        "{rows:,} of {total:,} rows ({share}) have a label that heads trained on the other rows "
        "contradict with confidence"
    )
    none = "no label is contradicted with confidence by heads trained on the other rows"
    said = _(doubted if rows else none, rows=rows, total=total, share=share_text(rows, total))
    hint = _("read some of them under “Doubtful labels”") if share >= look else ""
    yield DataCheck(
        noted("likely label errors"), "bad" if share >= bad else "look" if hint else "good", said, hint
    )
