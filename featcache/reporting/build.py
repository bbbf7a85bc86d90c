"""Builds a report from runs on disk, their predictions, and the cached features they were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.data.locate import SPLITS
from featcache.data.text_lookup import RowTexts, find_texts
from featcache.errors import CacheMiss, FeatcacheError, HeadError
from featcache.evaluation.paired import right_rows
from featcache.fingerprint import fingerprint
from featcache.inspection.document import findings, label_of
from featcache.inspection.inspection import (
    InspectedSplit,
    Inspection,
    LeakageScore,
    inspect_splits,
    score_without_leaks,
)
from featcache.plain_file import read_plain
from featcache.reporting import numbers
from featcache.reporting.document import (
    FeatureMap,
    HeadlineMetric,
    MetricChange,
    Mistake,
    ReportedRun,
    ReportSubject,
    RunComparison,
    RunReport,
    ScoreByRows,
    TrainingCurve,
)
from featcache.runs.compare import Change, compare_runs
from featcache.runs.learning_curve import SavedCurve
from featcache.runs.predictions import Predictions
from featcache.runs.record import CacheReference, CleanScores, FrozenRows, SplitScores
from featcache.runs.run import Run
from featcache.settings import DataSettings, Settings
from featcache.system.documents import read_document, tidied
from featcache.system.progress import OnProgress, Progress, ignore
from featcache.system.stores import is_remote, shown
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
    on_progress: OnProgress = ignore,
) -> RunReport:
    """Everything that a report shows of the first of `runs`, beside the others.

    What cannot be shown, for example texts that cannot be read, is left out, with a line in `notes`.

    Args:
        split: the split to report on; validation if the first run has no predictions of it.
        inspect, projection: see `inspect_splits`; of the map `pca`, `umap`, or `auto`: UMAP if it is there.
        reports_dir: a folder with learning curves; those of the same features are shown.
        settings: of this user; a URL that the run names is read only where they name it too.
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
    cached = _cached_features(subject, predictions, split, settings, notes)
    on_progress(Progress("reading texts", total=1))
    texts = texts_of_rows(subject, cached.hashes, settings, notes)
    inspection = _inspect(cached, subject, notes, on_progress) if inspect else None
    on_progress(Progress("scoring", total=1))
    own, scores = cached.own, subject.record.scores.get(split, SplitScores())
    report = RunReport(
        split=split,
        about=subject_of(subject, split),
        headline=headline_of(subject, split),
        runs=[_reported_run(run, split) for run in runs],
        base=runs[0].name if len(runs) > 1 else None,
        comparisons=_comparisons(runs, split, notes),
        curves=[_training_curve(run) for run in runs if len(run.history) > 1],
        learning_curves=_learning_curves(subject, reports_dir),
        confusion=scores.confusion,
        classes=scores.per_class,
        reliability=numbers.reliability(predictions),
        confidence=numbers.confidence_histogram(predictions),
        risk_curve=numbers.risk_curve(predictions, subject.record.abstention, split),
        mistakes=_mistakes(predictions, cached, texts, inspection),
        lengths=numbers.accuracy_by_length(predictions, own.n_tokens) if own else None,
        truncated=numbers.accuracy_by_truncation(predictions, own.truncated) if own else None,
        map=_feature_map(predictions, own, method, on_progress) if own else None,
        cost=None if subject.record.finetune else numbers.extraction_cost(runs, cached.splits, cached.files),
        data=findings(inspection, texts, LISTED) if inspection else None,
        without_leaks=_without_leaks(subject, predictions, cached, inspection),
        notes=list(map(without_folders, notes)),
    )
    return tidied(report, text=readable)


def scored_split(run: Run, split: str, notes: list[str]) -> str:
    """`split`, or validation if the run was not scored on it; HeadError without scores of either."""
    if split not in run.record.metrics:
        notes.append(f"{run.name} was not scored on {split}; this report is about validation")
        split = "validation"
    if not {"accuracy", "mae"} & run.record.metrics.get(split, {}).keys():
        what = f"{run.name} has no scores of {split} in its run.json"
        raise HeadError(what, hint="train that head again, or name other runs")
    return split


