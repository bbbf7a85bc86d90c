"""What the cached features know about the data: duplicates, leakage, label errors, outliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.data.locate import SPLITS
from featcache.errors import HeadError, UsageError
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.metrics import score
from featcache.extraction.partition import first_occurrence
from featcache.fingerprint import task_of
from featcache.heads.features import check_rows, counts_of
from featcache.heads.numbers.registry import refuse_numbers
from featcache.inspection.label_errors import FOLDS, fit_reference, likely_errors, out_of_fold
from featcache.inspection.neighbours import NEIGHBOURS, THRESHOLD, Neighbourhood, neighbourhood
from featcache.system.progress import OnProgress, Progress, ignore

WHISKER = 1.5  # interquartile ranges above the third quartile from which on a distance is an outlier


@dataclass(frozen=True)
class InspectedSplit:
    """One cached split.

    Attributes:
        n_tokens: int32 `[N]`, after truncation.
        truncated: bool `[N]`.
        unknown_tokens: share of the tokens that the vocabulary does not have; None where it is not known.
    """

    features: Features
    n_tokens: np.ndarray
    truncated: np.ndarray
    max_length: int
    unknown_tokens: float | None = None

    @classmethod
    def of(cls, file: CacheFile, view: str) -> InspectedSplit:
        """One view of a sealed file."""
        n_tokens, truncated = (np.asarray(file.sealed.column(name)) for name in ("n_tokens", "truncated"))
        unknown = file.record.made.unknown_tokens
        return cls(file.features(view), n_tokens, truncated.astype(bool), file.max_length, unknown)


@dataclass(frozen=True)
class InspectedRows:
    """The rows of all splits under one numbering: train, then validation, then test.

    Attributes:
        splits: their names.
        starts: int64 `[splits + 1]`, the first row of each split, and N.
        labels: int64 `[N]` or uint8 multi-hot `[N, C]`.
        hashes: uint8 `[N, 32]`.
        text: int64 `[N]`, which of the M distinct texts a row has; numbered in the order of their first rows.
        first: int64 `[M]`, the first row of each distinct text.
    """

    splits: tuple[str, ...]
    starts: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    text: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, splits: Mapping[str, InspectedSplit]) -> InspectedRows:
        """Number the rows of `splits` in their order."""
        features = [split.features for split in splits.values()]
        hashes = np.concatenate([one.row_hash for one in features])
        first, text = np.unique(first_occurrence(hashes), return_inverse=True)
        return cls(
            splits=tuple(splits),
            starts=np.cumsum([0, *(len(one.y) for one in features)]),
            labels=np.concatenate([one.y for one in features]),
            hashes=hashes,
            text=text,
            first=first,
        )

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def split_of(self) -> np.ndarray:
        """The number of each row's split, int64 `[N]`."""
        return np.repeat(np.arange(len(self.splits)), np.diff(self.starts))

    def where(self, row: int) -> tuple[str, int]:
        """The split of a row, and its number within the split."""
        split = int(self.split_of[row])
        return self.splits[split], int(row - self.starts[split])

    def of_split(self, split: str) -> slice:
        """The rows of one split."""
        place = self.splits.index(split)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass(frozen=True)
