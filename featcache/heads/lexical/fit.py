"""Heads of words: logistic regression on n-grams, and n-grams beside a head of the backbone's features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from featcache.errors import HeadError, UsageError
from featcache.evaluation.calibration import fit_temperature
from featcache.evaluation.metrics import score
from featcache.heads.features import NEVER, LabelledFeatures, WeightedFeatures, fixed_logits
from featcache.heads.fit import Fit, OnEpoch, check_settings
from featcache.heads.lexical.newton import fit_newton
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordFit, WordRows
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.lexical.stored_rows import SparseRows, StoredRows, parts_of
from featcache.heads.lexical.streamed_fit import fit_streamed
from featcache.heads.probabilities import probabilities_of
from featcache.settings import HeadSettings
from featcache.system.progress import OnProgress, Progress, ignore

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PLAIN = (3.0, 10.0, 30.0)  # values of C (as scikit-learn's) that are tried, with plain TF-IDF
RATIO = (10.0, 30.0, 100.0)  # and with log-count ratios
FEW_CLASSES = 10  # of more, one penalty is tried: each class costs as much as the whole of two classes
CERTAIN = 50.0  # logits beyond this are certain: more changes no loss
CHOOSING = 50_000  # rows that choose how words are weighted, of more than memory should hold
NUMBERS_AT_ONCE = 1 << 22  # weights of classes that are learnt in the same passes
PRIOR = 1.0  # pseudo-rows that hold the two factors of a blend near 1


@dataclass(frozen=True)
class Weighting:
    """How n-grams are weighted before the regression.

    Attributes:
        ratio: multiplied by the log ratio of their counts in and outside of a class, Wang and Manning 2012,
            "Baselines and Bigrams" (P12-2018).
        C: inverse strength of the penalty.
    """

    ratio: bool
    C: float


def fit_lexical(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress = ignore,
) -> Fit:
    """Logistic regression on n-grams, one class against the rest.

    TF-IDF weights are taken plain or multiplied by log-count ratios, with the penalty whose log loss on
    validation is lowest after temperature scaling; so is the kind of n-grams, where there are several.

    Raises:
        HeadError: rows no head can be trained on.
    """
    check_settings(settings)
    found = [
        (ngrams, _fit_words(rows, held_out, classes, settings, on_progress))
        for ngrams, rows, held_out in _kinds(train, validation)
    ]
    ngrams, best = min(found, key=lambda pair: pair[1].loss)
    reused = sum(fit.seconds for _, fit in found)
    return Fit(best.scorer, best.scorer, about=best.about, ngrams=ngrams, seconds_before=reused)


def fit_beside(
    solve: Callable[..., Fit],
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    on_progress: OnProgress = ignore,
    **options: Any,
) -> Fit:
    """A head of features and one of words, added up: each is fitted alone, then both get a factor.

    The two factors have the lowest log loss on validation; fitting them there takes no accuracy away, since
    they are two numbers for all rows. One regression of both would cost many times as much: on reviews it
    is not better.

    Args:
        solve: fits the head of the features, one of `featcache.heads.registry.KINDS`.
        train, validation: `WordRows` with labels.
        options: of `solve`.
    """
    if isinstance(train.x, WordRows) and train.x.dense is None:
        raise UsageError("the view lexical alone is for --head lexical", hint="--view depth,lexical joins it")
    dense = [part.of(part.x.dense) for part in (train, validation)]  # type: ignore[attr-defined]
    fit = solve(*dense, classes, settings, **options)
    return add_words(fit, train, validation, classes, settings, on_progress=on_progress)


def add_words(
    fit: Fit,
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    *,
    on_progress: OnProgress = ignore,
) -> Fit:
    """A fitted head of features with a head of words beside it; see `fit_beside`.

    Args:
        train: `WordRows` with labels, of which the words alone are read.
        validation: `WordRows` with labels.
    """
    logits, found = fit.best.logits(validation.x.dense), []  # type: ignore[attr-defined]
    for ngrams, rows, held_out in _kinds(train, validation):
        words = _fit_words(rows, held_out, classes, settings, on_progress)
        of_words = words.scorer.logits(held_out.x)
        factors = blend(logits, of_words, validation.y)
        found.append(
            (_loss(factors[0] * logits + factors[1] * of_words, validation.y), ngrams, words, factors)
        )
    _, ngrams, words, factors = min(found, key=lambda one: one[0])
    of_words = words.scorer.weight * factors[1], words.scorer.bias * factors[1]
    weight, bias = (part.astype(np.float32) for part in of_words)

    def joined(scorer: Any) -> WordScorer:
        return WordScorer(weight, bias, scorer, factors[0])

    about = (fit.about or {}) | words.about
    about |= {"factor_of_features": factors[0], "factor_of_words": factors[1]}
    return replace(
        fit, best=joined(fit.best), last=joined(fit.last), about=about, ngrams=ngrams,
        seconds_before=sum(words.seconds for _, _, words, _ in found),
    )  # fmt: skip


def blend(first: np.ndarray, second: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Factors above 0 of two logits `[N, C]` whose sum has the lowest log loss for the labels.

    Args:
        y: int `[N]`, or multi-hot `[N, C]`.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    one, two = (np.clip(part.astype(np.float64), -CERTAIN, CERTAIN) for part in (first, second))

    def loss(logs: np.ndarray) -> float:
        logits = np.exp(logs[0]) * one + np.exp(logs[1]) * two
        if y.ndim == 2:
            rows = np.logaddexp(0, (1 - 2.0 * y) * logits).mean(axis=1)
        else:
            rows = -log_softmax(logits, axis=1)[np.arange(len(y)), y]
        return float(rows.mean() + PRIOR / (2 * len(y)) * logs @ logs)

    found = np.exp(minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-6, 6)] * 2).x)
    return float(found[0]), float(found[1])


def _kinds(
    train: LabelledFeatures, validation: LabelledFeatures
) -> Iterator[tuple[Ngrams, LabelledFeatures, LabelledFeatures]]:
    """Train and validation by each kind of n-grams."""
    if not isinstance(train.x, WordRows) or not isinstance(validation.x, WordRows):
        raise UsageError("the lexical head reads n-grams: --view lexical")
    for rows, held_out in zip(train.x.kinds, validation.x.kinds, strict=True):
        yield rows.ngrams, train.of(rows.as_array()), validation.of(held_out.as_array())


def _fit_words(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    on_progress: OnProgress,
) -> WordFit:
    """The scorer with the lowest validation loss; one that was fitted before, where all is the same.

    `seconds` of the result are those that were saved.
    """
    began, rows = time.perf_counter(), cast(WordRows, train.x)
    held_out, made_of = cast(WordRows, validation.x).words, cast(tuple[Any, ...], ())
    if isinstance(rows.words, StoredRows):
        return _fit_stored(train, validation, classes, settings, on_progress)
    if not isinstance(held_out, StoredRows):
        made_of = (
            train.y, train.weight, validation.y, held_out.indptr, held_out.indices, held_out.data,
            classes, settings.class_weight,
        )  # fmt: skip
    for known in rows.fits:
        if made_of and all(map(np.array_equal, known.made_of, made_of)):
            return known
    best: tuple[float, WordScorer, Weighting] | None = None
    fixed = fixed_logits(train.y, classes)
    if (train.y == train.y[0]).all():
        raise HeadError(
            "the train labels hold a single class; there is nothing to learn",
            hint="is the label column the right one? at least two labels are needed: --label-column names it",
        )
    begin, end = (0, None) if classes <= FEW_CLASSES else (1, 2)
    tries = ((True, RATIO[begin:end]), (False, PLAIN[begin:end]))
    for tried, (ratio, penalties) in enumerate(tries):
        before, scorer = np.inf, None
        for number, C in enumerate(penalties):
            on_progress(Progress("words", done=tried * len(penalties) + number, total=2 * len(penalties)))
            scorer = _one_against_rest(rows.words, train, fixed, Weighting(ratio, C), settings, scorer)
            loss = _loss(scorer.logits(validation.x), validation.y)
            if best is None or loss < best[0]:
                best = loss, scorer, Weighting(ratio, C)
            if loss >= before:  # weaker penalties are worse still
                break
            before = loss
    assert best is not None
    loss, scorer, chosen = best
    about = {"C_words": chosen.C, "log_count_ratio": float(chosen.ratio), "ngrams": rows.words.shape[1]}
    made = WordFit(scorer, loss, about, time.perf_counter() - began, made_of)
    if made_of:
        rows.fits.append(made)
    return replace(made, seconds=0.0)


def _fit_stored(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    classes: int,
    settings: HeadSettings,
    on_progress: OnProgress,
) -> WordFit:
    """As `_fit_words`, of more rows than memory should hold: how words are weighted, some rows say."""
    words: SparseRows = train.x.words  # type: ignore[attr-defined]
    rows = np.unique(np.linspace(0, len(train.y) - 1, CHOOSING).astype(np.int64))
    picked, weight = train.x[rows], train.weight
    some = LabelledFeatures(picked, train.y[rows])
    if weight is not None:
        some = WeightedFeatures(picked, train.y[rows], weight[rows])
    chosen_by = _fit_words(some, validation, classes, settings, on_progress)
    about = chosen_by.about
    fixed = fixed_logits(train.y, classes)
    found_weight, bias = np.zeros((classes, words.shape[1]), np.float32), fixed.astype(np.float32)
    two = train.y.ndim == 1 and classes == 2
    learnt = np.array([1]) if two else np.flatnonzero(fixed == 0)
    for some_labels in np.array_split(learnt, -(-len(learnt) * words.shape[1] // NUMBERS_AT_ONCE)):
        chosen = np.stack([_rows_of(train.y, label) for label in some_labels], axis=1)
        weights = [_row_weight(of_class, train.weight, settings) for of_class in chosen.T]
        ratios = np.ones((len(some_labels), words.shape[1]), np.float32)
        if about["log_count_ratio"]:
            ratios = np.stack([_log_count_ratio(words, of_class) for of_class in chosen.T])
        found = fit_streamed(words, chosen, ratios, np.stack(weights, axis=1), about["C_words"])
        found_weight[some_labels], bias[some_labels] = found
    return replace(chosen_by, scorer=WordScorer(found_weight, bias), seconds=0.0)


def _rows_of(y: np.ndarray, label: Any) -> np.ndarray:
    """bool `[N]`: the rows with a label."""
    return np.asarray(y[:, label] == 1 if y.ndim == 2 else y == label)


def _row_weight(chosen: np.ndarray, given: np.ndarray | None, settings: HeadSettings) -> np.ndarray:
    """float64 `[N]`, with scikit-learn's `balanced` where it is asked for."""
    weight = np.ones(len(chosen)) if given is None else given.astype(np.float64)
    if settings.class_weight == "none":
        return weight
    share = (np.where(chosen, weight, 0).sum() or 1, np.where(chosen, 0, weight).sum() or 1)
    factors = np.where(chosen, weight.sum() / (2 * share[0]), weight.sum() / (2 * share[1]))
    return np.asarray(weight * factors)


