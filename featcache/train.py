"""Train a head on cached features: train on train, choose on validation, report on test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from featcache.config import Settings
from featcache.errors import CacheMiss, HeadError
from featcache.extract import find_features
from featcache.heads import Head, view_fingerprint
from featcache.metrics import Scores, score
from featcache.runs import Run, save_run, scores_record
from featcache.solvers import Epoch, Fit, fit_adamw, fit_logistic
from featcache.store import CacheFile, Features

KINDS = ("linear", "logistic")


def train_head(
    settings: Settings,
    kind: str = "linear",
    view: str | None = None,
    *,
    progress: Callable[[Epoch], None] | None = None,
) -> Run:
    """Train one head on the cached train features and save it as a run.

    Args:
        settings: which features (model, data, views) and how to train.
        kind: `linear` (AdamW for `settings.head.epochs`) or `logistic` (scikit-learn's baseline).
        view: which of the cached views; the first of `settings.features.views` by default.
        progress: called after each epoch.

    Returns:
        The saved run. Its test scores are there where a test split is cached.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        HeadError: data no head can be trained on.
    """
    if kind not in KINDS:
        raise HeadError(f"unknown head {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    files = _cached_splits(settings)
    asked = view or settings.features.views[0]
    features = {split: _view_of(file, asked) for split, file in files.items()}
    for cached in features.values():
        _check_same(features["train"], cached)
    import_module("torch" if kind == "linear" else "sklearn.linear_model")  # no part of the training time
    began = time.perf_counter()
    fit = _fit(features, kind, settings, progress)
    seconds = time.perf_counter() - began
    heads = {"head": _head(fit.best, features["train"], kind)}
    if fit.history:
        heads["last"] = _head(fit.last, features["train"], kind)
    probabilities = {name: heads["head"].predict_proba(data.x) for name, data in features.items()}
    scores = {name: score(probabilities[name], data.y, data.label_names) for name, data in features.items()}
    record = _record(settings, kind, features["train"], files, fit, seconds, scores)
    kept = {
        name: (data.row_hash, data.y, probabilities[name])
        for name, data in features.items()
        if name != "train"
    }
    return save_run(Path(settings.paths.reports_dir), record, heads, kept)


def _cached_splits(settings: Settings) -> dict[str, CacheFile]:
    """Train and validation, which must be there, and test if it is."""
    files = {split: find_features(settings, split) for split in ("train", "validation")}
    try:
        files["test"] = find_features(settings, "test")
    except CacheMiss:
        pass  # a run without a test score; the command line says so
    return files


def _view_of(file: CacheFile, asked: str) -> Features:
    """The view by the name it was asked for (`12/cls`) or its canonical name (`last/cls`)."""
    for request in file.record.get("requests", []):
        if asked in request["views"]:
            return file.features(request["views"][asked])
    return file.features(asked)


def _check_same(train: Features, other: Features) -> None:
    if other.encoder != train.encoder or other.label_names != train.label_names:
        raise HeadError(
            f"the {other.split} features were made otherwise than the train features",
            hint="extract all splits with the same settings: featcache extract --all-splits",
        )


def _fit(
    features: dict[str, Features],
    kind: str,
    settings: Settings,
    progress: Callable[[Epoch], None] | None,
) -> Fit:
    train, validation = ((features[name].x, features[name].y) for name in ("train", "validation"))
    classes = len(features["train"].label_names)
    if kind == "logistic":
        return fit_logistic(train, validation, classes, settings.head)
    return fit_adamw(train, validation, classes, settings.head, seed=settings.seed, progress=progress)


def _head(weights: tuple[np.ndarray, np.ndarray], train: Features, kind: str) -> Head:
    return Head(*weights, train.label_names, train.view, train.encoder, kind)


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
    used = {"linear": ("epochs", "lr", "weight_decay", "batch_size"), "logistic": ("C",)}[kind]
    made = {split: file.record.get("made", {}) for split, file in files.items()}
    return {
        "head": kind,
        "view": train.view,
        "fingerprint": view_fingerprint(train.encoder, train.view),
        "seconds": seconds,
        "metrics": {split: found.summary for split, found in scores.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": settings.seed,
        "settings": {name: getattr(settings.head, name) for name in used},
        "epochs": len(fit.history) or None,
        "best_epoch": fit.best_epoch or None,
        "parameters": int(fit.best[0].size + fit.best[1].size),
        "rows": {split: file.rows for split, file in files.items()},
        "truncated": {split: file.truncated for split, file in files.items()},
        "label_names": list(train.label_names),
        "scores": {split: scores_record(found) for split, found in scores.items()},
        "extraction_seconds": sum(part.get("seconds", 0.0) for part in made.values()),
        "backbone": dataclasses.asdict(settings.backbone) | {"commit": made["train"].get("commit")},
        "features": dataclasses.asdict(settings.features),
        "data": dataclasses.asdict(settings.data),
        "caches": {
            split: {"path": str(file.path), "fingerprint": file.fingerprint} for split, file in files.items()
        },
        "history": [dataclasses.asdict(line) for line in fit.history],
    }
