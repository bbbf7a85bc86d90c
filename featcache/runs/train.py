"""Train a head on cached features: train on train, choose on validation, report on test."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.backbone.token_rows import ATTENTIVE
from featcache.cache.catalog import Features
from featcache.cache.view_names import LEXICAL, split_view
from featcache.errors import HeadError, UsageError
from featcache.evaluation.costs import read_costs
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.fit import Epoch, Fit
from featcache.heads.head import Head
from featcache.heads.lexical.fit import fit_beside
from featcache.heads.lexical.rows import WordRows
from featcache.heads.numbers.registry import check_number_head, kinds_for, number_settings
from featcache.heads.registry import KINDS, check_parallel
from featcache.heads.view_shares import view_shares
from featcache.runs.abstain import with_abstention
from featcache.runs.finish import calibrate, number_head, save_trained
from featcache.runs.inputs.joined_files import backbone_records
from featcache.runs.inputs.splits import CachedSplits, drawn_rows, load_data, load_states
from featcache.runs.numbers.interval import with_interval
from featcache.runs.record import CalibrationRecord, SweepRecord, TrainingRecord
from featcache.runs.run import Run
from featcache.runs.weighted_rows import draw_per_class, weighted_rows
from featcache.runs.words import CountedWords
from featcache.settings import Settings
from featcache.system.progress import OnProgress, ignore


def train_head(
    settings: Settings,
    kind: str = "linear",
    view: str | None = None,
    *,
    rows_per_class: int | None = None,
    progress: Callable[[Epoch], None] | None = None,
    report: OnProgress | None = None,
    group: ProcessGroup = ALONE,
    words: CountedWords | None = None,
) -> Run:
    """Train one head on the cached train features and save it as a run.

    Args:
        settings: which features (model, data, views) and how to train.
        kind: one of `featcache.heads.registry.KINDS`: `linear` (AdamW), `logistic` (scikit-learn's), ...
        view: which of the cached views, or several of them, joined by commas; `lexical` beside them adds the
            words of the texts. The first of `settings.features.views` by default; of the lexical head
            `lexical`, for which nothing is extracted, of the attentive head `depth`: see `read_states`.
        rows_per_class: so many train rows of each class, drawn by `settings.seed`; all rows by default.
        progress: called after each epoch.
        report: called while token states are made, and by heads without epochs: the stages `count` (texts
            whose n-grams are counted), `words`, `penalties` and `scales` (tried) and `solve` (passes).
        group: the worker processes that call this function together; the first one saves the run. See
            `train_with_workers` for an easier way.
        words: n-grams that several heads share; each head counts its own by default.

    Returns:
        The saved run, to every worker. It has test scores if a test split is cached.

    Raises:
        CacheMiss, HeadError, UsageError, WorkerLost: each says what to do.
    """
    _check_asked(settings, kind, view, rows_per_class)
    if group.size > 1:
        check_parallel(kind)
    asked = view or {LEXICAL: LEXICAL, ATTENTIVE: DEPTH}.get(kind, settings.features.views[0])
    lexical = LEXICAL in split_view(asked)
    if lexical and group.size > 1:
        raise UsageError("words are for one worker", hint="leave --workers out, or lexical out of --view")
    found, states = words or CountedWords(report or ignore), kind == ATTENTIVE
    data = load_states(settings, asked, report) if states else load_data(settings, [asked], group, found)
    _check_agreed(group, settings, kind, asked, data)
    whole = data.features[asked]["train"]
    drawn = None if rows_per_class is None else draw_per_class(whole.y, rows_per_class, settings.seed)
    costs = read_costs_for(settings, whole)
    train, head = weighted_rows(settings, kind, whole, drawn)
    data = data if drawn is None else drawn_rows(data, drawn)
    train, validation = data.scaled(asked, train, data.rows(asked, "validation"))
    device = settings.backbone.device if group.size == 1 else group.device
    solve = _solver(kind, task_of(train.y), device, report or ignore, lexical=lexical)
    began, classes = time.perf_counter(), len(whole.label_names)
    more: dict[str, Any] = {"group": group} if group.size > 1 else {}
    fit = solve(train, validation, classes, head, seed=settings.seed, on_epoch=progress, **more)
    seconds = time.perf_counter() - began + fit.seconds_before
    seconds += train.x.seconds if isinstance(train.x, WordRows) else 0.0
    run = save_fit(settings, kind, data, asked, fit, seconds, costs=costs) if group.rank == 0 else None
    return group.broadcast_object(run)


def _solver(kind: str, task: str, device: str, report: OnProgress, *, lexical: bool) -> Callable[..., Fit]:
    """What fits a head of this kind, with what it imports: that is no part of the training time."""
    import_module("torch")
    import_module("sklearn.linear_model" if kind == "logistic" else "featcache.heads.logistic.penalty")
    known = kinds_for(task)[kind]
    solve = known.fit
    if KINDS[kind].reports:
        solve = partial(solve, on_progress=report)
    if known.on_device:
        solve = partial(solve, device=device)
    return partial(fit_beside, solve, on_progress=report) if lexical and kind != LEXICAL else solve


def _check_asked(settings: Settings, kind: str, view: str | None, rows_per_class: int | None) -> None:
    """Refuse a head that is not there, or not for the labels' task, before anything is read."""
    if kind not in KINDS:
        raise HeadError(f"unknown head {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if settings.data.task == REGRESSION:
        check_number_head(settings, kind, view, rows_per_class)


def read_costs_for(settings: Settings, train: Features) -> np.ndarray | None:
    """The cost matrix that `settings` name, for the labels of the train rows; None where they name none.

    Raises:
        UsageError: a file that is no such matrix, or rows with several labels.
    """
    if settings.head.costs is None:
        return None
    if train.y.ndim == 2:
        raise UsageError("--costs: a cost matrix is for one label a row; these rows have several")
    return read_costs(settings.head.costs, train.label_names)


def save_fit(
    settings: Settings,
    kind: str,
    data: CachedSplits,
    view: str,
    fit: Fit,
    seconds: float,
    sweep: SweepRecord | None = None,
    costs: np.ndarray | None = None,
) -> Run:
    """Calibrate a fitted head on validation, score it on every split, save it as a run.

    Args:
        view: as it was asked for, a key of `data.features`.
        seconds: of the fit.
        sweep: the sweep that the head is the best of.
        costs: see `Head.costs`.
    """
    data = data.reading(view, fit.ngrams)
    features, sources = data.features[view], data.sources
    heads = _finished_heads(settings, kind, data, view, fit, costs)
    rows = {split: len(part.y) for split, part in features.items()}
    x, task = features["train"].x, task_of(features["train"].y)
    head = number_settings(settings.head) if task == REGRESSION else settings.head.with_choice
    known = kinds_for(task)
    training = TrainingRecord(
        head=kind,
        asked_view=view if len(split_view(features["train"].view)) > 1 else None,
        seconds=seconds,
        history=fit.history,
        settings={name: getattr(head, name) for name in known[kind].settings} if kind in known else {},
        solver=dict(fit.about or {}),
        best_epoch=fit.best_epoch or None,
        parameters=fit.best.parameters,
        rows=rows,
        pairs=data.pairs,
        truncated={split: each.truncated for split, each in sources.items()},
        unknown_tokens={split: each.unknown_tokens for split, each in sources.items()},
        extraction_seconds=sum(each.seconds for each in sources.values()),
        bytes_cached=sum(rows.values()) * (x.nbytes // len(x)),
        caches={split: each.cache for split, each in sources.items() if each.cache},
        sweep=sweep,
        view_shares=view_shares(fit.best, features["validation"].x, features["validation"].view),
    )
    best, _ = heads["head"]
    if best.abstention:  # a distance is of vectors
        features = {name: best.pooled_features(part) for name, part in features.items()}
    commit = sources["train"].commit if sources else None
    named = backbone_records(settings, data.files["train"]) if data.files else None
    return save_trained(settings, training, heads, features, data.leaks, commit=commit, named=named)


def _finished_heads(
    settings: Settings, kind: str, data: CachedSplits, view: str, fit: Fit, costs: np.ndarray | None
) -> dict[str, tuple[Head, CalibrationRecord | None]]:
    """By file name the best head, calibrated or with its interval, and the last one if there were epochs."""
    features, chosen, scale = data.features[view], data.choosing(view), data.scale(view)
    scorers = {"head": fit.best} | ({"last": fit.last} if fit.history else {})
    if scale is not None:
        made = {name: number_head(scorer, scale, chosen, kind) for name, scorer in scorers.items()}
        if data.parts:
            made = {
                name: with_interval(head, features["validation"], data.parts, settings.head)
                for name, head in made.items()
            }
        return {name: (head, None) for name, head in made.items()}
    heads = {name: calibrate(scorer, chosen, kind, costs) for name, scorer in scorers.items()}
    if data.parts:
        best, calibration = heads["head"]
        train, validation = (best.pooled_features(features[name]) for name in ("train", "validation"))
        best = with_abstention(best, settings.abstention, train, validation, data.parts, settings.seed)
        heads["head"] = (best, calibration)
    return {**heads}


def _check_agreed(group: ProcessGroup, settings: Settings, kind: str, view: str, data: CachedSplits) -> None:
    """Refuse a worker that was started differently from the first: each would wait for other sums."""
    files = {split: file.fingerprint for split, file in data.files.items()}
    own = (kind, view, settings.seed, settings.head, settings.abstention, files)
    if group.broadcast_object(own) != own:
        raise HeadError(
            f"worker {group.rank + 1} of {group.size} has other settings or features than the first one",
            hint="start all with the same command, the same featcache.toml and the same cache",
        )
