"""Fits of heads on growing parts of the train rows, kept on disk until the curve is done."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from featcache.errors import HeadError
from featcache.evaluation.bootstrap import bootstrap_metrics
from featcache.evaluation.calibration import tune_thresholds
from featcache.evaluation.metrics import score
from featcache.heads.features import LabelledFeatures, rarest_labels
from featcache.heads.probabilities import probabilities_of
from featcache.heads.registry import KINDS
from featcache.heads.scorers import Scorer
from featcache.settings import HeadSettings
from featcache.system.durable import write_file

SAVE_EVERY = 2.0  # seconds of work that a killed process may lose
RANDOM_KINDS = ("linear", "mlp")  # kinds whose result depends on the seed, on the same rows

OnFit = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class SizeFitter:
    """All that a single fit needs but its rows and its seed.

    Attributes:
        candidates: settings of which each fit takes the best by `metric` on validation.
        scored: the rows that are reported.
        classes: C.
        clean: numbers of those that do not leak, int64; None where no row leaks, or every one.
    """

    kind: str
    metric: str
    candidates: list[HeadSettings]
    train: LabelledFeatures
    validation: LabelledFeatures
    scored: LabelledFeatures
    classes: int
    clean: np.ndarray | None = None

    @property
    def resamples(self) -> int:
        """R: 1,000, and fewer where so many rows are scored that they would take most of the time."""
        return int(np.clip(20_000_000 // len(self.scored.y), 200, 1000))

    @property
    def width(self) -> int:
        """Numbers of one fit, see `fit`."""
        return 2 + self.resamples + (0 if self.clean is None else 1 + self.resamples)

    def fit_all(
        self, sizes: Sequence[int], seeds: Sequence[int], finished: FinishedFits, progress: OnFit | None
    ) -> np.ndarray:
        """All fits, as `fit` returns them: `[sizes, seeds, width]`.

        Args:
            progress: see `learning_curve`.
        """
        done, total = 0, sum(sizes) * len(seeds)

        def name_of(size: int, seed: int) -> str:
            """All rows give most kinds the same head in any order."""
            same = size == len(self.train.y) and self.kind not in RANDOM_KINDS
            return f"{size}-{seeds[0] if same else seed}"

        for seed in seeds:
            order = nested_order(self.train.y, seed)
            for size in sizes:
                name = name_of(size, seed)
                if name not in finished.fits:
                    finished.add(name, self.fit(order[:size], seed))
                done += size
                if progress:
                    progress(done, total, size, seed)
        return np.array([[finished.fits[name_of(size, seed)] for seed in seeds] for size in sizes])

    def fit(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """The score, the C chosen (NaN if there is no choice), and the scores of the R resamples: `[2 + R]`.

        Where rows leak, the score of the clean rows and those of their resamples follow.

        Raises:
            HeadError: rows no head can be trained on; names their number.
        """
        part, all_rows = self.train, len(rows) == len(self.train.y)
        if not all_rows:
            rows = np.sort(rows)
            part = part.some(rows)
        try:
            found = [self._candidate(part, head, seed) for head in self.candidates]
        except HeadError as error:
            hint = error.hint or (None if all_rows else "begin with a larger size: --sizes")
            raise HeadError(f"{len(rows):,} rows, seed {seed}: {error.what}", hint=hint) from error
        _, head, scorer, thresholds = max(found, key=lambda one: one[0])
        said, y = self._probabilities(scorer, self.scored), self.scored.y
        penalty = head.fixed_C if "C" in KINDS[self.kind].settings else np.nan
        value, *drawn = self._resampled(said, y, thresholds)
        clean = () if self.clean is None else self._resampled(said[self.clean], y[self.clean], thresholds)
        return np.array([value, penalty, *drawn, *clean])

    def _resampled(self, said: np.ndarray, y: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
        """The score, and the scores of the resamples: `[1 + R]`."""
        drawn = bootstrap_metrics(said, y, thresholds, resamples=self.resamples)[self.metric]
        return np.concatenate([[self._score(said, y, thresholds)[0]], drawn])

    def _candidate(
        self, part: LabelledFeatures, head: HeadSettings, seed: int
    ) -> tuple[tuple[float, ...], HeadSettings, Scorer, np.ndarray | None]:
        """Its rank on validation (the metric, the log loss, the stronger penalty), and what was fitted."""
        scorer = KINDS[self.kind].fit(part, self.validation, self.classes, head, seed=seed).best
        said, y = self._probabilities(scorer, self.validation), self.validation.y
        thresholds = tune_thresholds(said, y) if y.ndim == 2 else None
        rank = () if len(self.candidates) == 1 else (*self._score(said, y, thresholds), -head.fixed_C)
        return rank, head, scorer, thresholds

    def _score(self, said: np.ndarray, y: np.ndarray, thresholds: np.ndarray | None) -> tuple[float, float]:
        """The metric, and the log loss with its sign turned."""
        found = score(said, y, tuple(map(str, range(self.classes))), thresholds)
        return getattr(found, self.metric), -found.log_loss

    def _probabilities(self, scorer: Scorer, rows: LabelledFeatures) -> np.ndarray:
        return probabilities_of(scorer.logits(rows.x), 1.0, multi_label=rows.y.ndim == 2)


class FinishedFits:
    """Finished fits by name, written every two seconds and when work ends early; a context manager.

    What the file holds is used if it can be read and has the right shape: its folder is named after all
    that the fits depend on.

    Args:
        length: of each fit.
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
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        content = io.BytesIO()
        np.savez(content, **self.fits)  # type: ignore[arg-type]
        write_file(self.path, content.getvalue())
        self._saved, self._new = time.monotonic(), False


def _read_fits(path: Path, length: int) -> dict[str, np.ndarray]:
    """Empty where there is no file, or one that cannot be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            fits = {name: file[name] for name in file.files}
    except Exception:  # whatever is wrong with a damaged file: its fits can be made again
        return {}
    fine = all(fit.shape == (length,) and fit.dtype == np.float64 for fit in fits.values())
    return fits if fine else {}


def nested_order(y: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the rows in which every beginning has about each class's share: int64 `[N]`.

    One row of each class comes first, so that as many rows as there are classes have them all; the r-th row
    of a class of n comes at `(r + u) / n` of the way, u one draw a class. A multi-label row counts as of
    its rarest label. The raw PCG64 stream is used, which NumPy promises never to change.

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
