"""Learning curves: how a head's score grows with the labelled rows, and what more of them would bring."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.evaluation.bootstrap import bootstrap_metrics
from featcache.evaluation.calibration import tune_thresholds
from featcache.evaluation.extrapolation import Extrapolation, MeasuredScores, extrapolate
from featcache.evaluation.metrics import score
from featcache.fingerprint import fingerprint
from featcache.heads.features import LabelledFeatures, counts_of, rarest_labels
from featcache.heads.head import probabilities_of
from featcache.heads.registry import KINDS
from featcache.runs.run import file_stem
from featcache.runs.train import CachedSplits, load_data
from featcache.settings import HeadSettings, Settings
from featcache.system.durable import write_file

CURVE_FORMAT = 1
CURVE_FILE, KEPT_FILE = "curve.json", "fits.npz"
METRICS = ("accuracy", "macro_f1")
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # of which each fit takes the one best on validation
MOST_SEEDS = 1000
KEEP_EVERY = 2.0  # seconds of work that a killed process may lose
_CHOICE = ("C", "penalty", "folds")  # settings that a plan's penalties stand in for
_DICED = ("linear", "mlp")  # kinds that come out differently with another seed on the same rows


@dataclass(frozen=True)
class Point:
    """One size of the curve.

    Attributes:
        rows: train rows.
        score: mean over the seeds.
        low, high: its 95 % interval, see `featcache.evaluation.extrapolation.MeasuredScores.intervals`.
        deviation: standard deviation over the seeds; None of one seed.
        per_doubling: gain since the size before, for each doubling of the rows; None of the first.
        scores: one a seed.
        penalties: the C chosen for each seed; empty for heads without a choice.
    """

    rows: int
    score: float
    low: float
    high: float
    deviation: float | None
    per_doubling: float | None
    scores: tuple[float, ...]
    penalties: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """What `learning_curve` returns.

    Attributes:
        metric: `accuracy` or `macro_f1`, of `split`.
        split: `test`; `validation` where no test split is cached: then choices were made on the rows that
            are reported, and scores are somewhat too high.
        seconds: of this call's fits and the extrapolation.
        folder: where `curve.json` lies.
    """

    kind: str
    view: str
    metric: str
    split: str
    points: tuple[Point, ...]
    outlook: Extrapolation
    seconds: float
    folder: Path

    @property
    def document(self) -> dict[str, Any]:
        """The content of curve.json, plain JSON."""
        return {"format": CURVE_FORMAT, **dataclasses.asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Plan:
    """What a curve consists of.

    Attributes:
        sizes: train rows; None: `points` of them, log-spaced up to all.
        seeds: how many orders of the rows, counted from the settings' own seed.
        penalties: values of C, for the kinds that have one; the best on validation is taken by each fit.
    """

    kind: str = "exact"
    metric: str = "accuracy"
    sizes: tuple[int, ...] | None = None
    points: int = 8
    seeds: int = 5
    penalties: tuple[float, ...] = PENALTIES

    def check(self) -> None:
        """Refuse what has no sense.

        Raises:
            UsageError: an unknown kind or metric, or numbers out of range.
        """
        for what, name, known in (("head", self.kind, KINDS), ("metric", self.metric, METRICS)):
            if name not in known:
                raise UsageError(f"unknown {what} {name!r}", hint=f"there are: {', '.join(known)}")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UsageError(f"--seeds {self.seeds}: from 1 to {MOST_SEEDS:,}")
        if self.points < 2:
            raise UsageError(f"--points {self.points}: at least 2")
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 2):
            raise UsageError("--sizes: whole numbers from 2 upwards are needed")
        if not self.penalties:
            raise UsageError("--C: at least one value is needed")

    def candidates(self, head: HeadSettings) -> list[HeadSettings]:
        """The settings of which each fit takes the best: one a penalty, or those there are.

        What the settings themselves say of C and its choice does not count: here it is chosen by the metric.
        """
        if "C" not in KINDS[self.kind].settings:
            return [head]
        return [dataclasses.replace(head, C=C, penalty="fixed") for C in sorted(set(self.penalties))]


Progress = Callable[[int, int, int, int], None]


def learning_curve(
    settings: Settings, plan: Plan | None = None, view: str | None = None, *, progress: Progress | None = None
) -> Curve:
    """Train heads on growing parts of the cached train rows and score them on test.

    Each seed puts the train rows in one random order in which every class has its share from the start, and
    each size is the first so many of them: the sizes of a seed are nested. What is chosen (the penalty,
    thresholds, the best epoch) is chosen on all validation rows at every size. Seeds share their rows the
    more, the nearer a size is to all rows; of all rows there is but one choice, and the interval there is
    about the rows scored on alone.

    Args:
        view: which of the cached views; the first of `settings.features.views` by default.
        progress: called after each fit with train rows done, of all fits, and the fit's own rows and seed.

    Returns:
        The curve, saved under `settings.paths.reports_dir`. Finished fits outlive an interruption: an equal
        call goes on from them.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        UsageError: a plan without sense, sizes that train does not have.
        HeadError: rows no head can be trained on.
    """
    plan = plan or Plan()
    plan.check()
    asked = view or settings.features.views[0]
    data = load_data(settings, [asked])
    parts, job = data.features[asked], _job(settings, plan, data, asked)
    split = "test" if "test" in parts else "validation"
    if not len(parts[split].y):
        raise HeadError(f"the {split} split has no rows; there is nothing to score on")
    sizes = sizes_of(plan, counts_of(parts["train"].y, job.classes), len(parts["train"].y), settings.head)
    request = _request(settings, plan, data, parts["train"].view, sizes)
    stem = file_stem(f"curve-{plan.kind}-{parts['train'].view}")
    folder = Path(settings.paths.reports_dir) / f"{stem}-{fingerprint(request)[:8]}"
    began = time.perf_counter()
    with _Kept(folder / KEPT_FILE, 2 + job.resamples) as kept:
        fits = _fit_all(job, sizes, range(settings.seed, settings.seed + plan.seeds), kept, progress)
    measured = MeasuredScores(np.array(sizes), fits[:, :, 0], fits[:, :, 2:], len(parts[split].y))
    points = _points(measured, fits[:, :, 1])
    outlook, seconds = extrapolate(measured), time.perf_counter() - began
    curve = Curve(plan.kind, parts["train"].view, plan.metric, split, points, outlook, seconds, folder)
    content = json.dumps(curve.document | {"request": request}, indent=1, ensure_ascii=False)
    write_file(folder / CURVE_FILE, content.encode("utf-8"))
    (folder / KEPT_FILE).unlink(missing_ok=True)
    return curve


def sizes_of(plan: Plan, counts: np.ndarray, rows: int, head: HeadSettings) -> tuple[int, ...]:
    """The sizes of a curve, ascending: those of the plan, or log-spaced from two rows a class to all rows.

    Args:
        counts: train rows of each class `[C]`.
        rows: train rows.

    Raises:
        UsageError: sizes that train does not have.
        HeadError: fewer than two rows.
    """
    if plan.sizes is not None:
        if max(plan.sizes) > rows:
            raise UsageError(
                f"--sizes {max(plan.sizes)}: train has {rows:,} rows", hint=f"ask for at most {rows}"
            )
        return tuple(sorted(set(plan.sizes)))
    if rows < 2:
        raise HeadError(f"train has {rows} rows; a learning curve needs at least 2")
    least = max(10, 2 * int(np.count_nonzero(counts)), head.neighbours if plan.kind == "neighbours" else 0)
    first = least if least <= rows / 4 else max(2, rows // 4)
    return tuple(int(size) for size in np.unique(np.geomspace(first, rows, plan.points).round().astype(int)))


def nested_order(y: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the rows whose every beginning has about each class's share: int64 `[N]`.

    One row of each class comes first, so that as many rows as there are classes have them all; the r-th row
    of a class of n comes at `(r + u) / n` of the way, u one draw a class. Multi-label rows are dealt by the
    rarest label of each. The raw PCG64 stream is used, which NumPy promises never to change.

    Args:
        y: int `[N]`, or multi-hot `[N, C]`.
    """
    strata = np.unique(rarest_labels(y), return_inverse=True)[1].ravel()
    counts = np.bincount(strata)
    draw = np.random.PCG64(seed % 2**64).random_raw(len(strata) + len(counts))
    keys, starts = draw[: len(strata)], draw[len(strata) :] / 2.0**64
    order = np.lexsort((keys, strata))
    rank = np.empty(len(strata), np.int64)
    rank[order] = np.arange(len(strata)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.where(rank == 0, -1.0, (rank + starts[strata]) / counts[strata])
    return np.asarray(np.lexsort((keys, place)))


@dataclass(frozen=True)
class _Job:
    """All that a single fit needs but for its rows and its seed."""

    kind: str
    metric: str
    candidates: list[HeadSettings]
    train: LabelledFeatures
    validation: LabelledFeatures
    scored: LabelledFeatures
    classes: int

    @property
    def resamples(self) -> int:
        """1,000, and fewer where so many rows are scored that they would take most of the time."""
        return int(np.clip(20_000_000 // len(self.scored[1]), 200, 1000))

    def fit(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """The score, the C chosen (NaN of no choice), and the scores of the resamples: `[2 + R]`."""
        x, y = self.train
        part = self.train
        if len(rows) < len(y):
            part = LabelledFeatures(np.asarray(x[np.sort(rows)]), y[np.sort(rows)])
        found = [self._candidate(part, head, seed) for head in self.candidates]
        _, head, scorer, thresholds = max(found, key=lambda one: one[0])
        said = self._probabilities(scorer, self.scored)
        names = tuple(map(str, range(self.classes)))
        value = getattr(score(said, self.scored[1], names, thresholds), self.metric)
        drawn = bootstrap_metrics(said, self.scored[1], thresholds, resamples=self.resamples)[self.metric]
        penalty = head.C if "C" in KINDS[self.kind].settings else np.nan
        return np.concatenate([[value, penalty], drawn])

    def _candidate(
        self, part: LabelledFeatures, head: HeadSettings, seed: int
    ) -> tuple[Any, HeadSettings, Any, Any]:
        """Its rank on validation: the metric, then the log loss, then the stronger penalty."""
        scorer = KINDS[self.kind].fit(part, self.validation, self.classes, head, seed=seed).best
        said, y = self._probabilities(scorer, self.validation), self.validation[1]
        thresholds = tune_thresholds(said, y) if y.ndim == 2 else None
        if len(self.candidates) == 1:
            return (), head, scorer, thresholds
        found = score(said, y, tuple(map(str, range(self.classes))), thresholds)
        return (getattr(found, self.metric), -found.log_loss, -head.C), head, scorer, thresholds

    def _probabilities(self, scorer: Any, rows: LabelledFeatures) -> np.ndarray:
        return probabilities_of(scorer.logits(rows[0]), 1.0, multi_label=rows[1].ndim == 2)


def _job(settings: Settings, plan: Plan, data: CachedSplits, view: str) -> _Job:
    split = "test" if "test" in data.files else "validation"
    classes = len(data.features[view]["train"].label_names)
    train, held_out, scored = (data.rows(view, name) for name in ("train", "validation", split))
    candidates = plan.candidates(settings.head)
    return _Job(plan.kind, plan.metric, candidates, train, held_out, scored, classes)


def _request(
    settings: Settings, plan: Plan, data: CachedSplits, view: str, sizes: Sequence[int]
) -> dict[str, Any]:
    """All that the numbers depend on; equal requests share a folder."""
    candidates, used = plan.candidates(settings.head), KINDS[plan.kind].settings
    named = [name for name in used if name not in _CHOICE]
    return {
        "format": CURVE_FORMAT,
        "head": plan.kind,
        "settings": {name: getattr(settings.head, name) for name in named},
        "penalties": [head.C for head in candidates] if "C" in used else [],
        "view": view,
        "metric": plan.metric,
        "sizes": list(sizes),
        "seeds": [settings.seed, plan.seeds],
        "caches": {split: file.fingerprint for split, file in data.files.items()},
    }


def _fit_all(
    job: _Job, sizes: Sequence[int], seeds: Sequence[int], kept: _Kept, progress: Progress | None
) -> np.ndarray:
    """`[sizes, seeds, 2 + R]`, as `_Job.fit` returns them."""
    y = job.train[1]
    done, total = 0, sum(sizes) * len(seeds)

    def name_of(size: int, seed: int) -> str:
        """All rows give most kinds the same head in any order."""
        return f"{size}-{seeds[0] if size == len(y) and job.kind not in _DICED else seed}"

    for seed in seeds:
        order = nested_order(y, seed)
        for size in sizes:
            name = name_of(size, seed)
            if name not in kept.fits:
                kept.add(name, _explained(job, order[:size], seed))
            done += size
            if progress:
                progress(done, total, size, seed)
    return np.array([[kept.fits[name_of(size, seed)] for seed in seeds] for size in sizes])


def _explained(job: _Job, rows: np.ndarray, seed: int) -> np.ndarray:
    try:
        return job.fit(rows, seed)
    except HeadError as error:
        hint = "begin with a larger size: --sizes" if len(rows) < len(job.train[1]) else None
        raise HeadError(f"{len(rows):,} rows, seed {seed}: {error.what}", hint=error.hint or hint) from error


class _Kept:
    """Finished fits by name, on disk every two seconds and when work ends early; use as a context manager.

    What it finds is believed if it can be read and has the right shape: the folder's name says what of.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.fits, self._saved = path, _read_fits(path, length), time.monotonic()
        self._new = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._new:
            self._save()

    def add(self, name: str, fit: np.ndarray) -> None:
        self.fits[name], self._new = fit, True
        if time.monotonic() - self._saved > KEEP_EVERY:
            self._save()

    def _save(self) -> None:
        content = io.BytesIO()
        np.savez(content, **self.fits)  # type: ignore[arg-type]
        write_file(self.path, content.getvalue())
        self._saved, self._new = time.monotonic(), False


def _read_fits(path: Path, length: int) -> dict[str, np.ndarray]:
    """Nothing where there is no file, or one that cannot be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            fits = {name: file[name] for name in file.files}
    except Exception:  # whatever is wrong with a damaged file: its fits can be made again
        return {}
    fine = all(fit.shape == (length,) and fit.dtype == np.float64 for fit in fits.values())
    return fits if fine else {}


def _points(found: MeasuredScores, penalties: np.ndarray) -> tuple[Point, ...]:
    means, intervals = found.scores.mean(axis=1), found.intervals()
    doublings = np.diff(np.log2(found.rows))
    gains = [None, *(np.diff(means) / doublings).tolist()]
    deviations = found.deviations().tolist() if found.scores.shape[1] > 1 else [None] * len(means)
    return tuple(
        Point(
            rows=int(found.rows[place]),
            score=float(means[place]),
            low=float(intervals[place, 0]),
            high=float(intervals[place, 1]),
            deviation=deviations[place],
            per_doubling=gains[place],
            scores=tuple(found.scores[place].tolist()),
            penalties=tuple(C for C in penalties[place].tolist() if C == C),
        )
        for place in range(len(means))
    )
