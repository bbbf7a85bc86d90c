"""The splits that heads are trained, chosen and reported on: cached features, words, or token states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.cache.view_names import cached_views, split_view
from featcache.errors import CacheMiss, HeadError, UsageError
from featcache.evaluation.leaks import NO_LEAKS, Leaks
from featcache.fingerprint import REGRESSION, task_of
from featcache.heads.distributed import ALONE, ProcessGroup
from featcache.heads.features import LabelledFeatures
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.numbers.scale import NumberScale
from featcache.runs.abstain import ValidationParts, divide, rows_of
from featcache.runs.inputs.joined_files import find_joined
from featcache.runs.inputs.sources import SplitSource
from featcache.runs.inputs.token_states import read_states
from featcache.runs.leaks import clean_features, find_leaks
from featcache.runs.numbers.interval import interval_parts
from featcache.runs.words import CountedWords, SplitTexts, features_of, read_splits, read_view
from featcache.settings import Settings
from featcache.system.progress import OnProgress


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
        files = {split: find_joined(settings, split) for split in ("train", "validation")}
    except CacheMiss as miss:
        if set(wanted) <= set(own):
            raise
        names = ",".join(dict.fromkeys((*own, *wanted)))
        hint = f"make them with the same flags: featcache extract --all-splits --views={names}"
        raise CacheMiss(miss.what, hint=hint) from None
    try:
        files["test"] = find_joined(settings, "test")
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


def load_states(settings: Settings, view: str, report: OnProgress | None) -> CachedSplits:
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


def _check_same(train: Features, other: Features) -> None:
    if other.encoder != train.encoder or other.label_names != train.label_names:
        raise HeadError(
            f"the {other.split} features were made with other settings than the train features",
            hint="extract all splits with the same settings: featcache extract --all-splits",
        )
