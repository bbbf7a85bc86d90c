"""Train a head on cached features: train on train, choose on validation, report on test."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.backbone.token_rows import ATTENTIVE
from featcache.cache.catalog import CacheFile, Features
from featcache.cache.view_names import LEXICAL, cached_views, split_view
from featcache.errors import CacheMiss, HeadError, UsageError
from featcache.evaluation.costs import read_costs
from featcache.evaluation.leaks import NO_LEAKS, Leaks
from featcache.extraction.api import find_features
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Epoch, Fit
from featcache.heads.head import Head
from featcache.heads.lexical.fit import fit_beside
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.numbers.registry import check_number_head, kinds_for, number_settings
from featcache.heads.numbers.scale import NumberScale
from featcache.heads.registry import KINDS, check_parallel
from featcache.heads.view_shares import view_shares
from featcache.runs.abstain import ValidationParts, divide, rows_of, with_abstention
from featcache.runs.finish import calibrate, number_head, save_trained
from featcache.runs.inputs.sources import SplitSource
from featcache.runs.inputs.token_states import read_states
from featcache.runs.leaks import clean_features, find_leaks
from featcache.runs.numbers.interval import interval_parts, with_interval
from featcache.runs.record import CalibrationRecord, SweepRecord, TrainingRecord
from featcache.runs.run import Run
from featcache.runs.weighted_rows import draw_per_class, weighted_rows
from featcache.runs.words import CountedWords, SplitTexts, features_of, read_splits, read_view
from featcache.settings import Settings
from featcache.system.progress import OnProgress, ignore


@dataclasses.dataclass(frozen=True)
class CachedSplits:
    """The splits that heads are trained, chosen and reported on.

    Attributes:
        files: of cached splits; `test` only where it is cached. None for words alone.
        features: by view as it was asked for, then by split.
        pairs: whether the rows are pairs of texts; None where that is not known.
        leaks: which rows of validation and test leak.
        parts: of validation, for heads that may give no answer, and for intervals of numbers.
        states: how the token states of each split were made, for a head that pools them.
        words: the n-grams of the texts, where they were counted.
    """

    files: dict[str, CacheFile]
    features: dict[str, dict[str, Features]]
    pairs: bool | None = None
    leaks: Leaks = NO_LEAKS
    parts: ValidationParts | None = None
    states: dict[str, SplitSource] = dataclasses.field(default_factory=dict)
    words: CountedWords = dataclasses.field(default_factory=CountedWords)

    @property
    def sources(self) -> dict[str, SplitSource]:
        """How the features or token states of each split were made; empty for words alone."""
        return self.states or {split: SplitSource.of(file) for split, file in self.files.items()}

    def choosing(self, view: str) -> Features:
        """The validation rows that everything is chosen on: those that do not leak, see `Leaks.clean`.

        Of them only a part for heads that may give no answer, and where numbers have an interval.
        """
        found = self.features[view]["validation"]
        if self.parts is not None:
            return rows_of(found, self.parts.choice)
        return clean_features(found, self.leaks)

    def with_view(self, settings: Settings, view: str) -> CachedSplits:
        """Also the features of `view`: of several cached views side by side, or with words beside them."""
        if view in self.features:
            return self
        found = read_view(settings, self.files, view, self.words)
        return dataclasses.replace(self, features={**self.features, view: found})

    def reading(self, view: str, ngrams: Ngrams | None) -> CachedSplits:
        """The words of `view` by these n-grams alone, which one of their kinds has."""
        if ngrams is None:
            return self
        found = {
            split: dataclasses.replace(part, x=part.x.read_by(ngrams))  # type: ignore[attr-defined]
            for split, part in self.features[view].items()
        }
        return dataclasses.replace(self, features={**self.features, view: found})

    def scale(self, view: str) -> NumberScale | None:
        """Of the train labels, where these are numbers."""
        y = self.features[view]["train"].y
        return NumberScale.of(y) if task_of(y) == REGRESSION else None

    def scaled(self, view: str, *parts: LabelledFeatures) -> tuple[LabelledFeatures, ...]:
        """Rows with labels as solvers learn them: numbers in units of their deviation."""
        scale = self.scale(view)
        return parts if scale is None else tuple(rows.labelled(scale.logits(rows.y)) for rows in parts)

    def rows(self, view: str, split: str) -> LabelledFeatures:
        """The rows of a split for a solver; of validation those of `choosing`."""
        found = self.choosing(view) if split == "validation" else self.features[view][split]
        return LabelledFeatures(found.x, found.y)


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
    data = _load_states(settings, asked, report) if states else load_data(settings, [asked], group, found)
    _check_agreed(group, settings, kind, asked, data)
    whole = data.features[asked]["train"]
    drawn = None if rows_per_class is None else draw_per_class(whole.y, rows_per_class, settings.seed)
    costs = read_costs_for(settings, whole)
    train, head = weighted_rows(settings, kind, whole, drawn)
    data = data if drawn is None else drawn_rows(data, drawn)
    train, validation = data.scaled(asked, train, data.rows(asked, "validation"))
    solve = _solver(kind, task_of(train.y), report or ignore, lexical=lexical)
    began, classes = time.perf_counter(), len(whole.label_names)
    more: dict[str, Any] = {"group": group} if group.size > 1 else {}
    fit = solve(train, validation, classes, head, seed=settings.seed, on_epoch=progress, **more)
    seconds = time.perf_counter() - began + fit.seconds_before
    seconds += train.x.seconds if isinstance(train.x, WordRows) else 0.0
    run = save_fit(settings, kind, data, asked, fit, seconds, costs=costs) if group.rank == 0 else None
    return group.broadcast_object(run)


def _solver(kind: str, task: str, report: OnProgress, *, lexical: bool) -> Callable[..., Fit]:
    """What fits a head of this kind, with what it imports: that is no part of the training time."""
    import_module("torch")
    import_module("sklearn.linear_model" if kind == "logistic" else "featcache.heads.logistic.penalty")
    solve = kinds_for(task)[kind].fit
    if KINDS[kind].reports:
        solve = partial(solve, on_progress=report)
    return partial(fit_beside, solve, on_progress=report) if lexical and kind != LEXICAL else solve


def _check_asked(settings: Settings, kind: str, view: str | None, rows_per_class: int | None) -> None:
    """Refuse a head that is not there, or not for the labels' task, before anything is read."""
    if kind not in KINDS:
        raise HeadError(f"unknown head {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if settings.data.task == REGRESSION:
        check_number_head(settings, kind, view, rows_per_class)


def load_data(
    settings: Settings,
    views: Sequence[str],
    group: ProcessGroup = ALONE,
    words: CountedWords | None = None,
) -> CachedSplits:
    """The splits for `settings`, with these views: cached ones, the words of the texts, or both.

    The first worker of `group` looks for leaked rows.

    Args:
        words: n-grams that are counted already.

    Raises:
        CacheMiss: train or validation, or one of the views, is not there.
        HeadError: the splits were made with different settings.
        SourceError: words are wanted, and the texts of the rows are not there.
        UsageError: a name of a view is missing.
    """
    for view in views:
        if "" in split_view(view):
            raise UsageError(f"--view {view!r}: a name is missing beside a comma")
    wanted = tuple(dict.fromkeys(name for view in views for name in cached_views(view)))
    words = words or CountedWords()
    if not wanted:
        return _words_alone(settings, views, words)
    own = settings.features.views
    settings = dataclasses.replace(settings, features=dataclasses.replace(settings.features, views=wanted))
    try:
        files = {split: find_features(settings, split) for split in ("train", "validation")}
    except CacheMiss as miss:
        if set(wanted) <= set(own):
            raise
        names = ",".join(dict.fromkeys((*own, *wanted)))
        hint = f"make them with the same flags: featcache extract --all-splits --views={names}"
        raise CacheMiss(miss.what, hint=hint) from None
    try:
        files["test"] = find_features(settings, "test")
    except CacheMiss:
        pass  # a run without a test score; the command line says so
    features = {view: read_view(settings, files, view, words) for view in views if cached_views(view)}
    for by_split in features.values():
        for cached in by_split.values():
            _check_same(by_split["train"], cached)
    leaks = None
    if group.rank == 0:
        leaks = find_leaks(settings, {name: part.row_hash for name, part in features[views[0]].items()})
    pairs = files["train"].record.made.pairs
    leaks = group.broadcast_object(leaks)
    return CachedSplits(files, features, pairs, leaks, _parts(settings, features, leaks), words=words)


def drawn_rows(data: CachedSplits, rows: np.ndarray) -> CachedSplits:
    """`data` with some of its train rows alone, in memory."""
    features = {
        view: {name: rows_of(part, rows) if name == "train" else part for name, part in parts.items()}
        for view, parts in data.features.items()
    }
    return dataclasses.replace(data, features=features)


def _parts(
    settings: Settings, features: dict[str, dict[str, Features]], leaks: Leaks
) -> ValidationParts | None:
    """Which validation rows choose and which guarantee; None for heads that guarantee nothing."""
    validation = next(iter(features.values()))["validation"]
    leaked = leaks.rows.get("validation")
    if task_of(validation.y) == REGRESSION:
        return interval_parts(validation, leaked, settings.head)
    if not settings.abstention.asked:
        return None
    return divide(validation, settings.abstention, leaked)


def _load_states(settings: Settings, view: str, report: OnProgress | None) -> CachedSplits:
    """The splits as token states; see `read_states`."""
    found = read_states(settings, view, report)
    by_view, leaks = {view: found.features}, find_leaks(settings, found.hashes, found.splits)
    pairs, parts = found.splits["train"].has_pairs, _parts(settings, by_view, leaks)
    return CachedSplits({}, by_view, pairs=pairs, leaks=leaks, parts=parts, states=found.sources)


def _words_alone(settings: Settings, views: Sequence[str], words: CountedWords) -> CachedSplits:
    """The words of the source's texts; no backbone runs, and nothing is cached."""
    splits = read_splits(settings)
    rows = words.of(SplitTexts.of_splits(splits))
    features = {name: features_of(split, rows[name]) for name, split in splits.items()}
    leaks = find_leaks(settings, {name: part.row_hash for name, part in features.items()}, splits)
    by_view, pairs = dict.fromkeys(views, features), splits["train"].has_pairs
    return CachedSplits({}, by_view, pairs, leaks, _parts(settings, by_view, leaks), words=words)


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
    return save_trained(settings, training, heads, features, data.leaks, commit=commit)


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


def _check_same(train: Features, other: Features) -> None:
    if other.encoder != train.encoder or other.label_names != train.label_names:
        raise HeadError(
            f"the {other.split} features were made with other settings than the train features",
            hint="extract all splits with the same settings: featcache extract --all-splits",
        )
