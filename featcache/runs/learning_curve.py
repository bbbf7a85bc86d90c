"""Learning curves: how a head's score grows with the labelled rows, and an extrapolation to more of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.view_names import LEXICAL, require_cached, short_view
from featcache.errors import HeadError, UsageError
from featcache.evaluation.extrapolation import Extrapolation, MeasuredScores, extrapolate
from featcache.fingerprint import fingerprint
from featcache.heads.features import LabelledFeatures, counts_of
from featcache.heads.numbers.registry import refuse_numbers
from featcache.heads.registry import KINDS
from featcache.plain_file import read_plain
from featcache.runs.curve_fits import FinishedFits, OnFit, SizeFitter
from featcache.runs.inputs.splits import CachedSplits, load_data
from featcache.runs.run import Run, file_stem
from featcache.runs.weighted_rows import weighted_rows
from featcache.settings import HeadSettings, Settings
from featcache.system.documents import read_document
from featcache.system.durable import write_file

CURVE_FORMAT = 1
CURVE_FILE, FITS_FILE = "curve.json", "fits.npz"
METRICS = ("accuracy", "macro_f1")
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # of which each fit takes the one best on validation
MOST_SEEDS = 1000
_CHOICE = ("C", "penalty", "folds", "weight_column")  # settings that others of the request replace


@dataclass(frozen=True)
class CleanPoint:
    """Mean score over the seeds on the rows that do not leak, with its 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One size of the curve.

    Attributes:
        rows: train rows.
        score: mean over the seeds.
        low, high: its 95 % interval, see `featcache.evaluation.extrapolation.MeasuredScores.intervals`.
        deviation: standard deviation over the seeds; None if there is one seed.
        per_doubling: gain since the size before, for each doubling of the rows; None for the first size.
        scores: one for each seed.
        penalties: the C chosen for each seed; empty for heads without a choice.
        clean: score and interval on the rows that do not leak; None where no row leaks, or every one.
    """

    rows: int
    score: float
    low: float
    high: float
    deviation: float | None
    per_doubling: float | None
    scores: tuple[float, ...]
    penalties: tuple[float, ...]
    clean: CleanPoint | None = None


@dataclass(frozen=True)
class Curve:
    """What `learning_curve` returns.

    Attributes:
        metric: `accuracy` or `macro_f1`, of `split`.
        split: `test`; `validation` where no test split is cached: then choices were made on the rows that
            are reported, and scores are somewhat too high.
        leaked: how many rows of `split` leak.
        seconds: of this call's fits and the extrapolation.
        folder: the one with `curve.json`.
    """

    kind: str
    view: str
    metric: str
    split: str
    points: tuple[Point, ...]
    outlook: Extrapolation
    seconds: float
    folder: Path
    leaked: int = 0

    @property
    def document(self) -> dict[str, Any]:
        """The content of curve.json, plain JSON."""
        return {"format": CURVE_FORMAT, **asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Plan:
    """What a curve consists of.

    Attributes:
        sizes: train rows; None: `points` of them, log-spaced up to all.
        seeds: how many orders of the rows, counted from the settings' own seed.
        penalties: values of C, for the kinds that have one; each fit takes the best on validation.
    """

    kind: str = "exact"
    metric: str = "accuracy"
    sizes: tuple[int, ...] | None = None
    points: int = 8
    seeds: int = 5
    penalties: tuple[float, ...] = PENALTIES

    def check(self) -> None:
        """Check all values.

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
        """The settings of which each fit takes the best by the metric: one for each penalty, or `head` alone.

        `head.C` and `head.penalty` do not count.
        """
        if "C" not in KINDS[self.kind].settings:
            return [head]
        return [replace(head, C=C, penalty="fixed") for C in sorted(set(self.penalties))]


def learning_curve(
    settings: Settings, plan: Plan | None = None, view: str | None = None, *, progress: OnFit | None = None
) -> Curve:
    """Train heads on growing parts of the cached train rows and score them on test.

    Each seed orders the train rows at random, with each class's share in every beginning; a size is that
    many of the first rows, so the sizes of a seed are nested. The penalty, thresholds and the best epoch are
    chosen on all validation rows (that do not leak) at every size. The nearer a size is to all rows, the more
    rows the seeds share: the interval at all rows is about the scored rows alone.

    Args:
        view: which of the cached views; the first of `settings.features.views` by default.
        progress: called after each fit with four integers: the train rows of the fits so far and of all
            fits, then this fit's rows and its seed.

    Returns:
        The curve, saved under `settings.paths.reports_dir`. After an interruption, an equal call reuses the
        fits that were finished.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        UsageError: a plan that cannot be meant, sizes that train does not have.
        HeadError: rows no head can be trained on.
    """
    refuse_numbers(settings.data.task, "curve")
    (plan := plan or Plan()).check()
    asked = view or settings.features.views[0]
    require_cached(LEXICAL if plan.kind == LEXICAL else asked, "a learning curve")
    data = load_data(settings, [asked])
    parts, view = data.features[asked], data.features[asked]["train"].view
    split = "test" if "test" in parts else "validation"
    if not len(parts[split].y):
        raise HeadError(f"there is nothing to score on: {split} has no rows", hint="name a file with rows")
    fitter = _fitter(settings, plan, data, asked, split)
    sizes = sizes_of(plan, counts_of(fitter.train.y, fitter.classes), len(fitter.train.y), settings.head)
    request = _request(settings, plan, data, view, sizes)
    if (weight := fitter.train.weight) is not None:
        request.settings["weights"] = hashlib.sha256(weight.tobytes()).hexdigest()
    name = f"{file_stem(f'curve-{plan.kind}-{short_view(view)}')}-{fingerprint(request.document)[:8]}"
    folder = Path(settings.paths.reports_dir) / name
    began = time.perf_counter()
    with FinishedFits(folder / FITS_FILE, fitter.width) as finished:
        seeds = range(settings.seed, settings.seed + plan.seeds)
        fits = fitter.fit_all(sizes, seeds, finished, progress)
    measured, clean = _measured(fitter, np.array(sizes), fits)
    curve = Curve(
        kind=plan.kind,
        view=view,
        metric=plan.metric,
        split=split,
        points=_points(measured, clean, fits[:, :, 1]),
        outlook=extrapolate(measured),
        seconds=time.perf_counter() - began,
        folder=folder,
        leaked=int(data.leaks.rows[split].sum()) if split in data.leaks.rows else 0,
    )
    content = json.dumps(curve.document | {"request": request.document}, indent=1, ensure_ascii=False)
    write_file(folder / CURVE_FILE, content.encode("utf-8"))
    (folder / FITS_FILE).unlink(missing_ok=True)
    return curve


