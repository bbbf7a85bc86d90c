"""The findings of an inspection as a JSON document, with the texts of the rows that it lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from featcache.data.text_lookup import RowTexts
from featcache.inspection.inspection import (
    Inspection,
    LeakageScore,
    conflicting_rows,
    label_counts,
    labels_differ,
    near_pairs,
)
from featcache.system.documents import tidied

LISTED = 1000  # rows in each list
DIGITS = 6  # significant digits of each number


@dataclass(kw_only=True)
class ListedRow:
    """A row as a person looks it up.

    Attributes:
        row: 1-based row of the source; None if the row was not found there.
        row_hash: 64 hexadecimal digits.
        label: the label; of a multi-label row a list of labels.
        text: None if the row was not found in the source.
    """

    split: str
    row: int | None
    row_hash: str
    label: str | list[str]
    text: str | None = None

    @property
    def where(self) -> str:
        """The split, and the row or the beginning of the row hash."""
        return f"{self.split} {row_text(self.row, self.row_hash)}"


@dataclass(kw_only=True)
class RepeatedRow(ListedRow):
    """A row whose text is in `times` rows."""

    times: int


@dataclass(kw_only=True)
class LeakedRow(ListedRow):
    """A row whose text, or nearly the same text, is in an earlier split: in row `as_`."""

    cosine: float
    as_: ListedRow


@dataclass(kw_only=True)
class DoubtedRow(ListedRow):
    """A row whose label is likely wrong.

    Attributes:
        suggested: what the other rows suggest instead.
        belief: probability of the label as it is; of several labels, of the least likely one.
    """

    suggested: str | list[str]
    belief: float


@dataclass(kw_only=True)
class OutlierRow(ListedRow):
    """A row with its mean distance to its nearest train texts."""

    distance: float


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Tokens of the texts of a split, and how many texts were truncated to `max_length` tokens (`cut`).

    Attributes:
        unknown_tokens: share of the tokens that the vocabulary does not have; None where it is not known.
    """

    rows: int
    cut: int
    max_length: int
    tokens: int
    median_tokens: float | None
    longest_tokens: int
    cut_by_label: dict[str, int]
    unknown_tokens: float | None = None


@dataclass(frozen=True)
class Repeats:
    """Distinct texts of a split; rows whose text is `equal`, or `near`ly equal, to that of a row before."""

    rows: int
    texts: int
    equal: int
    near: int


@dataclass(frozen=True)
class NearPair:
    """Two nearly equal texts."""

    cosine: float
    rows: list[ListedRow]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Texts that are in several rows, some with several labels."""

    splits: dict[str, Repeats]
    near_pairs: int
    near_list: list[NearPair]
    equal_list: list[RepeatedRow]
    conflicting_texts: int
    conflicting_rows: int
    conflict_list: list[ListedRow]


@dataclass(frozen=True, kw_only=True)
class LeakedSplit:
    """How many rows of `split` have an equal or nearly equal text in the earlier split `in_`."""

    split: str
    in_: str
    rows: int
    equal: int
    near: int
    other_label: int


@dataclass(frozen=True)
class Leakage:
    """Rows that are in an earlier split too, and accuracies with and without them."""

    pairs: list[LeakedSplit]
    list_: list[LeakedRow]
    scores: list[LeakageScore]


@dataclass(frozen=True, kw_only=True)
class LikelyLabelErrors:
    """Rows with a label that is likely wrong; `not_looked_for` is the reason why there are none."""

    rows: int
    splits: dict[str, int]
    unjudged: int
    not_looked_for: str
    list_: list[DoubtedRow]


@dataclass(frozen=True)
class Outliers:
    """Texts whose mean distance to their nearest train texts is above `beyond`; None if it is not known."""

    rows: int
    beyond: float | None
    neighbours: int
    list_: list[OutlierRow]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an inspection found; counts are of all rows, lists have the first of them.

    Attributes:
        splits: rows by split.
        balance: rows by split and label.
        no_texts: why the rows have no texts; empty if they have.
    """

    view: str
    threshold: float
    label_names: list[str]
    splits: dict[str, int]
    balance: dict[str, dict[str, int]]
    truncation: dict[str, Truncation]
    duplicates: Duplicates
    leakage: Leakage
    label_errors: LikelyLabelErrors
    outliers: Outliers
    no_texts: str


def findings(inspection: Inspection, texts: RowTexts, most: int = LISTED) -> Findings:
    """An inspection as a document.

    Args:
        texts: where the rows are in their source.
        most: rows in each list.
    """
    rows, names = inspection.rows, inspection.label_names
    listing = _RowLists(inspection, texts)
    found = Findings(
        view=next(iter(inspection.splits.values())).features.view,
        threshold=inspection.threshold,
        label_names=list(names),
        splits={name: len(one.n_tokens) for name, one in inspection.splits.items()},
        balance={name: label_counts(one.features.y, names) for name, one in inspection.splits.items()},
        truncation={name: _truncation(inspection, name) for name in inspection.splits},
        duplicates=_duplicates(inspection, listing, most),
        leakage=_leakage(inspection, listing, most),
        label_errors=_label_errors(inspection, listing, most),
        outliers=Outliers(
            len(inspection.outliers),
            inspection.fence,
            inspection.neighbours,
            [
                listing.add(row, OutlierRow, distance=inspection.near.distance[rows.text[row]])
                for row in inspection.outliers[:most].tolist()
            ],
        ),
        no_texts=texts.reason,
    )
    listing.read_texts()
    return tidied(found, digits=DIGITS)


RowKind = TypeVar("RowKind", bound=ListedRow)


