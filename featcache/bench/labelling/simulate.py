"""Labelling simulated on labelled data: how many labels each strategy needs, beside texts drawn at random.

A session sees the train texts without labels and asks for some; the known labels answer. As in
`featcache label` one text in five is set apart for the estimate, and never chosen by a strategy. The labels
that a session needs are those after which its head has 95 % of the macro F1 of a head trained on all labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.bench.timing import DIGITS, Machine, this_machine
from featcache.errors import UsageError
from featcache.extraction.api import extract_splits, find_features
from featcache.labelling.describe import described_probabilities
from featcache.labelling.encoding import features_of
from featcache.labelling.estimate import accuracy_interval
from featcache.labelling.label_head import LabelHead
from featcache.labelling.pool import TextPool
from featcache.labelling.strategies import FIRST, STRATEGIES, Clusters, LabelledPool, choose
from featcache.settings import DataSettings, Settings
from featcache.system.documents import tidied
from featcache.system.progress import OnProgress, Progress, ignore

TARGET = 0.95  # of the macro F1 with all labels
GROWTH = 0.1  # a session asks for so many texts at a time, as a share of those it has
LEAST_ASKED = 5
RESERVED = 5  # one text in so many is set apart for the estimate
LEAST_ROWS = 10  # a class that has fewer train rows is left out
SHAPES = ("as it is", "halved")
DESCRIBED = "mixed, described"  # the first texts are chosen by descriptions, too


@dataclass(frozen=True)
class LabellingPlan:
    """What is simulated.

    Attributes:
        strategies: of `STRATEGIES`; `random` is always measured.
        seeds: sessions of each, counted from the settings' own seed.
        shapes: the classes `as it is`, or `halved`: each class half as frequent as the one before.
        descriptions: of the labels of every set; `mixed` is then measured with them, too.
    """

    strategies: tuple[str, ...] = tuple(STRATEGIES)
    seeds: int = 10
    shapes: tuple[str, ...] = SHAPES
    descriptions: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        known = (*STRATEGIES, *SHAPES)
        if unknown := [name for name in (*self.strategies, *self.shapes) if name not in known]:
            raise UsageError(f"no strategy or shape {unknown[0]!r}", hint=f"there are: {', '.join(known)}")
        if self.seeds < 1:
            raise UsageError("--seeds: at least 1")


@dataclass(frozen=True)
class StrategyRow:
    """One strategy on one set of texts.

    Attributes:
        data: the set, and how its classes were made.
        texts, classes: that a session can ask for, and their classes.
        macro_f1: with all labels; the mean over the seeds.
        labels: that were needed for 95 % of it, the mean over the seeds.
        low, high: the fewest and the most of a seed.
        ratio_to_random: `labels` over those of `random`.
        covered: share of the estimates along the sessions whose 95 % interval held the true accuracy.
    """

    data: str
    strategy: str
    texts: int
    classes: int
    macro_f1: float
    labels: float
    low: float
    high: float
    ratio_to_random: float
    covered: float


@dataclass(frozen=True)
class LabellingBenchmark:
    """What `bench_label` returns; `seconds`: p95 from an answer to the next text, by cached texts."""

    rows: tuple[StrategyRow, ...]
    seeds: int
    seconds: dict[str, float]
    machine: Machine


@dataclass(frozen=True, eq=False)
class SimulatedTexts:
    """Features and classes of train and test rows.

    Attributes:
        described: float `[N, C]`, what descriptions of the classes say of the train rows; None without any.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    described: np.ndarray | None = None


@dataclass(frozen=True)
class SimulatedSession:
    """What one session needed, and how often its estimates held the truth."""

    labels: float
    macro_f1: float
    estimates: int
    covered: int


def bench_label(
    settings: Settings,
    sets: Mapping[str, DataSettings],
    plan: LabellingPlan,
    seconds: Mapping[str, float],
    *,
    on_progress: OnProgress = ignore,
) -> LabellingBenchmark:
    """Simulate each strategy on each set; features that are cached are not made again.

    Args:
        settings: backbone, views, folders and seed; of several views the first is read.
        sets: texts with labels by name.
        seconds: measured before, see `featcache.bench.labelling.latency`.
        on_progress: receives what is simulated next as a stage.
    """
    rows = list[StrategyRow]()
    for name, data in sets.items():
        texts = _cached(dataclasses.replace(settings, data=data), plan.descriptions)
        for shape in plan.shapes:
            rows += _strategy_rows(f"{name}, {shape}", texts, shape, plan, settings.seed, on_progress)
    machine = this_machine("scikit-learn")
    return tidied(LabellingBenchmark(tuple(rows), plan.seeds, dict(seconds), machine), digits=DIGITS)


