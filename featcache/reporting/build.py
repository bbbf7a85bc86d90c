"""Builds a report from runs on disk, their predictions, and the cached features they were trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featcache.data.locate import SPLITS
from featcache.data.text_lookup import RowTexts
from featcache.errors import HeadError
from featcache.evaluation.paired import right_rows
from featcache.inspection.document import findings, label_of
from featcache.inspection.inspection import (
    InspectedSplit,
    Inspection,
    LeakageScore,
    score_without_leaks,
)
from featcache.reporting import confusion, numbers
from featcache.reporting.cached import CachedFeatures, cached_features, inspected, texts_of_rows
from featcache.reporting.checks import report_checks
from featcache.reporting.document import (
    FeatureMap,
    HeadlineMetric,
    MetricChange,
    ReportedRun,
    ReportOrigin,
    ReportSubject,
    RunComparison,
    RunReport,
    ScoreByRows,
    TrainingCurve,
)
from featcache.reporting.mistakes import list_mistakes
from featcache.reporting.sentences import report_sentences
from featcache.reporting.verdict import verdict
from featcache.runs.compare import Change, Comparisons, compare_runs
from featcache.runs.few_labels.side_by_side import saved_comparison
from featcache.runs.learning_curve import SavedCurve, saved_curves
from featcache.runs.predictions import Predictions
from featcache.runs.record import CleanScores, SplitScores
from featcache.runs.run import Run, best_run
from featcache.settings import DataSettings, Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.text import last_part, readable, short_name, without_folders

LISTED = 20  # rows of each list of the inspection
MAPPED = 2000  # rows on the map
DRAWN_EPOCHS = 300  # epochs of a training curve
DEFAULT_SETTINGS = Settings()


def build_report(
    runs: Sequence[Run],
    split: str = "test",
    *,
    inspect: bool = True,
    projection: str = "auto",
    reports_dir: Path | None = None,
    settings: Settings = DEFAULT_SETTINGS,
    origin: ReportOrigin | None = None,
    on_progress: OnProgress = ignore,
) -> RunReport:
    """Everything that a report shows of the first of `runs`, beside the others.

    What cannot be shown, for example texts that cannot be read, is left out, with a line in `notes`.

    Args:
        split: the split to report on; validation if the first run has no predictions of it.
        inspect, projection: see `inspect_splits`; of the map `pca`, `umap`, or `auto`: UMAP if it is there.
        reports_dir: a folder with learning curves; those of the same features are shown.
        settings: of this user; a URL that the run names is read only where they name it too.
        origin: what the page says of itself; by default today and this version.
        on_progress: receives a stage for each part of the work.

    Raises:
        HeadError: no runs, or the first one has no predictions.
        UsageError: an unknown projection, or UMAP is not installed.
    """
    if not runs:
        raise HeadError("no run to report on", hint="train one with: featcache train-head --epochs 100")
    subject, notes, method = runs[0], list[str](), numbers.choose_projection(projection)
    split = scored_split(subject, split, notes)
    predictions = subject.predictions(split)
    cached = cached_features(subject, predictions.row_hash, split, settings, notes)
    on_progress(Progress("reading texts", total=1))
    texts = texts_of_rows(subject, cached.hashes, settings, notes)
    inspection = inspected(cached, subject, notes, on_progress) if inspect else None
    on_progress(Progress("scoring", total=1))
    own, against = cached.own, _compared(runs, split, notes)
    curves = saved_curves(reports_dir, runs) if reports_dir else []
    mistakes = list_mistakes(predictions, cached, texts, inspection)
    without_leaks = _without_leaks(subject, predictions, cached, inspection)
    report = RunReport(
        split=split,
        **_of_runs(runs, against, split),
        **_of_curves(subject, curves, reports_dir),
        **_of_predictions(subject, predictions, own, split, texts),
        mistakes=mistakes.rows,
        wrong=mistakes.wrong,
        wrong_and_doubted=mistakes.doubted,
        map=_feature_map(predictions, own, method, on_progress) if own else None,
        cost=None if subject.record.finetune else numbers.extraction_cost(runs, cached.splits, cached.files),
        data=findings(inspection, texts, LISTED) if inspection else None,
        without_leaks=without_leaks,
        checks=report_checks(subject, cached, texts, inspection, without_leaks, settings),
        notes=list(map(without_folders, notes)),
        origin=origin or origin_of(),
    )
    chosen = len(runs) > 1 and best_run(list(runs)) is subject
    found = verdict(subject, against, split, chosen=chosen, curves=curves)
    return tidied(replace(report, verdict=report_sentences(report, found)), text=readable)


def _of_runs(runs: Sequence[Run], against: Comparisons | None, split: str) -> dict[str, Any]:
    """The parts of a report that run.json files have, by their names."""
    return {
        "about": subject_of(runs[0], split),
        "headline": headline_of(runs[0], split),
        "runs": [_reported_run(run, split) for run in runs],
        "base": runs[0].name if len(runs) > 1 else None,
        "comparisons": _comparisons(against),
        "curves": [_training_curve(run) for run in runs if len(run.history) > 1],
    }


def _of_predictions(
    run: Run, predictions: Predictions, own: InspectedSplit | None, split: str, texts: RowTexts
) -> dict[str, Any]:
    """The parts of a report that are numbers of the predictions of one split, by their names."""
    scores = run.record.scores.get(split, SplitScores())
    confused = confusion.most_confused(scores.confusion) if scores.confusion else []
    return {
        "confusion": scores.confusion,
        "classes": scores.per_class,
        "matrix": confusion.matrix_cells(predictions, split, confused, texts),
        "matrix_labels": confused,
        "majority": numbers.majority(predictions),
        "reliability": numbers.reliability(predictions),
        "confidence": numbers.confidence_histogram(predictions),
        "risk_curve": numbers.risk_curve(predictions, run.record.abstention, split),
        "lengths": numbers.accuracy_by_length(predictions, own.n_tokens) if own else None,
        "truncated": numbers.accuracy_by_truncation(predictions, own.truncated) if own else None,
    }


def origin_of(command: str = "", files: Sequence[str] = ()) -> ReportOrigin:
    """A report that is made today, by this version."""
    return ReportOrigin(time.strftime("%Y-%m-%d"), version("featcache"), command, list(files))


def scored_split(run: Run, split: str, notes: list[str]) -> str:
    """`split`, or validation if the run was not scored on it; HeadError without scores of either."""
    if split not in run.record.metrics:
        notes.append(f"{run.name} was not scored on {split}; this report is about validation")
        split = "validation"
    if not {"accuracy", "mae"} & run.record.metrics.get(split, {}).keys():
        what = f"{run.name} has no scores of {split} in its run.json"
        raise HeadError(what, hint="train that head again, or name other runs")
    return split


# --- the runs ------------------------------------------------------------------------------------


def subject_of(run: Run, split: str) -> ReportSubject:
    """The settings, as far as run.json has them (runs of earlier versions have fewer)."""
    record, features = run.record, run.record.features
    data = record.data or DataSettings()
    files = ", ".join(map(last_part, (data.data_files or {}).values()))
    return ReportSubject(
        run=run.name,
        head=record.head,
        view=record.view,
        short_view=record.short_view,
        task=record.task,
        model=short_name(record.backbone.model) or None,
        revision=record.backbone.commit,
        data=files or short_name(data.dataset),
        rows=record.rows,
        truncated=record.truncated,
        prompt=features.prompt if features else None,
        max_length=features.max_length if features else None,
        settings=record.settings,
        seed=record.seed,
        label_names=record.label_names,
        best_epoch=record.best_epoch,
        parameters=record.parameters,
        created=record.created,
        calibration=record.calibration,
        split=split,
        leaks=record.about_leaks,
        seconds=record.seconds,
        extraction_seconds=record.extraction_seconds,
    )


def headline_of(run: Run, split: str) -> dict[str, HeadlineMetric]:
    metrics, intervals = run.record.metrics[split], run.record.intervals.get(split, {})
    clean = run.record.clean or CleanScores("")
    apart, ends = clean.metrics.get(split, {}), clean.intervals.get(split, {})
    return {
        name: HeadlineMetric(value, intervals.get(name), apart.get(name), ends.get(name))
        for name, value in metrics.items()
    }


def _reported_run(run: Run, split: str) -> ReportedRun:
    return ReportedRun(
        run=run.name,
        head=run.record.head,
        view=run.record.short_view,
        validation_accuracy=run.metric("validation", "accuracy"),
        interval=run.record.intervals.get(split, {}).get("accuracy"),
        seconds=run.record.seconds,
        epochs=run.record.epochs,
        parameters=run.record.parameters,
        clean_accuracy=run.metric(split, "accuracy", clean=True) if run.record.clean else None,
        **{name: run.metric(split, name) for name in ("accuracy", "macro_f1", "micro_f1", "log_loss", "ece")},
    )


def _compared(runs: Sequence[Run], split: str, notes: list[str]) -> Comparisons | None:
    """Every other run against the first, paired by row; p-values are corrected for all of them."""
    if len(runs) == 1:
        return None
    found = compare_runs(list(runs), runs[0], split, skip=True)
    notes += [f"{run.name} is not compared: {why}" for run, why in found.refused]
    return found


def _comparisons(found: Comparisons | None) -> list[RunComparison]:
    def change(made: Change) -> MetricChange:
        difference = made.difference
        return MetricChange(difference.value, (difference.low, difference.high), made.corrected_p, made.tie)

    return [
        RunComparison(
            run=made.run.name,
            rows=made.rows,
            only_right=[made.discordant.only_first, made.discordant.only_second],
            accuracy=change(made.accuracy),
            macro_f1=change(made.macro_f1),
            clean_accuracy=change(made.clean.accuracy) if made.clean else None,
        )
        for made in (found.made if found else ())
    ]


def _training_curve(run: Run) -> TrainingCurve:
    """Loss and accuracy by epoch; of a long training evenly spaced epochs, and the best one."""
    lines, best = run.history, run.record.best_epoch
    kept = set(np.linspace(0, len(lines) - 1, min(len(lines), DRAWN_EPOCHS)).round().astype(int).tolist())
    shown = [line for number, line in enumerate(lines) if number in kept or line.epoch == best]
    columns = {field.name: [getattr(line, field.name) for line in shown] for field in fields(shown[0])}
    return TrainingCurve(run=run.name, best_epoch=best, **columns)


def _of_curves(run: Run, curves: Sequence[SavedCurve], reports_dir: Path | None) -> dict[str, Any]:
    """The parts of a report that `featcache curve` measured, by their names."""
    return {
        "learning_curves": _learning_curves(run, curves),
        "few_labels": saved_comparison(reports_dir, run) if reports_dir else None,
    }


def _learning_curves(run: Run, curves: Sequence[SavedCurve]) -> list[ScoreByRows]:
    """Those that were measured on the cache files and the view of the run."""
    caches = {name: cache.fingerprint for name, cache in run.record.caches.items()}
    return [
        ScoreByRows(
            curve.kind,
            curve.metric,
            curve.split,
            [[point.rows, point.score, point.low, point.high] for point in curve.points],
        )
        for curve in curves
        if curve.request.caches == caches and curve.request.view == run.record.view
    ]


# --- the predictions -----------------------------------------------------------------------------


def _feature_map(
    predictions: Predictions, own: InspectedSplit, method: str, on_progress: OnProgress
) -> FeatureMap | None:
    """Up to MAPPED rows in two dimensions, chosen at random with a fixed seed; None for fewer than 3."""
    rows = np.sort(np.random.default_rng(0).permutation(len(predictions))[:MAPPED])
    if len(rows) < 3:
        return None
    on_progress(Progress(f"map by {method}", total=1))
    points, explained = numbers.project(np.asarray(own.features.x[rows], np.float32), method)
    return FeatureMap(
        method=method,
        explained=explained,
        rows=len(predictions),
        x=points[:, 0].tolist(),
        y=points[:, 1].tolist(),
        label=[label_of(label, predictions.label_names) for label in predictions.labels[rows]],
        right=right_rows(predictions.labels, predictions.predicted)[rows].tolist(),
    )


def _without_leaks(
    run: Run, predictions: Predictions, cached: CachedFeatures, inspection: Inspection | None
) -> LeakageScore | None:
    """The accuracy of the run without the rows that an earlier split has too."""
    if inspection is None or cached.own is None:
        return None
    leaked, head = inspection.leaked(cached.split, SPLITS[: SPLITS.index(cached.split)]), run.head()
    shares, labels = predictions.probabilities, predictions.labels
    return score_without_leaks(cached.split, shares, labels, leaked, head.thresholds, head.costs)
