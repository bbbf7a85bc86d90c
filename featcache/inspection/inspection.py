"""What the cached features know about the data: duplicates, leakage, label errors, outliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.data.locate import SPLITS
from featcache.errors import HeadError, UsageError
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.metrics import score
from featcache.extraction.partition import first_occurrence
from featcache.heads.features import check_rows
from featcache.inspection.label_errors import FOLDS, fit_reference, likely_errors, out_of_fold
from featcache.inspection.neighbours import THRESHOLD, Neighbourhood, neighbourhood

NEIGHBOURS = 10
FAR_OUT = 1.5  # interquartile ranges beyond the third quartile (Tukey 1977)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """One cached split as it is inspected.

    Attributes:
        n_tokens: int32 `[N]`, after cutting.
        truncated: bool `[N]`.
    """

    features: Features
    n_tokens: np.ndarray
    truncated: np.ndarray
    max_length: int

    @classmethod
    def of(cls, file: CacheFile, view: str) -> Part:
        """One view of a sealed file."""
        tokens, cut = (np.asarray(file.sealed.column(name)) for name in ("n_tokens", "truncated"))
        return cls(file.features(view), tokens, cut.astype(bool), file.max_length)


@dataclass(frozen=True)
class Rows:
    """The rows of all splits, numbered through: train, then validation, then test.

    Attributes:
        splits: their names.
        starts: int64 `[splits + 1]`, where each begins and the last one ends.
        labels: int64 `[N]` or uint8 multi-hot `[N, C]`.
        hashes: uint8 `[N, 32]`.
        text: int64 `[N]`, which of the M distinct texts each row has; they are numbered as they first come.
        first: int64 `[M]`, the first row of each distinct text.
    """

    splits: tuple[str, ...]
    starts: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    text: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> Rows:
        found = [part.features for part in parts.values()]
        hashes = np.concatenate([one.row_hash for one in found])
        labels = np.concatenate([one.y for one in found])
        first, text = np.unique(first_occurrence(hashes), return_inverse=True)
        starts = np.cumsum([0, *(len(one.y) for one in found)])
        return cls(tuple(parts), starts, labels, hashes, text, first)

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def split_of(self) -> np.ndarray:
        """The number of each row's split, int64 `[N]`."""
        return np.repeat(np.arange(len(self.splits)), np.diff(self.starts))

    def where(self, row: int) -> tuple[str, int]:
        """The split, and the row within it."""
        split = int(self.split_of[row])
        return self.splits[split], int(row - self.starts[split])

    def part(self, split: str) -> slice:
        """The rows of one split."""
        place = self.splits.index(split)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass(frozen=True)
class Doubts:
    """Likely label errors.

    Attributes:
        rows: int64 `[K]`, the least likely label first.
        probabilities: float64 `[N, C]` of all rows: of train out of fold, of the others by a head of train.
        unjudged: rows whose label no row in the other folds has.
        reason: why nothing was looked for; empty where something was.
    """

    rows: np.ndarray
    probabilities: np.ndarray
    unjudged: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Cleaned:
    """Accuracy on a split, and on its rows that no earlier split has, with 95 % intervals.

    Attributes:
        leaked: accuracy on the rows left out; NaN where there are none.
    """

    split: str
    rows: int
    removed: int
    whole: float
    whole_interval: tuple[float, float]
    without: float
    without_interval: tuple[float, float]
    leaked: float


