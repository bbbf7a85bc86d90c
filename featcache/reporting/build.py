"""A report as one plain JSON document: scores, mistakes, what the data hide, what it all cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.catalog import CacheFile, cache_files
from featcache.cache.remote.mirror import cache_folder
from featcache.data.locate import SPLITS
from featcache.data.text_lookup import RowTexts, find_texts
from featcache.errors import CacheMiss, FeatcacheError, HeadError
from featcache.evaluation.metrics import METRICS
from featcache.evaluation.paired import right_rows
from featcache.fingerprint import fingerprint
from featcache.inspection.document import findings
from featcache.inspection.inspection import InspectedSplit, Inspection, inspect_splits, score_without_leaks
from featcache.reporting.cost import cost
from featcache.reporting.numbers import by_length, by_truncation, confidence_histogram, reliability, worst
from featcache.reporting.projection import choose_projection, project
from featcache.runs.compare import Change, compare_runs
from featcache.runs.predictions import Predictions
from featcache.runs.record import CacheReference, FrozenRows, SplitScores
from featcache.runs.run import Run
from featcache.settings import DataSettings
from featcache.system.documents import json_document, tidied
from featcache.system.text import readable

REPORT_FORMAT = 1
LISTED = 20  # rows of each list of the inspection
MAPPED = 2000  # rows drawn on the map
DRAWN_EPOCHS = 300  # of a curve; more are thinned out

Progress = Callable[[str, int, int], None]


def build_report(
    runs: Sequence[Run],
    split: str = "test",
    *,
    inspect: bool = True,
    projection: str = "auto",
    reports_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything a report shows of the first of `runs`, beside the others; plain JSON.

    What cannot be shown (a cache file that is gone, texts that cannot be read) is left out and said in
    `notes`.

    Args:
        split: what is reported on; validation where the first run has no predictions of it.
        inspect: look at the cached features too, see `featcache.inspection.inspection`.
        projection: of the map: `pca`, `umap`, or `auto`: UMAP where it is installed.
        reports_dir: where learning curves of the same features may lie.
        progress: called with what is done, how much, of how much.

    Raises:
        HeadError: no runs; or the first has no predictions at all.
        UsageError: an unknown projection, or UMAP that is not installed.
    """
    if not runs:
        raise HeadError("no run to report on", hint="train one with: featcache train-head --epochs 100")
    method, say = choose_projection(projection), progress or (lambda what, done, total: None)
    subject, notes = runs[0], list[str]()
    if split not in subject.record.metrics:
        notes.append(f"{subject.name} was not scored on {split}; this report is about validation")
        split = "validation"
    said = subject.predictions(split)
    files = _files(subject, notes)
    file = files.get(split)
    places = None if file is None else _places(file, said, notes)
    if files and subject.record.finetune:
        notes.append("the map and the look at the data are of the features before fine-tuning")
    parts = {name: InspectedSplit.of(one, subject.record.view) for name, one in files.items()}
    hashes = {name: part.features.row_hash for name, part in parts.items()} or {split: said.row_hash}
    say("reading texts", 0, 1)
    texts = find_texts(subject.record.data or DataSettings(), hashes, subject.record.seed)
    if texts.reason:
        notes.append(f"texts are not shown: {texts.reason}")
    looked = _inspect(parts, subject, notes, say) if inspect else None
    say("scoring", 0, 1)
    scores = subject.record.scores.get(split, SplitScores())
    document: dict[str, Any] = {
        "format": REPORT_FORMAT,
        "split": split,
        "about": _about(subject, split),
        "headline": _headline(subject, split),
        "runs": [_run(run, split) for run in runs],
        **_comparisons(runs, split, notes),
        "curves": [_curve(run) for run in runs if len(run.history) > 1],
        "learning_curves": _learning_curves(subject, reports_dir),
        "confusion": scores.confusion,
        "classes": [asdict(line) for line in scores.per_class],
        "reliability": reliability(said),
        "confidence": confidence_histogram(said),
        "mistakes": _mistakes(said, parts.get(split), places, texts, split, looked),
        "lengths": None if places is None else by_length(said, parts[split].n_tokens[places]),
        "truncated": None if places is None else by_truncation(said, parts[split].truncated[places]),
        "map": None if places is None else _map(said, parts[split], places, method, say),
        "cost": None if subject.record.finetune else cost(runs, parts, files),
        "data": None if looked is None else findings(looked, texts, LISTED),
        "without_leaks": _clean_score(subject, said, looked, split, places),
        "notes": notes,
    }  # fmt: skip
    made: dict[str, Any] = json_document(tidied(document, text=readable))
    return made


