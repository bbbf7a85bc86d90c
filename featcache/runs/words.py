"""The n-grams of the texts of splits, beside their cached features or without a backbone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.cache.view_names import LEXICAL, cached_views, join_views, split_view
from featcache.data.split import Split, load_splits
from featcache.data.test_split import splits_for_training
from featcache.data.text_lookup import RowTexts, find_texts
from featcache.errors import SourceError
from featcache.fingerprint import Dtypes, EncoderDocument, row_hashes
from featcache.heads.lexical.ngrams import Ngrams, NgramSettings, joined_texts
from featcache.heads.lexical.rows import WordRows
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress, ignore

NO_BACKBONE = EncoderDocument(
    files={}, prompt="", max_length=1, truncation_side="right", dtype=Dtypes("float32", "float32")
)


@dataclass(frozen=True)
class SplitTexts:
    """The texts of the rows of each split, in the order of its features; of a pair both."""

    texts: Mapping[str, Sequence[str]]

    @classmethod
    def of_files(cls, settings: Settings, files: Mapping[str, CacheFile]) -> SplitTexts:
        """Those of cached rows.

        Raises:
            SourceError: the source cannot be read, or does not have these rows any more.
        """
        hashes = {name: np.asarray(file.sealed.column("row_hash")) for name, file in files.items()}
        found = find_texts(settings.data, hashes, settings.seed)
        if found.reason:
            raise SourceError(
                f"words need the texts of the cached rows: {found.reason}",
                hint="bring the data back to where they were, or leave lexical out of --view",
            )
        return cls({name: _texts(found, name) for name in files})

    @classmethod
    def of_splits(cls, splits: Mapping[str, Split]) -> SplitTexts:
        return cls(
            {
                name: joined_texts(split.texts(slice(None)), split.pairs(slice(None)))
                for name, split in splits.items()
            }
        )

    def rows(self, on_progress: OnProgress = ignore) -> dict[str, WordRows]:
        """The n-grams of each split, by each kind that suits the texts; which ones there are, train says."""
        began, train = time.perf_counter(), self.texts["train"]
        kinds = NgramSettings.candidates(train)
        total, done = len(kinds) * sum(map(len, self.texts.values())), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            on_progress(Progress("count", done=done, total=total))

        by_kind: list[dict[str, WordRows]] = []
        for kind in kinds:
            ngrams, words = Ngrams.fit(train, kind, count)
            others = {name: texts for name, texts in self.texts.items() if name != "train"}
            counted = {name: WordRows(ngrams, ngrams(texts, count)) for name, texts in others.items()}
            by_kind.append({"train": WordRows(ngrams, words), **counted})
        seconds, (first, *rest) = time.perf_counter() - began, by_kind
        return {
            name: replace(rows, others=tuple(kind[name] for kind in rest), seconds=seconds)
            for name, rows in first.items()
        }


class CountedWords:
    """The n-grams of the texts of splits, for several heads: equal texts are counted once.

    Args:
        on_progress: receives the stage `count`, in texts.
    """

    def __init__(self, on_progress: OnProgress = ignore) -> None:
        self.on_progress = on_progress
        self._texts: Mapping[str, Sequence[str]] | None = None
        self._rows: dict[str, WordRows] = {}

    def of(self, texts: SplitTexts) -> dict[str, WordRows]:
        """`SplitTexts.rows`, those that were counted before if the texts are the same."""
        if self._texts != texts.texts:
            self._texts, self._rows = texts.texts, texts.rows(self.on_progress)
        return self._rows


def beside(features: Features, rows: WordRows) -> Features:
    """Cached features with the n-grams of their texts beside them."""
    joined = replace(rows, dense=features.x)
    return replace(features, view=f"{features.view},{LEXICAL}", x=joined.as_array())


def words_of(features: Features, rows: WordRows) -> Features:
    """The n-grams of the texts of cached features in their place."""
    return replace(
        features, view=LEXICAL, x=rows.as_array(), encoder=NO_BACKBONE, fingerprint="", path=Path()
    )


def read_view(
    settings: Settings, files: Mapping[str, CacheFile], view: str, words: CountedWords
) -> dict[str, Features]:
    """The features of one view, or of several side by side, by split."""
    cached = cached_views(view)
    found = {
        split: file.features(file.stored_view(join_views(cached or file.views[:1])))
        for split, file in files.items()
    }
    if LEXICAL not in split_view(view):
        return found
    rows = words.of(SplitTexts.of_files(settings, files))
    join = beside if cached else words_of
    return {split: join(part, rows[split]) for split, part in found.items()}


def read_splits(settings: Settings) -> dict[str, Split]:
    """Train, validation and, where there is one, test of the source.

    Raises:
        SourceError: it cannot be read.
    """
    return load_splits(settings.data, splits_for_training(settings.data), seed=settings.seed)


def features_of(split: Split, rows: WordRows) -> Features:
    """The words of a split as features for which no backbone ran."""
    hashes = [row_hashes(texts, pairs) for texts, pairs in split.batches()]
    return Features(
        split=split.name,
        view=LEXICAL,
        x=rows.as_array(),
        y=split.labels,
        label_names=split.label_names,
        row_hash=np.concatenate(hashes),
        encoder=NO_BACKBONE,
        fingerprint="",
        path=Path(),
    )


def _texts(found: RowTexts, name: str) -> list[str]:
    places, split = found.places[name], found.splits[name]
    if missing := int((places < 0).sum()):
        raise SourceError(
            f"{missing:,} of {len(places):,} cached {name} rows are not in the source any more, and words "
            "need their texts",
            hint="extract the splits as they are now: featcache extract --all-splits",
        )
    return joined_texts(split.texts(places), split.pairs(places))