def _fitter(settings: Settings, plan: Plan, data: CachedSplits, view: str, split: str) -> SizeFitter:
    train, head = weighted_rows(settings, plan.kind, data.features[view]["train"])
    return SizeFitter(
        kind=plan.kind,
        metric=plan.metric,
        candidates=plan.candidates(head),
        train=train,
        validation=data.rows(view, "validation"),
        scored=LabelledFeatures(data.features[view][split].x, data.features[view][split].y),
        classes=len(data.features[view]["train"].label_names),
        clean=data.leaks.clean(split),
    )


def _measured(
    fitter: SizeFitter, sizes: np.ndarray, fits: np.ndarray
) -> tuple[MeasuredScores, MeasuredScores | None]:
    """The scores of all rows and of the clean rows, from fits `[sizes, seeds, width]`."""
    end = 2 + fitter.resamples
    whole = MeasuredScores(sizes, fits[:, :, 0], fits[:, :, 2:end], len(fitter.scored.y))
    if fitter.clean is None:
        return whole, None
    return whole, MeasuredScores(sizes, fits[:, :, end], fits[:, :, end + 1 :], len(fitter.clean))


@dataclass(frozen=True)
class CurveRequest:
    """All that a curve's numbers depend on; equal requests share a folder.

    Attributes:
        settings: of the head, those that its kind uses and the curve does not choose.
        penalties: values of C that are tried; empty for kinds without.
        seeds: the first, and how many.
        caches: fingerprints of the cache files by split.
        leaks: how leaked rows were found; None where there are none that count.
    """

    head: str
    settings: dict[str, Any]
    penalties: list[float]
    view: str
    metric: str
    sizes: list[int]
    seeds: list[int]
    caches: dict[str, str]
    format: int = CURVE_FORMAT
    leaks: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        """Without `leaks` where it is None: equal to the requests of earlier versions."""
        return {name: value for name, value in asdict(self).items() if name != "leaks" or value}


@dataclass(frozen=True)
class SavedPoint:
    """What is read of a `Point`."""

    rows: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class SavedRequest:
    """What is read of a `CurveRequest`."""

    view: str
    caches: dict[str, str]


@dataclass(frozen=True)
class SavedCurve:
    """What is read of a curve.json."""

    kind: str
    metric: str
    split: str
    points: tuple[SavedPoint, ...]
    request: SavedRequest


def saved_curves(reports_dir: Path, runs: Sequence[Run]) -> list[SavedCurve]:
    """The curves in a folder that were measured on the cache files of one of these runs.

    Those of the first run's view come first.
    """
    used = [{split: cache.fingerprint for split, cache in run.record.caches.items()} for run in runs]
    found = []
    for path in sorted(reports_dir.glob(f"curve-*/{CURVE_FILE}")):
        try:
            curve = read_document(SavedCurve, read_plain(path), str(path), ValueError)
        except (OSError, ValueError):
            continue  # a folder of that name from another program
        if curve.request.caches and curve.request.caches in used:
            found.append(curve)
    return sorted(found, key=lambda curve: curve.request.view != runs[0].record.view)


def _request(
    settings: Settings, plan: Plan, data: CachedSplits, view: str, sizes: Sequence[int]
) -> CurveRequest:
    used = KINDS[plan.kind].settings
    return CurveRequest(
        head=plan.kind,
        settings={name: getattr(settings.head, name) for name in used if name not in _CHOICE},
        penalties=[head.fixed_C for head in plan.candidates(settings.head)] if "C" in used else [],
        view=view,
        metric=plan.metric,
        sizes=list(sizes),
        seeds=[settings.seed, plan.seeds],
        caches={split: file.fingerprint for split, file in data.files.items()},
        leaks=data.leaks.rule if any(data.leaks.clean(split) is not None for split in data.files) else None,
    )


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
        raise HeadError(f"train has {rows} rows; a learning curve needs at least 2", hint="label more rows")
    least = max(10, 2 * int(np.count_nonzero(counts)), head.neighbours if plan.kind == "neighbours" else 0)
    first = least if least <= rows / 4 else max(2, rows // 4)
    return tuple(int(size) for size in np.unique(np.geomspace(first, rows, plan.points).round().astype(int)))


def _points(found: MeasuredScores, clean: MeasuredScores | None, penalties: np.ndarray) -> tuple[Point, ...]:
    means, intervals = found.scores.mean(axis=1), found.intervals()
    without: list[CleanPoint | None] = [None] * len(means)
    if clean:
        table = np.column_stack([clean.scores.mean(axis=1), clean.intervals()])
        without = [CleanPoint(*line) for line in table.tolist()]
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
            clean=without[place],
        )
        for place in range(len(means))
    )