def _cached(settings: Settings, descriptions: Mapping[str, tuple[str, ...]] | None) -> SimulatedTexts:
    features = dataclasses.replace(settings.features, views=settings.features.views[:1])
    settings = dataclasses.replace(settings, features=features)
    extract_splits(settings, ["train", "test"])
    parts, names = [], tuple[str, ...]()
    for split in ("train", "test"):
        file = find_features(settings, split)
        found = file.features(file.stored_view(settings.features.views[0]))
        if found.y.ndim != 1 or found.y.dtype.kind == "f":
            raise UsageError("labelling is simulated with one label a text")
        parts += [np.asarray(found.x, np.float32), np.asarray(found.y)]
        names = found.label_names
    made = SimulatedTexts(*parts)
    return made if descriptions is None else _described(made, names, descriptions, settings)


def _described(
    made: SimulatedTexts,
    names: Sequence[str],
    descriptions: Mapping[str, tuple[str, ...]],
    settings: Settings,
) -> SimulatedTexts:
    if missing := [name for name in names if name not in descriptions]:
        raise UsageError(f"--describe has no description of {missing[0]!r}")
    texts = [(text, place) for place, name in enumerate(names) for text in descriptions[name]]
    pool = TextPool.of(made.x)
    found = pool.standard(features_of([text for text, _ in texts], settings))
    said = described_probabilities(pool, found, np.array([place for _, place in texts]))
    return dataclasses.replace(made, described=said)


def _strategy_rows(
    name: str, texts: SimulatedTexts, shape: str, plan: LabellingPlan, first: int, on_progress: OnProgress
) -> Iterator[StrategyRow]:
    found: dict[str, list[SimulatedSession]] = {}
    sizes: list[tuple[int, int]] = []
    strategies = dict.fromkeys(("random", *plan.strategies))
    if plan.descriptions:
        strategies[DESCRIBED] = None
    for seed in range(first, first + plan.seeds):
        made = halved(texts, seed) if shape == "halved" else frequent(texts)
        sizes.append((len(made.y), int(made.y.max()) + 1))
        on_progress(Progress(f"{name}, seed {seed}"))
        for strategy in strategies:
            found.setdefault(strategy, []).append(simulate(made, strategy, seed))
    random = np.mean([one.labels for one in found["random"]])
    for strategy, sessions in found.items():
        labels = [one.labels for one in sessions]
        yield StrategyRow(
            data=name, strategy=strategy, texts=sizes[0][0], classes=sizes[0][1],
            macro_f1=float(np.mean([one.macro_f1 for one in sessions])),
            labels=float(np.mean(labels)), low=min(labels), high=max(labels),
            ratio_to_random=float(np.mean(labels) / random),
            covered=sum(one.covered for one in sessions) / sum(one.estimates for one in sessions),
        )  # fmt: skip


def frequent(texts: SimulatedTexts) -> SimulatedTexts:
    """The classes with `LEAST_ROWS` train rows or more."""
    return _of_classes(texts, np.flatnonzero(np.bincount(texts.y) >= LEAST_ROWS), np.arange(len(texts.y)))