class _RowLists:
    """The rows that a document lists; their texts are read at the end, with one read for each split."""

    def __init__(self, inspection: Inspection, texts: RowTexts) -> None:
        self.rows, self.texts, self.names = inspection.rows, texts, inspection.label_names
        self.listed: dict[str, list[tuple[int, ListedRow]]] = {}

    def add(self, row: int, kind: type[RowKind], **more: Any) -> RowKind:
        """Row `row` of all, as a `kind` with its further fields; without its text."""
        split, place = self.rows.where(row)
        listed = kind(
            split=split,
            row=self.texts.number(split, place),
            row_hash=self.rows.hashes[row].tobytes().hex(),
            label=label_of(self.rows.labels[row], self.names),
            **more,
        )
        self.listed.setdefault(split, []).append((place, listed))
        return listed

    def read_texts(self) -> None:
        """Set the text of every row that was added."""
        for split, listed in self.listed.items():
            found = self.texts.texts_of(split, [place for place, _ in listed])
            for (_, row), text in zip(listed, found, strict=True):
                row.text = text


def label_of(value: Any, names: Sequence[str]) -> str | list[str]:
    """The name of a label number, or of a multi-hot row `[C]` the list of its names."""
    if np.ndim(value) == 0:
        return names[int(value)]
    return [names[number] for number in np.flatnonzero(value).tolist()]


def row_text(row: int | None, row_hash: str) -> str:
    """The row of the source, or the beginning of the row hash if it was not found there."""
    return str(row) if row is not None else row_hash[:8]


def label_text(label: str | Sequence[str]) -> str:
    """A label, or several with commas between."""
    return label if isinstance(label, str) else ", ".join(label) or "none"


def _truncation(inspection: Inspection, name: str) -> Truncation:
    split = inspection.splits[name]
    truncated, tokens = split.truncated, split.n_tokens
    return Truncation(
        rows=len(truncated),
        cut=int(truncated.sum()),
        max_length=split.max_length,
        tokens=int(tokens.sum(dtype=np.int64)),
        median_tokens=float(np.median(tokens)) if len(tokens) else None,
        longest_tokens=int(tokens.max(initial=0)),
        cut_by_label=label_counts(split.features.y[truncated], inspection.label_names),
        unknown_tokens=split.unknown_tokens,
    )


def _duplicates(inspection: Inspection, listing: _RowLists, most: int) -> Duplicates:
    rows, group = inspection.rows, inspection.near.group
    splits = {}
    for name in rows.splits:
        texts = rows.text[rows.of_split(name)]
        distinct = np.unique(texts)
        near = len(distinct) - len(np.unique(group[distinct]))
        splits[name] = Repeats(len(texts), len(distinct), len(texts) - len(distinct), near)
    pairs, cosines = near_pairs(inspection.near, inspection.threshold)
    conflicts = conflicting_rows(rows)
    times = np.bincount(rows.text)
    repeated = np.argsort(-times, kind="stable")[: min(most, np.count_nonzero(times > 1))]
    return Duplicates(
        splits=splits,
        near_pairs=len(pairs),
        near_list=[
            NearPair(cosine, [listing.add(int(rows.first[text]), ListedRow) for text in pair])
            for pair, cosine in zip(pairs[:most].tolist(), cosines[:most].tolist(), strict=True)
        ],
        equal_list=[
            listing.add(int(rows.first[text]), RepeatedRow, times=int(times[text])) for text in repeated
        ],
        conflicting_texts=len(np.unique(rows.text[conflicts])),
        conflicting_rows=len(conflicts),
        conflict_list=[listing.add(int(row), ListedRow) for row in conflicts[:most]],
    )


def _leakage(inspection: Inspection, listing: _RowLists, most: int) -> Leakage:
    rows, match = inspection.rows, inspection.match
    leaked = match >= 0
    equal = leaked & (rows.text == rows.text[match])
    other_label = leaked & labels_differ(rows.labels, rows.labels[match])
    pairs = []
    for place, split in enumerate(rows.splits):
        for earlier, name in enumerate(rows.splits[:place]):
            here = leaked & (rows.split_of == place) & (rows.split_of[match] == earlier)
            counts = {"rows": here, "equal": here & equal, "near": here & ~equal}
            counts["other_label"] = here & other_label
            pairs.append(
                LeakedSplit(split=split, in_=name, **{key: int(found.sum()) for key, found in counts.items()})
            )
    # Texts that are only nearly equal come first: an exact comparison does not find them.
    order = np.flatnonzero(leaked)
    order = order[np.argsort(inspection.cosine[order], kind="stable")][:most]
    listed = [
        listing.add(
            row, LeakedRow, cosine=inspection.cosine[row], as_=listing.add(int(match[row]), ListedRow)
        )
        for row in order.tolist()
    ]
    return Leakage(pairs, listed, list(inspection.scores))


def _label_errors(inspection: Inspection, listing: _RowLists, most: int) -> LikelyLabelErrors:
    doubts, rows = inspection.doubts, inspection.rows
    by_split = np.bincount(rows.split_of[doubts.rows], minlength=len(rows.splits)).tolist()
    listed = []
    for row in doubts.rows[:most].tolist():
        probabilities, label = doubts.probabilities[row], rows.labels[row]
        if label.ndim:
            suggested = label_of(probabilities >= 0.5, listing.names)
            belief = np.where(label, probabilities, 1 - probabilities).min()
        else:
            suggested, belief = label_of(probabilities.argmax(), listing.names), probabilities[label]
        listed.append(listing.add(row, DoubtedRow, suggested=suggested, belief=belief))
    return LikelyLabelErrors(
        rows=len(doubts.rows),
        splits=dict(zip(rows.splits, by_split, strict=True)),
        unjudged=doubts.unjudged,
        not_looked_for=doubts.reason,
        list_=listed,
    )