def _inspect(
    parts: Mapping[str, InspectedSplit], run: Run, notes: list[str], say: Progress
) -> Inspection | None:
    """None, with a note, where it cannot be done."""
    if "train" not in parts:
        notes.append("the data were not inspected: the train features are not in the cache")
        return None
    try:
        seed = run.record.seed
        return inspect_splits(parts, seed=seed, on_progress=lambda now: say(now.stage, now.done, now.total))
    except HeadError as error:
        notes.append(f"the data were not inspected: {error.what}")
        return None


# --- what a run is ------------------------------------------------------------------------------


def _about(run: Run, split: str) -> dict[str, Any]:
    """The settings, as far as run.json has them (runs of earlier versions have less)."""
    record, features = run.record, run.record.features
    source = record.data and record.data.dataset
    if record.data and record.data.data_files:
        source = ", ".join(Path(file).name for file in record.data.data_files.values())
    return {
        "run": run.name,
        "head": record.head,
        "view": record.view,
        "task": record.task,
        "model": record.backbone.model or None,
        "revision": record.backbone.commit,
        "data": source,
        "rows": record.rows,
        "truncated": record.truncated,
        "prompt": features and features.prompt,
        "max_length": features and features.max_length,
        "settings": record.settings,
        "seed": record.seed,
        "label_names": list(record.label_names),
        "best_epoch": record.best_epoch,
        "parameters": record.parameters,
        "created": record.created,
        "calibration": None if record.calibration is None else asdict(record.calibration),
        "split": split,
    }


def _headline(run: Run, split: str) -> dict[str, dict[str, Any]]:
    intervals = run.record.intervals.get(split, {})
    metrics = run.record.metrics[split]
    return {
        name: {"value": metrics[name], "interval": intervals.get(name)} for name in METRICS if name in metrics
    }


def _run(run: Run, split: str) -> dict[str, Any]:
    record = run.record
    return {
        "run": run.name,
        "head": record.head,
        "view": record.view,
        "validation_accuracy": run.metric("validation", "accuracy"),
        "accuracy": run.metric(split, "accuracy"),
        "interval": record.intervals.get(split, {}).get("accuracy"),
        "macro_f1": run.metric(split, "macro_f1"),
        "log_loss": run.metric(split, "log_loss"),
        "ece": run.metric(split, "ece"),
        "seconds": record.seconds,
        "epochs": record.epochs,
        "parameters": record.parameters,
    }


def _comparisons(runs: Sequence[Run], split: str, notes: list[str]) -> dict[str, Any]:
    """Every other run against the first, paired by row; p-values corrected together."""
    if len(runs) == 1:
        return {"base": None, "comparisons": []}
    against = compare_runs(list(runs), runs[0], split, skip=True)
    notes += [f"{run.name} is not compared: {why}" for run, why in against.refused]

    def change(found: Change) -> dict[str, Any]:
        ends = [found.difference.low, found.difference.high]
        return {
            "difference": found.difference.value,
            "interval": ends,
            "p": found.corrected_p,
            "tie": found.tie,
        }

    return {
        "base": runs[0].name,
        "comparisons": [
            {
                "run": made.run.name,
                "rows": made.rows,
                "only_right": [made.discordant.only_first, made.discordant.only_second],
                "accuracy": change(made.accuracy),
                "macro_f1": change(made.macro_f1),
            }
            for made in against.made
        ],
    }


def _curve(run: Run) -> dict[str, Any]:
    """Loss and accuracy by epoch; of very long trainings every so many epochs, the best one among them."""
    lines = run.history
    kept = set(np.linspace(0, len(lines) - 1, min(len(lines), DRAWN_EPOCHS)).round().astype(int).tolist())
    best = run.record.best_epoch
    shown = [line for number, line in enumerate(lines) if number in kept or line.epoch == best]
    names = [field.name for field in fields(shown[0])]
    return {
        "run": run.name,
        "best_epoch": best,
        **{name: [getattr(line, name) for line in shown] for name in names},
    }


def _learning_curves(run: Run, reports_dir: Path | None) -> list[dict[str, Any]]:
    """Curves measured on the very cache files of the run."""
    caches = {name: cache.fingerprint for name, cache in run.record.caches.items()}
    found = []
    for path in sorted(reports_dir.glob("curve-*/curve.json")) if reports_dir and caches else []:
        try:
            curve = json.loads(path.read_bytes())
            same = curve["request"]["caches"] == caches and curve["request"]["view"] == run.record.view
            points = [[point[name] for name in ("rows", "score", "low", "high")] for point in curve["points"]]
            if same:
                found.append(
                    {
                        "head": curve["kind"],
                        "metric": curve["metric"],
                        "split": curve["split"],
                        "points": points,
                    }
                )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's folder of that name
    return found