def halved(texts: SimulatedTexts, seed: int) -> SimulatedTexts:
    """Each class half as frequent as the one before, the largest first; classes of equal size by `seed`."""
    draw = np.random.default_rng(seed)
    counts = np.bincount(texts.y)
    order = np.lexsort((draw.permutation(len(counts)), -(counts // LEAST_ROWS)))
    wanted = counts[order[0]] // 2 ** np.arange(len(counts))
    rows = list[np.ndarray]()
    kept = list[int]()
    for label, count in zip(order, wanted, strict=True):
        own = np.flatnonzero(texts.y == label)
        if min(count, len(own)) >= LEAST_ROWS:
            kept.append(int(label))
            rows.append(draw.permutation(own)[:count])
    return _of_classes(texts, np.array(kept), np.concatenate(rows))


def _of_classes(texts: SimulatedTexts, kept: np.ndarray, rows: np.ndarray) -> SimulatedTexts:
    number = np.full(texts.y.max() + 1, -1)
    number[kept] = np.arange(len(kept))
    rows = rows[number[texts.y[rows]] >= 0]
    tested = (texts.test_y <= texts.y.max()) & (number[np.minimum(texts.test_y, texts.y.max())] >= 0)
    described = None if texts.described is None else texts.described[np.ix_(rows, kept)]
    return SimulatedTexts(
        texts.x[rows], number[texts.y[rows]], texts.test_x[tested], number[texts.test_y[tested]], described
    )


def simulate(texts: SimulatedTexts, strategy: str, seed: int) -> SimulatedSession:
    """One session: labels are asked for until the target is reached, or all are known."""
    everything = TextPool.of(np.concatenate([texts.x, texts.test_x]))
    order = np.random.default_rng(seed).permutation(len(texts.y))
    reserved, asked = order[: len(order) // RESERVED], order[len(order) // RESERVED :]
    pool, y = everything.some(asked), texts.y[asked]
    classes = int(texts.y.max()) + 1
    test = _Test(everything.some(np.arange(len(texts.y), len(everything))).x, texts.test_y, texts.y, classes)
    whole = LabelHead.fit(pool.x, y, classes)
    assert whole is not None
    estimate = _Estimates(everything.x[reserved], texts.y[reserved])
    target = TARGET * test.macro_f1(whole)
    before, labels = (0, 0.0), float(len(y))
    described = texts.described[asked] if strategy == DESCRIBED and texts.described is not None else None
    for rows, head in _sessions(pool, y, classes, strategy.partition(",")[0], seed, described):
        score = test.macro_f1(head)
        estimate.add(head, len(rows))
        if score >= target:
            share = (target - before[1]) / (score - before[1]) if score > before[1] else 1.0
            labels = before[0] + share * (len(rows) - before[0])
            break
        before = (len(rows), score)
    return SimulatedSession(labels, target / TARGET, estimate.made, estimate.covered)


def _sessions(
    pool: TextPool,
    y: np.ndarray,
    classes: int,
    strategy: str,
    seed: int,
    described: np.ndarray | None,
) -> Iterator[tuple[np.ndarray, LabelHead]]:
    """The labelled texts and their head after each batch."""
    labelled = np.zeros(0, np.int64)
    is_open, probabilities = np.ones(len(y), bool), None
    clusters: dict[int, Clusters] = {}
    while is_open.any():
        known = LabelledPool(
            pool=pool, open=np.flatnonzero(is_open), probabilities=probabilities,
            counts=np.bincount(y[labelled], minlength=classes), labelled=labelled,
            seed=seed, clusters=clusters, described=described,
        )  # fmt: skip
        count = FIRST if not len(labelled) else max(LEAST_ASKED, int(GROWTH * len(labelled)))
        rows = np.array([one.row for one in choose(strategy, known, count)])
        labelled = np.concatenate([labelled, rows])
        is_open[rows] = False
        head = LabelHead.fit(pool.x[labelled], y[labelled], classes)
        if head is not None:
            probabilities = head.probabilities(pool.x)
            yield labelled, head


class _Test:
    """Macro F1 on test rows that count so that classes are as frequent as in train."""

    def __init__(self, x: np.ndarray, y: np.ndarray, train_y: np.ndarray, classes: int) -> None:
        self.x, self.y, self.classes = x, y, classes
        train, own = (np.bincount(labels, minlength=classes) for labels in (train_y, y))
        self.weight = (train / train.sum() / np.maximum(own, 1))[y]

    def macro_f1(self, head: LabelHead) -> float:
        guess = head.probabilities(self.x).argmax(axis=1)
        table = np.zeros((self.classes, self.classes))
        np.add.at(table, (self.y, guess), self.weight)
        there = table.sum(axis=1) > 0
        both = table.sum(axis=0) + table.sum(axis=1)
        return float((2 * np.diag(table) / np.maximum(both, 1e-12))[there].mean())


class _Estimates:
    """The accuracy as a session estimates it, from one text set apart for every four that were labelled."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y
        self.made = self.covered = 0

    def add(self, head: LabelHead, labelled: int) -> None:
        right = head.probabilities(self.x).argmax(axis=1) == self.y
        known = right[: labelled // (RESERVED - 1)]
        if len(known):
            low, high = accuracy_interval(int(known.sum()), len(known))
            self.made += 1
            self.covered += bool(low <= right.mean() <= high)
