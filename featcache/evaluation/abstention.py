"""When a classifier answers and when it does not: the risk-coverage curve, and thresholds with a guarantee.

A row is answered where its score is at least a threshold. *Coverage* is the share of rows that are answered,
*risk* the share of these that are wrong (El-Yaniv and Wiener, JMLR 11, 2010; Geifman and El-Yaniv 2017,
arXiv:1705.08500).

Both thresholds need rows that had no part in anything before: neither in the training nor in the choice of an
epoch, a penalty, a temperature or the score. Then they hold for any classifier and any score, with the stated
confidence over the draw of these rows, if new rows come from where these come from (independent, of the same
distribution).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from featcache.errors import UsageError

STEPS = 200  # thresholds that are tried, at equal steps of coverage
POINTS = 100  # of a curve that is kept


class ScoredRows(NamedTuple):
    """Some rows of one split.

    Attributes:
        score: float64 `[N]`, higher is surer; a row is answered from the threshold on.
        wrong: bool `[N]`, whether the most probable label is wrong.
    """

    score: np.ndarray
    wrong: np.ndarray


class Selection(NamedTuple):
    """How many rows are answered at a threshold, and how many of these are wrong."""

    rows: int
    answered: int
    wrong: int

    @classmethod
    def of(cls, rows: ScoredRows, threshold: float) -> Selection:
        answered = rows.score >= threshold
        return cls(len(answered), int(answered.sum()), int(rows.wrong[answered].sum()))

    @property
    def coverage(self) -> float:
        return self.answered / self.rows if self.rows else 0.0

    @property
    def risk(self) -> float:
        """NaN where nothing is answered."""
        return self.wrong / self.answered if self.answered else math.nan


def highest_risk(wrong: int, answered: int, confidence: float) -> float:
    """The exact binomial upper bound of a share (Clopper and Pearson 1934), one-sided; 1 for no rows."""
    if wrong >= answered:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(wrong + 1, answered - wrong, confidence))


def fewest_rows(max_error: float, confidence: float) -> int:
    """How many answered rows, all of them right, show that the risk is at most `max_error`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-max_error))


def threshold_for_error(
    choice: ScoredRows, test: ScoredRows, max_error: float, confidence: float
) -> float | None:
    """The threshold with the highest coverage of which `test` shows a risk of at most `max_error`.

    Learn then test (Angelopoulos et al. 2021, arXiv:2110.01052) with fixed-sequence testing: thresholds are
    tested one after the other, by exact binomial tests at the whole level `1 - confidence`, until one fails;
    the last one before is the answer. With probability `confidence` its risk is at most `max_error`. This
    holds because the sequence does not depend on `test`: `choice` gives the thresholds, and the one to begin
    with, which is the one with the strongest evidence there. From it the sequence goes to lower ones.

    Args:
        choice: rows that may have chosen anything before.
        test: rows that have not.

    Returns:
        0.0 where every row may be answered; None where the first test fails.
    """
    from scipy.special import bdtr

    thresholds = _thresholds(choice.score)
    start = int(bdtr(*_counts(choice, thresholds)[::-1], max_error).argmin())
    wrong, answered = (counts[start:] for counts in _counts(test, thresholds)[::-1])
    passed = bdtr(wrong, np.maximum(answered, 1), max_error) <= 1 - confidence
    passed &= answered > 0
    steps = len(passed) if passed.all() else int(passed.argmin())
    return float(thresholds[start + steps - 1]) if steps else None


def threshold_for_coverage(score: np.ndarray, coverage: float, confidence: float) -> float | None:
    """The highest threshold of which the scores `[N]` show that at least `coverage` of new rows are answered.

    A one-sided distribution-free tolerance limit (Wilks 1941): the k-th lowest score, with the largest k for
    which `confidence` holds.

    Returns:
        None where the rows are too few to show it; see `fewest_rows(1 - coverage, confidence)`.
    """
    if coverage >= 1:
        return 0.0
    from scipy.special import bdtr

    k = int((bdtr(np.arange(len(score)), len(score), 1 - coverage) <= 1 - confidence).sum())
    return float(_rounded_down(np.sort(score)[k - 1])) if k else None


class RiskCoverage(NamedTuple):
    """The curve of some rows, from the surest row on.

    Attributes:
        area: mean of the risk over all coverages (AURC); lower is better, and it has no threshold in it.
        points: up to POINTS pairs (coverage, risk), by coverage; the last one answers every row.
    """

    area: float
    points: tuple[tuple[float, float], ...]


def risk_coverage(rows: ScoredRows) -> RiskCoverage:
    """The risk-coverage curve; rows of equal score are answered together, and share their errors.

    Raises:
        UsageError: no rows.
    """
    if not len(rows.score):
        raise UsageError("a risk-coverage curve needs rows")
    order = np.argsort(-rows.score, kind="stable")
    score, wrong = rows.score[order], rows.wrong[order].astype(np.float64)
    last = np.append(score[1:] != score[:-1], True)  # of those of equal score
    ends = np.flatnonzero(last) + 1
    sums = np.cumsum(wrong)[last]
    counts = np.arange(1, len(score) + 1)
    spread = np.interp(counts, np.concatenate([[0], ends]), np.concatenate([[0.0], sums]))
    kept = np.unique(np.linspace(0, len(ends) - 1, min(POINTS, len(ends))).round().astype(int))
    points = zip((ends[kept] / len(score)).tolist(), (sums[kept] / ends[kept]).tolist(), strict=True)
    return RiskCoverage(float((spread / counts).mean()), tuple(points))


def _thresholds(score: np.ndarray) -> np.ndarray:
    """Thresholds at equal steps of coverage, descending; the last one, 0, answers everything."""
    found = _rounded_down(np.quantile(score, np.linspace(1, 0, STEPS + 1)[1:], method="lower"))
    return np.append(np.unique(found[found > 0])[::-1], 0.0)


def _rounded_down(score: np.ndarray) -> np.ndarray:
    """Six digits, so that no row is at a threshold: the same text may be encoded a little differently."""
    return np.floor(score * 1e6) / 1e6


def _counts(rows: ScoredRows, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many rows are answered at each threshold, and how many of these are wrong: int64 `[T]`."""
    order = np.argsort(-rows.score, kind="stable")
    answered = np.searchsorted(-rows.score[order], -thresholds, side="right")
    wrong = np.concatenate([[0], np.cumsum(rows.wrong[order], dtype=np.int64)])
    return answered, wrong[answered]