@dataclass(frozen=True)
class Inspection:
    """What `inspect_parts` returns.

    Attributes:
        match: int64 `[N]`: the row of an earlier split that has the same text, or nearly; -1 for none.
        cosine: float32 `[N]`: 1 where the text is the same.
        far: int64 `[K]`: one row of each text that lies far out, the farthest first.
        fence: the distance beyond which texts count as far out.
        scores: of logistic regression on train, chosen on validation, with and without what leaked.
    """

    parts: Mapping[str, Part]
    rows: Rows
    near: Neighbourhood
    threshold: float
    neighbours: int
    match: np.ndarray
    cosine: np.ndarray
    far: np.ndarray
    fence: float
    doubts: Doubts
    scores: tuple[Cleaned, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        return next(iter(self.parts.values())).features.label_names

    def leaked(self, split: str, sources: tuple[str, ...] = SPLITS) -> np.ndarray:
        """bool `[N of the split]`: rows found in an earlier split, one of `sources`."""
        match = self.match[self.rows.part(split)]
        among = [self.rows.splits.index(name) for name in sources if name in self.rows.splits]
        return np.asarray((match >= 0) & np.isin(self.rows.split_of[match], among))


def inspect_parts(
    parts: Mapping[str, Part],
    *,
    threshold: float = THRESHOLD,
    neighbours: int = NEIGHBOURS,
    folds: int = FOLDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Look at the cached features of all splits, of one view.

    Args:
        parts: in the order train, validation, test; train has to be there.
        threshold: cosine of centred features from which on two texts count as nearly equal.
        neighbours: the mean distance to so many train texts tells how far out a text lies.
        folds: parts of train for out-of-fold probabilities.
        progress: called with what is done, how much, of how much.

    Raises:
        UsageError: numbers out of range.
        HeadError: NaN or infinite features, labels out of range.
    """
    _check(parts, threshold, neighbours, folds)
    rows, say = Rows.of(parts), progress or (lambda what, done, total: None)
    features = _Distinct(rows, [part.features.x for part in parts.values()])
    sizes = np.bincount(rows.split_of[rows.first], minlength=len(parts)).tolist()
    near = neighbourhood(
        features, sizes, threshold=threshold, neighbours=neighbours,
        progress=lambda done, total: say("comparing texts", done, total),
    )  # fmt: skip
    match, cosine = _matches(rows, near, threshold)
    far, fence = _far_out(rows, near)
    doubts, scores = _judge(parts, rows, near, match, folds, seed, say)
    return Inspection(parts, rows, near, threshold, neighbours, match, cosine, far, fence, doubts, scores)


def cleaned(
    split: str, probabilities: np.ndarray, labels: np.ndarray, leaked: np.ndarray,
    thresholds: np.ndarray | None = None,
) -> Cleaned:  # fmt: skip
    """Accuracy with and without leaked rows.

    Args:
        probabilities: `[N, C]`.
        labels: int `[N]`, or multi-hot `[N, C]`.
        leaked: bool `[N]`.
        thresholds: multi-label only, see `featcache.evaluation.metrics.score`.
    """
    names = tuple(str(number) for number in range(probabilities.shape[1]))

    def accuracy(rows: np.ndarray) -> float:
        return score(probabilities[rows], labels[rows], names, thresholds).accuracy

    def interval(rows: np.ndarray) -> tuple[float, float]:
        return bootstrap_intervals(probabilities[rows], labels[rows], thresholds)["accuracy"]

    every = np.ones(len(labels), bool)
    return Cleaned(
        split, len(labels), int(leaked.sum()), accuracy(every), interval(every),
        accuracy(~leaked), interval(~leaked), accuracy(leaked),
    )  # fmt: skip


def conflicts(rows: Rows) -> np.ndarray:
    """Rows whose very text stands under another label, too; int64 `[K]`, those of one text together."""
    if rows.labels.ndim == 1:
        label = rows.labels
    else:
        label = np.unique(rows.labels, axis=0, return_inverse=True)[1].ravel()
    kinds = np.unique(np.column_stack([rows.text, label]), axis=0)
    several = np.bincount(kinds[:, 0], minlength=len(rows.first)) > 1
    found = np.flatnonzero(several[rows.text])
    return np.asarray(found[np.argsort(rows.text[found], kind="stable")])


def near_pairs(near: Neighbourhood, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Nearly equal texts, each with the one nearest to it: int64 `[K, 2]` and cosines, the nearest first."""
    best = near.cosine.argmax(axis=0)
    every = np.arange(near.cosine.shape[1])
    cosine, other = near.cosine[best, every], near.nearest[best, every]
    here = np.flatnonzero((cosine >= threshold) & (other >= 0))
    pairs = np.sort(np.column_stack([here, other[here]]), axis=1)
    unique, first = np.unique(pairs, axis=0, return_index=True)
    order = np.argsort(-cosine[here][first], kind="stable")
    return unique[order], cosine[here][first][order]


class _Distinct:
    """Features of distinct texts by their numbers, read from the rows they first come in."""

    def __init__(self, rows: Rows, features: list[np.ndarray]) -> None:
        self.rows, self.features = rows, features

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        """int `[B]` -> float32 `[B, D]`."""
        numbers = self.rows.first[texts]
        found = np.empty((len(numbers), self.features[0].shape[1]), np.float32)
        for place, x in enumerate(self.features):
            here = self.rows.split_of[numbers] == place
            found[here] = x[numbers[here] - self.rows.starts[place]]
        return found


def _check(parts: Mapping[str, Part], threshold: float, neighbours: int, folds: int) -> None:
    if "train" not in parts or tuple(parts) != tuple(name for name in SPLITS if name in parts):
        raise UsageError(f"splits {', '.join(parts)}: train, then validation, then test are needed")
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold}: a cosine above 0 and up to 1 is needed")
    if neighbours < 1:
        raise UsageError(f"--neighbours {neighbours}: at least 1")
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2")
    train = parts["train"].features
    for name, part in parts.items():
        if (part.features.encoder, part.features.label_names) != (train.encoder, train.label_names):
            raise HeadError(
                f"the {name} features were made otherwise than the train features",
                hint="extract all splits with the same settings: featcache extract --all-splits",
            )
        check_rows(part.features.x, part.features.y, len(part.features.label_names), split=name)


def _matches(rows: Rows, near: Neighbourhood, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """See `Inspection.match` and `Inspection.cosine`."""
    home = rows.split_of[rows.first]
    match, cosine = np.full(len(rows), -1), np.full(len(rows), -1, np.float32)
    same = home[rows.text] < rows.split_of
    match[same], cosine[same] = rows.first[rows.text[same]], 1
    for part in range(1, len(rows.splits)):
        # What stands in an earlier split is found already; what is left has its home here.
        texts = rows.text[rows.part(rows.splits[part])]
        best = near.cosine[:part, texts].argmax(axis=0)
        value, other = near.cosine[best, texts], near.nearest[best, texts]
        here = np.flatnonzero((home[texts] == part) & (value >= threshold) & (other >= 0))
        match[rows.starts[part] + here] = rows.first[other[here]]
        cosine[rows.starts[part] + here] = value[here]
    return match, cosine


def _far_out(rows: Rows, near: Neighbourhood) -> tuple[np.ndarray, float]:
    """See `Inspection.far` and `Inspection.fence`; the fence is that of the train texts."""
    train = near.distance[rows.split_of[rows.first] == 0]
    if not np.isfinite(train).any():
        return np.zeros(0, np.int64), float("nan")
    low, high = np.nanquantile(train, (0.25, 0.75))
    fence = float(high + FAR_OUT * (high - low))
    far = np.flatnonzero(near.distance > fence)
    return rows.first[far[np.argsort(-near.distance[far], kind="stable")]], fence


def _judge(
    parts: Mapping[str, Part], rows: Rows, near: Neighbourhood, match: np.ndarray, folds: int, seed: int,
    say: Progress,
) -> tuple[Doubts, tuple[Cleaned, ...]]:  # fmt: skip
    """Likely label errors, and what leakage did to the scores of a head of train."""
    classes = len(parts["train"].features.label_names)
    data = {name: (part.features.x, part.features.y) for name, part in parts.items()}
    none = np.zeros((len(rows), 0))
    try:
        say("fitting a head", 0, 1)
        head = fit_reference(data["train"], data.get("validation"), classes)
        said = {name: head.probabilities(x) for name, (x, _) in data.items() if name != "train"}
        scores = tuple(
            cleaned(name, found, data[name][1], match[rows.part(name)] >= 0) for name, found in said.items()
        )
        groups = near.group[rows.text[rows.part("train")]]
        held_out = out_of_fold(
            *data["train"], classes, head.C, groups, folds=folds, seed=seed,
            progress=lambda done, total: say("out-of-fold heads", done, total),
        )  # fmt: skip
    except HeadError as error:
        return Doubts(np.zeros(0, np.int64), none, 0, error.what), ()
    probabilities = np.concatenate([held_out.probabilities, *said.values()])
    judged = np.concatenate([held_out.judged, np.ones(len(rows) - len(held_out.judged), bool)])
    numbers = np.flatnonzero(judged)
    try:
        found = numbers[likely_errors(rows.labels[numbers], probabilities[numbers])]
    except UsageError as error:
        return Doubts(np.zeros(0, np.int64), probabilities, 0, f"{error.what}: {error.hint}"), scores
    return Doubts(found, probabilities, int((~judged).sum()), ""), scores
