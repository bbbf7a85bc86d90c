"""Train a head on cached features: train on train, choose on validation, report on test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.errors import CacheMiss, HeadError
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.calibration import fit_temperature, tune_thresholds
from featcache.evaluation.metrics import Scores, row_parts, score, score_parts
from featcache.extraction.api import find_features
from featcache.heads.distributed import ALONE, Group
from featcache.heads.fit import Epoch, Fit
from featcache.heads.head import Head, probabilities_of, view_fingerprint
from featcache.heads.registry import KINDS, check_parallel
from featcache.heads.scorers import Scorer
from featcache.runs.predictions import Predictions
from featcache.runs.run import Run, save_run, scores_record
from featcache.settings import Settings


@dataclasses.dataclass(frozen=True)
class Data:
    """The cached splits that heads are trained, chosen and reported on.

    Attributes:
        files: by split; `test` only where it is cached.
        features: by view as it was asked for, then by split.
    """

    files: dict[str, CacheFile]
    features: dict[str, dict[str, Features]]

    def rows(self, view: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        found = self.features[view][split]
        return found.x, found.y


def train_head(
    settings: Settings,
    kind: str = "linear",
    view: str | None = None,
    *,
    progress: Callable[[Epoch], None] | None = None,
    group: Group = ALONE,
) -> Run:
    """Train one head on the cached train features and save it as a run.

    Args:
        settings: which features (model, data, views) and how to train.
        kind: one of `featcache.heads.registry.KINDS`: `linear` (AdamW), `logistic` (scikit-learn's), ...
        view: which of the cached views; the first of `settings.features.views` by default.
        progress: called after each epoch.
        group: workers that call this together, see `train_workers` for an easier way; the first
            one saves the run.

    Returns:
        The saved run, to every worker. Its test scores are there where a test split is cached.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        HeadError: data no head can be trained on.
        UsageError: several workers for a head that one fits.
        WorkerLost: another worker has ended.
    """
    if kind not in KINDS:
        raise HeadError(f"unknown head {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    shared: dict[str, Any] = {}
    if group.size > 1:
        check_parallel(kind)
        shared["group"] = group
    asked = view or settings.features.views[0]
    data = load_data(settings, [asked])
    _check_agreed(group, settings, kind, asked, data)
    solve, _ = KINDS[kind]
    # What is imported late is no part of the training time.
    import_module("sklearn.linear_model" if kind == "logistic" else "torch")
    began = time.perf_counter()
    train = data.rows(asked, "train")
    fit = solve(
        train, data.rows(asked, "validation"), len(data.features[asked]["train"].label_names),
        settings.head, seed=settings.seed, progress=progress, **shared,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return group.tell(save_fit(settings, kind, data, asked, fit, seconds) if group.rank == 0 else None)


def load_data(settings: Settings, views: Sequence[str]) -> Data:
    """The cached splits for `settings`, with these views.

    Raises:
        CacheMiss: train or validation, or one of the views, is not there.
        HeadError: splits that were made differently.
    """
    files = {split: find_features(settings, split) for split in ("train", "validation")}
    try:
        files["test"] = find_features(settings, "test")
    except CacheMiss:
        pass  # a run without a test score; the command line says so
    features = {
        view: {split: file.features(file.stored_view(view)) for split, file in files.items()}
        for view in views
    }
    for by_split in features.values():
        for cached in by_split.values():
            _check_same(by_split["train"], cached)
    return Data(files, features)


def save_fit(
    settings: Settings,
    kind: str,
    data: Data,
    view: str,
    fit: Fit,
    seconds: float,
    more: dict[str, Any] | None = None,
) -> Run:
    """Calibrate a fitted head on validation, score it on every split, save it as a run.

    Args:
        view: as it was asked for, a key of `data.features`.
        seconds: that the fit took.
        more: further content of run.json.
    """
    features = data.features[view]
    train, held_out = features["train"], features["validation"]
    head, calibration = _calibrated(fit.best, train, held_out, kind)
    heads = {"head": head}
    if fit.history:
        heads["last"] = _calibrated(fit.last, train, held_out, kind)[0]
    scores = {split: _score_rows(head, part) for split, part in features.items()}
    reported = {split: part for split, part in features.items() if split != "train"}
    probabilities = {split: head.predict_proba(part.x) for split, part in reported.items()}
    said = {
        split: Predictions.of(part.row_hash, part.y, probabilities[split], part.label_names, head.thresholds)
        for split, part in reported.items()
    }
    intervals = {
        split: bootstrap_intervals(probabilities[split], part.y, head.thresholds)
        for split, part in reported.items()
    }
    record = _record(settings, kind, train, data.files, fit, seconds, scores)
    record |= {"parameters": head.parameters, "intervals": intervals, "calibration": calibration}
    return save_run(Path(settings.paths.reports_dir), record | (more or {}), heads, said)


def _score_rows(head: Head, rows: Features) -> Scores:
    """Scores of cached rows, some of them in memory at a time."""
    parts = ((head.predict_proba(rows.x[part]), rows.y[part]) for part in row_parts(len(rows.y)))
    return score_parts(parts, rows.label_names, head.thresholds)


def _calibrated(
    scorer: Scorer, train: Features, held_out: Features, kind: str
) -> tuple[Head, dict[str, float]]:
    """The head with temperature (and thresholds) from validation, and what that did to validation."""
    logits, y = scorer.logits(held_out.x), held_out.y
    several = y.ndim == 2
    raw = probabilities_of(logits, 1.0, multi_label=several)
    before = score(raw, y, held_out.label_names)
    # Where all is right, no temperature is too low: then nothing can be learned about it.
    temperature = fit_temperature(logits, y) if before.accuracy < 1 else 1.0
    scaled = probabilities_of(logits, temperature, multi_label=several)
    after = score(scaled, y, held_out.label_names)
    thresholds = tune_thresholds(scaled, y) if several else None
    head = Head(scorer, train.label_names, train.view, train.encoder, kind, temperature, thresholds)
    return head, {
        "temperature": temperature,
        "ece_before": before.ece,
        "ece_after": after.ece,
        "log_loss_before": before.log_loss,
        "log_loss_after": after.log_loss,
    }


def _check_agreed(group: Group, settings: Settings, kind: str, view: str, data: Data) -> None:
    """Refuse a worker that was started otherwise than the first one: each would wait for other sums."""
    files = {split: file.fingerprint for split, file in data.files.items()}
    own = (kind, view, settings.seed, settings.head, files)
    if group.tell(own) != own:
        raise HeadError(
            f"worker {group.rank + 1} of {group.size} has other settings or features than the first one",
            hint="start all with the same command, the same featcache.toml and the same cache",
        )


def _check_same(train: Features, other: Features) -> None:
    if other.encoder != train.encoder or other.label_names != train.label_names:
        raise HeadError(
            f"the {other.split} features were made otherwise than the train features",
            hint="extract all splits with the same settings: featcache extract --all-splits",
        )


def _record(
    settings: Settings,
    kind: str,
    train: Features,
    files: dict[str, CacheFile],
    fit: Fit,
    seconds: float,
    scores: dict[str, Scores],
) -> dict[str, Any]:
    """The content of run.json."""
    used = KINDS[kind][1]
    made = {split: file.record.made for split, file in files.items()}
    return {
        "head": kind,
        "view": train.view,
        "task": "multi-label" if train.y.ndim == 2 else "single-label",
        "fingerprint": view_fingerprint(train.encoder, train.view),
        "seconds": seconds,
        "metrics": {split: found.summary for split, found in scores.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": settings.seed,
        "settings": {name: getattr(settings.head, name) for name in used},
        "solver": fit.about or {},
        "epochs": len(fit.history) or None,
        "best_epoch": fit.best_epoch or None,
        "rows": {split: file.rows for split, file in files.items()},
        "pairs": made["train"].pairs,  # None: made by a featcache that did not say
        "truncated": {split: file.truncated for split, file in files.items()},
        "label_names": list(train.label_names),
        "scores": {split: scores_record(found) for split, found in scores.items()},
        "extraction_seconds": sum(part.seconds or 0.0 for part in made.values()),
        "bytes_cached": sum(file.rows for file in files.values()) * train.x.shape[1] * train.x.dtype.itemsize,
        "backbone": dataclasses.asdict(settings.backbone) | {"commit": made["train"].commit},
        "features": dataclasses.asdict(settings.features),
        "data": dataclasses.asdict(settings.data),
        "caches": {
            split: {"path": str(file.path), "fingerprint": file.fingerprint} for split, file in files.items()
        },
        "history": [dataclasses.asdict(line) for line in fit.history],
    }