class LabelDoubts:
    """Likely label errors.

    Attributes:
        rows: int64 `[K]`, the least likely label first.
        probabilities: float64 `[N, C]` of all rows: out of fold for train, by a head of train for the others.
        unjudged: rows with a label that no row in the other folds has.
        reason: why no errors were looked for; empty if they were.
    """

    rows: np.ndarray
    probabilities: np.ndarray
    unjudged: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LeakageScore:
    """Accuracy on a split, and on its rows that no earlier split has, with 95 % intervals.

    Attributes:
        rows, removed: all rows, and those that an earlier split has.
        leaked: accuracy on the removed rows; NaN if there are none.
    """

    split: str
    rows: int
    removed: int
    whole: float
    whole_interval: tuple[float, float]
    without: float
    without_interval: tuple[float, float]
    leaked: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_splits` returns.

    Attributes:
        match: int64 `[N]`: the row of an earlier split with the same or nearly the same text; -1 for none.
        cosine: float32 `[N]`, with that row: 1 for the same text, -1 for none.
        outliers: int64 `[K]`: one row of each text beyond the fence, the farthest first.
        fence: the distance to train texts above which a text is an outlier; NaN if it is not known.
        scores: of logistic regression on train, chosen on validation rows that do not leak, with and without
            leaked rows.
    """

    splits: Mapping[str, InspectedSplit]
    rows: InspectedRows
    near: Neighbourhood
    threshold: float
    neighbours: int
    match: np.ndarray
    cosine: np.ndarray
    outliers: np.ndarray
    fence: float
    doubts: LabelDoubts
    scores: tuple[LeakageScore, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        return next(iter(self.splits.values())).features.label_names

    def leaked(self, split: str, sources: Sequence[str] = SPLITS) -> np.ndarray:
        """bool `[N of the split]`: rows that an earlier split, one of `sources`, has."""
        match = self.match[self.rows.of_split(split)]
        among = [self.rows.splits.index(name) for name in sources if name in self.rows.splits]
        return np.asarray((match >= 0) & np.isin(self.rows.split_of[match], among))


def inspect_splits(
    splits: Mapping[str, InspectedSplit],
    *,
    threshold: float = THRESHOLD,
    neighbours: int = NEIGHBOURS,
    folds: int = FOLDS,
    seed: int = 0,
    keys: Mapping[str, np.ndarray] | None = None,
    on_progress: OnProgress = ignore,
) -> Inspection:
    """Find duplicates, leakage, likely label errors and outliers in the cached features of one view.

    Args:
        splits: in the order train, validation, test; train is required.
        threshold: cosine of centred features from which on two texts are nearly equal.
        neighbours: how many nearest train texts the distance of a text is a mean over.
        folds: parts of train for out-of-fold probabilities.
        keys: of normalised texts, see `featcache.runs.leaks.find_keys`: rows with a key of an earlier split
            leak, whatever their cosine is. By default equal texts are found by row hash alone.
        on_progress: receives the stages `comparing texts`, `fitting a head` and `out-of-fold heads`.

    Raises:
        UsageError: a number out of range, or splits without train or in another order.
        HeadError: NaN or infinite features, labels out of range, or splits with different encoders or labels.
    """
    _check(splits, threshold, neighbours, folds)
    rows = InspectedRows.of(splits)
    near = neighbourhood(
        _reader(rows, [split.features.x for split in splits.values()]),
        np.bincount(rows.split_of[rows.first], minlength=len(splits)).tolist(),
        threshold=threshold,
        neighbours=neighbours,
        on_progress=on_progress,
    )
    match, cosine = _matches(rows, near, threshold)
    if keys:
        _match_keys(rows, np.concatenate([keys[name] for name in splits]), match, cosine)
    outliers, fence = _outliers(rows, near)
    doubts, scores = _label_doubts(splits, rows, near, match, folds=folds, seed=seed, on_progress=on_progress)
    return Inspection(
        splits=splits, rows=rows, near=near, threshold=threshold, neighbours=neighbours, match=match,
        cosine=cosine, outliers=outliers, fence=fence, doubts=doubts, scores=scores,
    )  # fmt: skip


def score_without_leaks(
    split: str, probabilities: np.ndarray, labels: np.ndarray, leaked: np.ndarray,
    thresholds: np.ndarray | None = None, costs: np.ndarray | None = None,
) -> LeakageScore:  # fmt: skip
    """Accuracy with and without leaked rows.

    Args:
        probabilities: `[N, C]`.
        labels: int `[N]`, or multi-hot `[N, C]`.
        leaked: bool `[N]`.
        thresholds, costs: see `featcache.evaluation.metrics.score`.
    """
    names = tuple(str(number) for number in range(probabilities.shape[1]))

    def accuracy(rows: np.ndarray) -> float:
        return score(probabilities[rows], labels[rows], names, thresholds, costs).accuracy

    def interval(rows: np.ndarray) -> tuple[float, float]:
        drawn = bootstrap_intervals(probabilities[rows], labels[rows], thresholds, costs)
        return drawn["accuracy"]

    every = np.ones(len(labels), bool)
    return LeakageScore(
        split=split, rows=len(labels), removed=int(leaked.sum()),
        whole=accuracy(every), whole_interval=interval(every),
        without=accuracy(~leaked), without_interval=interval(~leaked), leaked=accuracy(leaked),
    )  # fmt: skip


def label_counts(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How many of the rows (int `[N]` or multi-hot `[N, C]`) have each label."""
    return dict(zip(names, counts_of(labels, len(names)).tolist(), strict=True))


def labels_differ(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """bool `[N]`: whether two rows of labels (int `[N]` or multi-hot `[N, C]`) are not the same."""
    return np.asarray(one != two if one.ndim == 1 else (one != two).any(axis=1))


def conflicting_rows(rows: InspectedRows) -> np.ndarray:
    """Rows whose text also has another label in another row: int64 `[K]`, ordered by text."""
    differs = labels_differ(rows.labels, rows.labels[rows.first[rows.text]])
    found = np.flatnonzero(np.isin(rows.text, rows.text[differs]))
    return np.asarray(found[np.argsort(rows.text[found], kind="stable")])


def near_pairs(near: Neighbourhood, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Nearly equal texts, each with its nearest one: int64 `[K, 2]`, and cosines `[K]`, the nearest first."""
    best = near.cosine.argmax(axis=0)
    every = np.arange(near.cosine.shape[1])
    cosine, other = near.cosine[best, every], near.nearest[best, every]
    here = np.flatnonzero((cosine >= threshold) & (other >= 0))
    pairs = np.sort(np.column_stack([here, other[here]]), axis=1)
    unique, first = np.unique(pairs, axis=0, return_index=True)
    order = np.argsort(-cosine[here][first], kind="stable")
    return unique[order], cosine[here][first][order]


def _reader(rows: InspectedRows, features: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Numbers of distinct texts int `[B]` -> their features float32 `[B, D]`, read from their first rows."""

    def read(texts: np.ndarray) -> np.ndarray:
        numbers = rows.first[texts]
        found = np.empty((len(numbers), features[0].shape[1]), np.float32)
        for place, x in enumerate(features):
            here = rows.split_of[numbers] == place
            found[here] = x[numbers[here] - rows.starts[place]]
        return found

    return read


def _check(splits: Mapping[str, InspectedSplit], threshold: float, neighbours: int, folds: int) -> None:
    if "train" not in splits or tuple(splits) != tuple(name for name in SPLITS if name in splits):
        raise UsageError(f"splits {', '.join(splits)}: train, then validation, then test are needed")
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold}: a cosine above 0 and up to 1 is needed")
    if neighbours < 1:
        raise UsageError(f"--neighbours {neighbours}: at least 1")
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least 2")
    train = splits["train"].features
    refuse_numbers(task_of(train.y), "inspect")
    for name, split in splits.items():
        if (split.features.encoder, split.features.label_names) != (train.encoder, train.label_names):
            raise HeadError(
                f"the {name} features were made with other settings than the train features",
                hint="extract all splits with the same settings: featcache extract --all-splits",
            )
        check_rows(split.features.x, split.features.y, len(split.features.label_names), split=name)


def _matches(rows: InspectedRows, near: Neighbourhood, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """See `Inspection.match` and `Inspection.cosine`."""
    home = rows.split_of[rows.first]
    match, cosine = np.full(len(rows), -1), np.full(len(rows), -1, np.float32)
    same = home[rows.text] < rows.split_of
    match[same], cosine[same] = rows.first[rows.text[same]], 1
    for split in range(1, len(rows.splits)):
        # Texts of an earlier split are matched already; the others have their first row in this split.
        texts = rows.text[rows.of_split(rows.splits[split])]
        best = near.cosine[:split, texts].argmax(axis=0)
        value, other = near.cosine[best, texts], near.nearest[best, texts]
        here = np.flatnonzero((home[texts] == split) & (value >= threshold) & (other >= 0))
        match[rows.starts[split] + here] = rows.first[other[here]]
        cosine[rows.starts[split] + here] = value[here]
    return match, cosine


def _match_keys(rows: InspectedRows, keys: np.ndarray, match: np.ndarray, cosine: np.ndarray) -> None:
    """Match the rows that are in no earlier split by hash or cosine, and whose key is."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    same = first[number]
    here = np.flatnonzero((match < 0) & (rows.split_of[same] < rows.split_of))
    match[here], cosine[here] = same[here], 1


def _outliers(rows: InspectedRows, near: Neighbourhood) -> tuple[np.ndarray, float]:
    """See `Inspection.outliers`; the fence is that of the train texts (Tukey 1977)."""
    train = near.distance[rows.split_of[rows.first] == 0]
    if not np.isfinite(train).any():
        return np.zeros(0, np.int64), float("nan")
    low, high = np.nanquantile(train, (0.25, 0.75))
    fence = float(high + WHISKER * (high - low))
    beyond = np.flatnonzero(near.distance > fence)
    return rows.first[beyond[np.argsort(-near.distance[beyond], kind="stable")]], fence


def _label_doubts(
    splits: Mapping[str, InspectedSplit], rows: InspectedRows, near: Neighbourhood, match: np.ndarray,
    *, folds: int, seed: int, on_progress: OnProgress,
) -> tuple[LabelDoubts, tuple[LeakageScore, ...]]:  # fmt: skip
    """Likely label errors, and the scores of a head of train with and without leaked rows."""
    classes = len(splits["train"].features.label_names)
    data = {name: (split.features.x, split.features.y) for name, split in splits.items()}
    none, held_out = np.zeros(0, np.int64), data.get("validation")
    if held_out and (clean := match[rows.of_split("validation")] < 0).any():
        held_out = (held_out[0][clean], held_out[1][clean])
    try:
        on_progress(Progress("fitting a head", total=1))
        head = fit_reference(data["train"], held_out, classes)
        said = {name: head.probabilities(x) for name, (x, _) in data.items() if name != "train"}
        scores = tuple(
            score_without_leaks(name, found, data[name][1], match[rows.of_split(name)] >= 0)
            for name, found in said.items()
        )
        groups = near.group[rows.text[rows.of_split("train")]]
        apart = out_of_fold(
            *data["train"], classes, head.C, groups, folds=folds, seed=seed, on_progress=on_progress
        )
    except HeadError as error:
        return LabelDoubts(none, np.zeros((len(rows), 0)), reason=error.what), ()
    probabilities = np.concatenate([apart.probabilities, *said.values()])
    judged = np.concatenate([apart.judged, np.ones(len(rows) - len(apart.judged), bool)])
    numbers = np.flatnonzero(judged)
    try:
        found = numbers[likely_errors(rows.labels[numbers], probabilities[numbers])]
    except UsageError as error:
        return LabelDoubts(none, probabilities, reason=f"{error.what}: {error.hint}"), scores
    return LabelDoubts(found, probabilities, unjudged=int((~judged).sum())), scores