# --- what its predictions say -------------------------------------------------------------------


def _mistakes(
    said: Predictions, part: InspectedSplit | None, places: np.ndarray | None, texts: RowTexts, split: str,
    looked: Inspection | None,
) -> list[dict[str, Any]]:  # fmt: skip
    rows, sure = worst(said)
    doubted = set()
    if looked is not None:
        start = looked.rows.starts[looked.rows.splits.index(split)]
        doubted = set((looked.doubts.rows - start).tolist())
    found = []
    for row, confidence in zip(rows.tolist(), sure.tolist(), strict=True):
        place = row if places is None else int(places[row])
        found.append(
            {
                "row": texts.number(split, place),
                "row_hash": said.row_hash[row].tobytes().hex(),
                "label": _names(said.labels[row], said.label_names),
                "predicted": _names(said.predicted[row], said.label_names),
                "confidence": confidence,
                "tokens": None if part is None or places is None else int(part.n_tokens[place]),
                "cut": None if part is None or places is None else bool(part.truncated[place]),
                "label_doubted": None if looked is None or looked.doubts.reason else place in doubted,
                "text": texts.text(split, place),
            }
        )
    return found


# --- what the cache knows -----------------------------------------------------------------------


def _files(run: Run, notes: list[str]) -> dict[str, CacheFile]:
    """The features that the run was trained on, as far as they are there unchanged.

    Of a fine-tuned run, those of its frozen backbone: its own were never kept.
    """
    found, caches, frozen = dict[str, CacheFile](), run.record.caches, run.record.frozen
    for split in (name for name in SPLITS if name in (frozen.rows if frozen else caches)):
        try:
            if frozen:
                found[split] = _frozen_features(frozen, split, run.record.view)
            else:
                found[split] = _unchanged(caches[split])
        except FeatcacheError as error:
            notes.append(f"{split} features are not shown: {error.what}")
    return found


def _unchanged(cache: CacheReference) -> CacheFile:
    file = CacheFile(Path(cache.path))
    if file.fingerprint != cache.fingerprint:
        raise HeadError(f"{file.path} is another file than the one the run was trained on")
    return file


def _frozen_features(frozen: FrozenRows, split: str, view: str) -> CacheFile:
    """What the frozen backbone made of the rows of a fine-tuned run; CacheMiss where it is not cached."""
    for file in cache_files(cache_folder(frozen.cache_dir), split):
        same_rows = file.document.rows.chain == frozen.rows[split]
        same_encoder = fingerprint(file.document.encoder.to_json()) == frozen.encoder
        if same_rows and same_encoder and view in file.views:
            return file
    raise CacheMiss(f"{view} of the frozen backbone is not in the cache (featcache extract makes it)")


def _places(file: CacheFile, said: Predictions, notes: list[str]) -> np.ndarray | None:
    """The row of the cache file that each prediction is of, int64 `[N]`."""
    hashes = np.asarray(file.sealed.column("row_hash"))
    if np.array_equal(hashes, said.row_hash):
        return np.arange(len(said))
    notes.append(f"{file.path.name} has other rows than the run's predictions")
    return None


def _map(
    said: Predictions, part: InspectedSplit, places: np.ndarray, method: str, say: Progress
) -> dict[str, Any] | None:
    """Up to MAPPED rows in two dimensions, chosen at random but always the same."""
    rows = np.sort(np.random.default_rng(0).permutation(len(said))[:MAPPED])
    if len(rows) < 3:
        return None
    say(f"map by {method}", 0, 1)
    points, explained = project(np.asarray(part.features.x[places[rows]], np.float32), method)
    right = right_rows(said.labels, said.predicted)[rows]
    return {
        "method": method,
        "explained": explained,
        "rows": len(said),
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "label": [_names(label, said.label_names) for label in said.labels[rows]],
        "right": right.tolist(),
    }


def _clean_score(
    run: Run, said: Predictions, looked: Inspection | None, split: str, places: np.ndarray | None
) -> dict[str, Any] | None:
    """The run's accuracy without the rows that an earlier split has, too."""
    if looked is None or places is None:
        return None
    leaked = looked.leaked(split, SPLITS[: SPLITS.index(split)])[places]
    thresholds = run.head().thresholds if said.multi_label else None
    return asdict(score_without_leaks(split, said.probabilities, said.labels, leaked, thresholds))


def _names(value: Any, names: tuple[str, ...]) -> str | list[str]:
    if np.ndim(value) == 0:
        return names[int(value)]
    return [names[number] for number in np.flatnonzero(value)]