def _one_against_rest(
    words: csr_matrix,
    train: LabelledFeatures,
    fixed: np.ndarray,
    weighting: Weighting,
    settings: HeadSettings,
    start: WordScorer | None,
) -> WordScorer:
    """A scorer of all classes; those that no train row has, or that all have, get a constant.

    Args:
        start: of a stronger penalty, for a shorter search; None without one.
    """
    classes, y, scaled = len(fixed), train.y, words.astype(np.float64)
    weight = np.zeros((classes, words.shape[1]), np.float32)
    bias = fixed.astype(np.float32)
    two = y.ndim == 1 and classes == 2  # the second class against the first
    for label in [1] if two else np.flatnonzero(fixed == 0):
        chosen = _rows_of(y, label)
        ratio = np.ones(words.shape[1], np.float32)
        if weighting.ratio:
            ratio = _log_count_ratio(words, chosen)
            np.multiply(words.data, ratio[words.indices], out=scaled.data)
        theta = np.zeros(words.shape[1] + 1)
        if start is not None:
            np.divide(start.weight[label], ratio, out=theta[:-1], where=ratio != 0)
            theta[-1] = start.bias[label]
        theta = fit_newton(scaled, chosen, weighting.C * _row_weight(chosen, train.weight, settings), theta)
        weight[label], bias[label] = theta[:-1] * ratio, theta[-1]
    return WordScorer(weight, bias)


def _log_count_ratio(words: SparseRows, chosen: np.ndarray) -> np.ndarray:
    """float32 `[V]`: the log ratio of the shares that an n-gram has of all n-grams in and outside a class."""
    counts = np.ones((2, words.shape[1]))
    for rows, part in parts_of(words):
        for number, wanted in enumerate((chosen[rows], ~chosen[rows])):
            counts[number] += np.bincount(part[wanted].indices, minlength=words.shape[1])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.asarray(np.log(shares[0] / shares[1]), np.float32)


def _loss(logits: np.ndarray, y: np.ndarray) -> float:
    """Log loss after temperature scaling; 0 where all rows are right, for which no temperature is best."""
    names = tuple(map(str, range(logits.shape[1])))
    several = y.ndim == 2
    clipped = np.clip(logits, -NEVER, NEVER)
    if score(probabilities_of(clipped, 1.0, multi_label=several), y, names).accuracy == 1:
        return 0.0
    temperature = fit_temperature(clipped, y)
    return score(probabilities_of(clipped, temperature, multi_label=several), y, names).log_loss
