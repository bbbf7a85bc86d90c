"""The doubtful labels of a run's train texts: asked again, most doubtful first; and what corrections do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache.catalog import Features
from featcache.data.locate import SPLITS
from featcache.data.text_lookup import find_texts
from featcache.errors import HeadError, SourceError
from featcache.evaluation.paired import mcnemar
from featcache.heads.features import LabelledFeatures
from featcache.heads.registry import fit_exact
from featcache.inspection.inspection import (
    InspectedSplit,
    Inspection,
    conflicting_rows,
    inspect_splits,
    labels_differ,
    near_pairs,
)
from featcache.labelling.strategies import ChosenText, Reason
from featcache.labelling.texts import TextsToLabel
from featcache.labelling.votes import CountedAnswers
from featcache.runs.inputs.joined_files import open_reference
from featcache.runs.run import Run
from featcache.settings import DataSettings, Settings
from featcache.system.durable import write_file
from featcache.system.progress import OnProgress, ignore
from featcache.system.stores import is_remote, shown


@dataclass(frozen=True, eq=False)
class LabelledSource:
    """The train texts of a run with their labels, and the cached features of its splits.

    Attributes:
        features: by split; train is there.
        texts: the different train texts.
        train_texts: of each train row its text.
        row_of: int `[N]`, which of the different texts each train row has.
        place: where the texts come from; the corrected file is written beside it.
    """

    features: dict[str, Features]
    inspection: Inspection
    texts: TextsToLabel
    train_texts: tuple[str, ...]
    row_of: np.ndarray
    place: Path

    @property
    def labels(self) -> tuple[str, ...]:
        return self.features["train"].label_names


def labelled_source(run: Run, mine: Settings, on_progress: OnProgress = ignore) -> LabelledSource:
    """What a run was trained on, inspected.

    Raises:
        HeadError: the run has no cached features, or numbers, several labels a row or pairs.
        SourceError: the texts are not what they were, or are elsewhere than in files of this user.
        CacheError: the features are gone.
    """
    record = run.record
    if record.task != "single-label" or record.pairs or not record.cached_view or record.finetune:
        raise HeadError(
            f"{run.name}: labels are asked again of runs with cached features, one label a text and no pairs",
            hint="name a run of train-head with one label a text",
        )
    files = {split: open_reference(record.caches[split]) for split in SPLITS if split in record.caches}
    parts = {split: InspectedSplit.of(file, record.cached_view) for split, file in files.items()}
    inspection = inspect_splits(parts, seed=record.seed, on_progress=on_progress)
    if inspection.doubts.reason:
        raise HeadError(
            f"no doubtful labels are known: {inspection.doubts.reason}",
            hint="featcache inspect says what it needs",
        )
    data = record.data or DataSettings()
    texts = _train_texts(data, mine.data, parts["train"].features.row_hash, record.seed)
    distinct = TextsToLabel.of(texts)
    return LabelledSource(
        features={split: part.features for split, part in parts.items()},
        inspection=inspection,
        texts=distinct,
        train_texts=tuple(texts),
        row_of=np.array([row for _, row in distinct.all_rows]),
        place=_place(data),
    )


def doubtful(source: LabelledSource) -> list[ChosenText]:
    """Train texts whose labels are doubted, each once.

    Likely errors, the least likely label first; then equal texts with several labels; then nearly equal texts
    with unlike labels, the nearest first.
    """
    found = dict[int, Reason]()
    for row, reason in _doubts(source.inspection):
        found.setdefault(int(source.row_of[row]), reason)
    return [ChosenText(row, reason) for row, reason in found.items()]


def _doubts(inspection: Inspection) -> Iterator[tuple[int, Reason]]:
    """Train rows, each with why its label is doubted."""
    rows = inspection.rows
    train = rows.of_split("train").stop
    labels = rows.labels
    for row in inspection.doubts.rows.tolist():
        if row < train:
            rather = int(inspection.doubts.probabilities[row].argmax())
            yield row, Reason("doubted", (int(labels[row]), rather))
    for row in conflicting_rows(rows).tolist():
        if row < train:
            yield row, Reason("conflict")
    pairs, _ = near_pairs(inspection.near, inspection.threshold)
    first = rows.first[pairs] if len(pairs) else np.zeros((0, 2), np.int64)
    for one, two in first[labels_differ(labels[first[:, 0]], labels[first[:, 1]])].tolist():
        for row, other in ((one, two), (two, one)):
            if row < train:
                yield row, Reason("near", (int(labels[row]), int(labels[other])))


@dataclass(frozen=True)
class CorrectedLabels:
    """What the corrections changed.

    Attributes:
        file: the corrected train texts.
        asked: texts that were answered; `changed`: train rows with another label.
        split: on which both heads are scored: test where it is cached, else validation.
        p: of the exact McNemar test between both heads; 1 where nothing changed.
    """

    file: str
    asked: int
    changed: int
    split: str
    rows: int
    before: float
    after: float
    p: float


def correct(
    source: LabelledSource, counted: CountedAnswers, path: Path, settings: Settings
) -> CorrectedLabels:
    """Write the train texts with the labels of the answers, train a head on both, and compare.

    Both are `exact` heads on the run's features, their penalty chosen by the validation rows. Labels of
    validation and test stay as they are.

    Raises:
        HeadError: nothing can be learned from the corrected labels.
        SourceError: there is no validation split.
    """
    if "validation" not in source.features:
        raise SourceError(
            "the run has no cached validation split to choose by", hint="featcache extract --all-splits"
        )
    train, names = source.features["train"], (*source.labels,)
    added = {label for labels in counted.labels.values() for label in labels} - set(names)
    names = (*names, *sorted(added))
    number = {label: place for place, label in enumerate(names)}
    corrected = np.array(train.y)
    for row, text in enumerate(source.row_of.tolist()):
        if text in counted.labels:
            (label,) = counted.labels[text]
            corrected[row] = number[label]
    lines = (
        json.dumps({"text": text, "label": names[label]}, ensure_ascii=False)
        for text, label in zip(source.train_texts, corrected.tolist(), strict=True)
    )
    write_file(path, "".join(f"{line}\n" for line in lines).encode())
    split = "test" if "test" in source.features else "validation"
    right = [_right(source, y, split, len(names), settings) for y in (train.y, corrected)]
    return CorrectedLabels(
        file=str(path), asked=len(counted.labels), changed=int((corrected != train.y).sum()), split=split,
        rows=len(right[0]), before=float(right[0].mean()), after=float(right[1].mean()),
        p=float(mcnemar(right[0], right[1]).p),
    )  # fmt: skip


def _right(source: LabelledSource, y: np.ndarray, split: str, classes: int, settings: Settings) -> np.ndarray:
    """bool: the rows of a split about which a head of these train labels is right."""
    train, validation, scored = (source.features[name] for name in ("train", "validation", split))
    head = replace(settings.head, C=None, penalty="validation", view_scales=False, weight_column=None)
    fit = fit_exact(
        LabelledFeatures(train.x, y), LabelledFeatures(validation.x, validation.y), classes, head,
        seed=settings.seed,
    )  # fmt: skip
    return np.asarray(fit.best.logits(scored.x).argmax(axis=1) == scored.y)


def _train_texts(data: DataSettings, mine: DataSettings, hashes: np.ndarray, seed: int) -> list[str]:
    places, own = ((one.data_files or {"": one.dataset}).values() for one in (data, mine))
    if foreign := [place for place in places if is_remote(place) and place not in own]:
        raise SourceError(
            f"the run names {shown(foreign[0])}, which is read only if featcache.toml names it too",
            hint="name it in featcache.toml, too, if you trust it",
        )
    found = find_texts(data, {"train": hashes}, seed)
    if found.reason:
        raise SourceError(
            f"the texts of the run cannot be read: {found.reason}",
            hint="bring the data back to where they were",
        )
    rows = found.places["train"]
    if (rows < 0).any():
        raise SourceError(
            f"{(rows < 0).sum():,} of the run's train texts are not in its data any more",
            hint="train again on the data as they are now",
        )
    return found.splits["train"].texts(rows)


def _place(data: DataSettings) -> Path:
    """Beside what new files are written: the file or folder of the texts, or a name in the working folder.

    In a folder of data each file is data, so nothing is written into it.
    """
    named = (data.data_files or {}).get("train", data.dataset)
    path = Path(named)
    return path.absolute() if path.exists() else Path(path.name)