# --- the cached features -------------------------------------------------------------------------


@dataclass(frozen=True)
class _CachedFeatures:
    """What the cache still has of the features that a run was trained on.

    Attributes:
        split: the split that is reported on.
        own: that split, its rows in the order of the predictions; None if it is not cached.
        hashes: row hashes uint8 `[N, 32]` by split, also of the predictions.
    """

    files: Mapping[str, CacheFile]
    splits: Mapping[str, InspectedSplit]
    split: str
    own: InspectedSplit | None
    hashes: Mapping[str, np.ndarray]


def _cached_features(
    run: Run, predictions: Predictions, split: str, mine: Settings, notes: list[str]
) -> _CachedFeatures:
    files = _files(run, mine, notes)
    splits = {name: InspectedSplit.of(file, run.record.cached_view) for name, file in files.items()}
    own = splits.get(split)
    if own and not np.array_equal(own.features.row_hash, predictions.row_hash):
        notes.append(f"{files.pop(split).path.name} has other rows than the run's predictions")
        own = None
        del splits[split]
    if files and run.record.finetune:
        notes.append("the map and the inspection are of the features before fine-tuning")
    hashes = {name: one.features.row_hash for name, one in splits.items()}
    return _CachedFeatures(files, splits, split, own, {**hashes, split: predictions.row_hash})


def _files(run: Run, mine: Settings, notes: list[str]) -> dict[str, CacheFile]:
    """The cache files that the run was trained on, as far as they are there unchanged.

    For a fine-tuned run, those of its frozen backbone: the features of the tuned one were never cached.
    """
    caches, frozen = run.record.caches, run.record.frozen
    found = dict[str, CacheFile]()
    for split in (name for name in SPLITS if name in (frozen.rows if frozen else caches)):
        try:
            if frozen:
                if is_remote(frozen.cache_dir) and frozen.cache_dir != mine.paths.cache_dir:
                    raise CacheMiss(_not_mine(frozen.cache_dir, "cache_dir"))
                found[split] = _frozen_features(frozen, split, run.record.cached_view)
            else:
                found[split] = _unchanged(caches[split])
        except FeatcacheError as error:
            notes.append(f"{split} features are not shown: {error.what}")
    return found


def _not_mine(url: str, setting: str) -> str:
    return f"the run names {shown(url)}, which is read only if {setting} in featcache.toml names it too"


def _unchanged(cache: CacheReference) -> CacheFile:
    file = CacheFile(Path(cache.path))
    if file.fingerprint != cache.fingerprint:
        raise HeadError(f"{file.path} is another file than the one the run was trained on")
    return file


def _frozen_features(frozen: FrozenRows, split: str, view: str) -> CacheFile:
    """The features of the rows of a fine-tuned run from its frozen backbone; CacheMiss if not cached."""
    for file in Cache.open(frozen.cache_dir).files(split):
        same_rows = file.document.rows.chain == frozen.rows[split]
        same_encoder = fingerprint(file.document.encoder.to_json()) == frozen.encoder
        if same_rows and same_encoder and view in file.views:
            return file
    raise CacheMiss(f"{view} of the frozen backbone is not in the cache (featcache extract makes it)")


def texts_of_rows(run: Run, hashes: Mapping[str, np.ndarray], mine: Settings, notes: list[str]) -> RowTexts:
    """The texts of rows by their hashes uint8 `[N, 32]`, by split."""
    data = run.record.data or DataSettings()
    places = (data.data_files or {"": data.dataset}).values()
    own = (mine.data.data_files or {"": mine.data.dataset}).values()
    foreign = [place for place in places if is_remote(place) and place not in own]
    if foreign:
        texts = RowTexts({}, {}, _not_mine(foreign[0], "dataset or data_files"))
    else:
        texts = find_texts(data, hashes, run.record.seed)
    if texts.reason:
        notes.append(f"texts are not shown: {texts.reason}")
    return texts


def _inspect(
    cached: _CachedFeatures, run: Run, notes: list[str], on_progress: OnProgress
) -> Inspection | None:
    """The inspection; None, with a note, if it cannot be made."""
    if "train" not in cached.splits:
        notes.append("the data were not inspected: the train features are not in the cache")
        return None
    try:
        return inspect_splits(cached.splits, seed=run.record.seed, on_progress=on_progress)
    except HeadError as error:
        notes.append(f"the data were not inspected: {error.what}")
        return None


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
        **{name: run.metric(split, name) for name in ("accuracy", "macro_f1", "log_loss", "ece")},
    )


def _comparisons(runs: Sequence[Run], split: str, notes: list[str]) -> list[RunComparison]:
    """Every other run against the first, paired by row; p-values are corrected for all of them."""
    if len(runs) == 1:
        return []
    found = compare_runs(list(runs), runs[0], split, skip=True)
    notes += [f"{run.name} is not compared: {why}" for run, why in found.refused]

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
        for made in found.made
    ]


def _training_curve(run: Run) -> TrainingCurve:
    """Loss and accuracy by epoch; of a long training evenly spaced epochs, and the best one."""
    lines, best = run.history, run.record.best_epoch
    kept = set(np.linspace(0, len(lines) - 1, min(len(lines), DRAWN_EPOCHS)).round().astype(int).tolist())
    shown = [line for number, line in enumerate(lines) if number in kept or line.epoch == best]
    columns = {field.name: [getattr(line, field.name) for line in shown] for field in fields(shown[0])}
    return TrainingCurve(run=run.name, best_epoch=best, **columns)


def _learning_curves(run: Run, reports_dir: Path | None) -> list[ScoreByRows]:
    """Curves that were measured on the cache files of the run."""
    caches = {name: cache.fingerprint for name, cache in run.record.caches.items()}
    found = []
    for path in sorted(reports_dir.glob("curve-*/curve.json")) if reports_dir and caches else []:
        try:
            curve = read_document(SavedCurve, read_plain(path), str(path), ValueError)
        except (OSError, ValueError):
            continue  # a folder of that name from another program
        if curve.request.caches == caches and curve.request.view == run.record.view:
            points = [[point.rows, point.score, point.low, point.high] for point in curve.points]
            found.append(ScoreByRows(curve.kind, curve.metric, curve.split, points))
    return found


# --- the predictions -----------------------------------------------------------------------------


def _mistakes(
    predictions: Predictions, cached: _CachedFeatures, texts: RowTexts, inspection: Inspection | None
) -> list[Mistake]:
    rows, confidence = numbers.confident_mistakes(predictions)
    own, names = cached.own, predictions.label_names
    doubted: set[int] | None = None
    if own and inspection and not inspection.doubts.reason:
        doubted = set((inspection.doubts.rows - inspection.rows.of_split(cached.split).start).tolist())
    shown = texts.texts_of(cached.split, rows.tolist())
    return [
        Mistake(
            row=texts.number(cached.split, row),
            row_hash=predictions.row_hash[row].tobytes().hex(),
            label=label_of(predictions.labels[row], names),
            predicted=label_of(predictions.predicted[row], names),
            confidence=sure,
            tokens=int(own.n_tokens[row]) if own else None,
            cut=bool(own.truncated[row]) if own else None,
            label_doubted=None if doubted is None else row in doubted,
            text=text,
        )
        for row, sure, text in zip(rows.tolist(), confidence.tolist(), shown, strict=True)
    ]


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
    run: Run, predictions: Predictions, cached: _CachedFeatures, inspection: Inspection | None
) -> LeakageScore | None:
    """The accuracy of the run without the rows that an earlier split has too."""
    if inspection is None or cached.own is None:
        return None
    leaked, head = inspection.leaked(cached.split, SPLITS[: SPLITS.index(cached.split)]), run.head()
    shares, labels = predictions.probabilities, predictions.labels
    return score_without_leaks(cached.split, shares, labels, leaked, head.thresholds, head.costs)
