"""The numbers of a report: confidence, mistakes, accuracy by length, the map, and the cost of extraction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from featcache.cache.catalog import CacheFile
from featcache.errors import UsageError
from featcache.evaluation.abstention import ScoredRows, risk_coverage
from featcache.evaluation.metrics import BINS
from featcache.evaluation.paired import right_rows
from featcache.heads.features import Standard
from featcache.inspection.document import label_of
from featcache.inspection.inspection import InspectedSplit
from featcache.reporting.document import (
    ConfidenceBin,
    ConfidenceHistogram,
    ExtractionCost,
    LengthBin,
    MajorityBaseline,
    RiskCurve,
    ShareRight,
    TruncationEffect,
)
from featcache.runs.predictions import Predictions
from featcache.runs.record import AbstentionRecord
from featcache.runs.run import Run

HISTOGRAM_BINS = 20
LENGTH_BINS = 8
PROJECTIONS = ("auto", "pca", "umap")
TUTORIAL_EPOCHS, TUTORIAL_BATCH = 100, 50  # of the ChnSentiCorp tutorials, for heads without epochs


def confidences(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in what was predicted, and whether it was right: of each row `[N]`.

    Multi-label: of each of the N*C entries, the confidence in giving the label or not.
    """
    probabilities, labels = predictions.probabilities, predictions.labels
    if predictions.multi_label:
        given = predictions.predicted.astype(bool)
        sure = np.where(given, probabilities, 1 - probabilities)
        return sure.ravel(), (given == labels.astype(bool)).ravel()
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def majority(predictions: Predictions) -> MajorityBaseline | None:
    """The most frequent label, or label set, and its share of the rows; None without rows."""
    if not len(predictions):
        return None
    values, counts = np.unique(predictions.labels, axis=0, return_counts=True)
    most = int(counts.argmax())
    return MajorityBaseline(label_of(values[most], predictions.label_names), counts[most] / len(predictions))


def reliability(predictions: Predictions, bins: int = BINS) -> list[ConfidenceBin]:
    """Confidence against accuracy in the bins of the calibration error; empty bins are left out.

    Multi-label, as the calibration error counts: of each entry the probability of the label, and whether the
    row has it.
    """
    confidence, right = confidences(predictions)
    if predictions.multi_label:
        confidence, right = predictions.probabilities.ravel(), predictions.labels.ravel().astype(bool)
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    found = []
    for number in np.unique(bin_of).tolist():
        here = bin_of == number
        rows, hits = int(here.sum()), int(right[here].sum())
        found.append(
            ConfidenceBin(
                from_=number / bins,
                to=(number + 1) / bins,
                rows=rows,
                confidence=float(confidence[here].mean()),
                accuracy=hits / rows,
                interval=wilson_interval(hits, rows),
            )
        )
    return found


def confidence_histogram(predictions: Predictions, bins: int = HISTOGRAM_BINS) -> ConfidenceHistogram:
    """How many rows are right and wrong at each confidence; multi-label: how many entries."""
    confidence, right = confidences(predictions)
    edges = np.linspace(0, 1, bins + 1)
    counts = [np.histogram(confidence[where], edges)[0].tolist() for where in (right, ~right)]
    return ConfidenceHistogram(edges.tolist(), *counts)


def risk_curve(predictions: Predictions, found: AbstentionRecord | None, split: str) -> RiskCurve | None:
    """Wrong answers by coverage: of a head that may give no answer by its own score, else by its probability.

    None where rows have several labels.
    """
    if predictions.multi_label or not len(predictions):
        return None
    if found and split in found.splits:
        own = found.splits[split]
        return RiskCurve(
            points=own.curve, area=own.area, threshold=found.threshold, scores=own, promise=found.guarantee
        )
    sure = predictions.probabilities[np.arange(len(predictions)), predictions.predicted]
    curve = risk_coverage(ScoredRows(sure, predictions.predicted != predictions.labels))
    return RiskCurve(points=curve.points, area=curve.area)


def accuracy_by_length(
    predictions: Predictions, tokens: np.ndarray, bins: int = LENGTH_BINS
) -> list[LengthBin]:
    """Accuracy by tokens of the text, in bins of about equally many rows."""
    if not len(predictions):
        return []
    right = right_rows(predictions.labels, predictions.predicted)
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, bins + 1), method="higher"))
    bin_of = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, max(len(edges) - 2, 0))
    found = []
    for here in (bin_of == number for number in np.unique(bin_of).tolist()):
        inside, share = tokens[here], _share_right(right[here])
        found.append(
            LengthBin(int(inside.min()), int(inside.max()), share.rows, share.accuracy, share.interval)
        )
    return found


def accuracy_by_truncation(predictions: Predictions, truncated: np.ndarray) -> TruncationEffect:
    """Accuracy on truncated texts (bool `[N]`), and on the others."""
    right = right_rows(predictions.labels, predictions.predicted)
    return TruncationEffect(_share_right(right[truncated]), _share_right(right[~truncated]))


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); (0, 1) for no rows."""
    if not rows:
        return 0.0, 1.0
    z, share = 1.959963984540054, hits / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def confident_mistakes(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Wrong rows and the confidence in them, int64 and float64 `[K]`, the most confident first.

    Multi-label: the highest confidence in a wrong entry of the row.
    """
    labels, predicted = predictions.labels, predictions.predicted
    wrong = np.flatnonzero(~right_rows(labels, predicted))
    if predictions.multi_label:
        p = predictions.probabilities[wrong]
        confidence = np.where(predicted[wrong] == 1, p, 1 - p)
        confidence = np.where(labels[wrong] != predicted[wrong], confidence, 0).max(axis=1, initial=0)
    else:
        confidence = predictions.probabilities[wrong, predicted[wrong]]
    order = np.argsort(-confidence, kind="stable")
    return wrong[order], confidence[order]


def _share_right(right: np.ndarray) -> ShareRight:
    rows, hits = len(right), int(right.sum())
    return ShareRight(rows, hits / rows if rows else None, wilson_interval(hits, rows))


def choose_projection(asked: str) -> str:
    """`pca` or `umap`; for `auto` UMAP if it is installed.

    Raises:
        UsageError: an unknown name, or UMAP is not installed.
    """
    if asked not in PROJECTIONS:
        raise UsageError(f"--map {asked}: one of {', '.join(PROJECTIONS)}")
    installed = find_spec("umap") is not None
    if asked == "umap" and not installed:
        raise UsageError("UMAP is not installed", hint="pip install umap-learn, or --map pca")
    return "umap" if asked != "pca" and installed else "pca"


def project(x: np.ndarray, method: str, seed: int = 0) -> tuple[np.ndarray, float | None]:
    """Features `[N, D]` -> float64 `[N, 2]`, and the share of the variance that the two have (PCA).

    PCA of standardised features, or UMAP (McInnes et al. 2018, arXiv:1802.03426) of centred ones by cosine.
    """
    if method == "umap":
        from umap import UMAP

        near = min(15, len(x) - 1)
        flat = UMAP(n_neighbors=near, metric="cosine", random_state=seed).fit_transform(x - x.mean(axis=0))
        return np.asarray(flat, np.float64), None
    from sklearn.decomposition import PCA

    standard = Standard.of(x)(x)
    if x.shape[1] == 1 or not standard.any():
        return np.column_stack([standard[:, 0], np.zeros(len(x))]).astype(np.float64), None
    pca = PCA(n_components=2, svd_solver="randomized", random_state=seed)
    flat = pca.fit_transform(standard)
    return np.asarray(flat, np.float64), float(pca.explained_variance_ratio_.sum())


def extraction_cost(
    runs: Sequence[Run], splits: Mapping[str, InspectedSplit], files: Mapping[str, CacheFile]
) -> ExtractionCost | None:
    """What was computed once, against a tutorial that runs the backbone in every epoch; None without a cache.

    The tutorial encodes train and validation in each epoch and test once, in batches of 50 in random order,
    each padded to its longest text. Its seconds are an estimate: its tokens, with padding, at the tokens a
    second of this extraction (a padded float32 loop is slower than that).
    """
    if not splits:
        return None
    epochs = next((run.record.epochs for run in runs if run.record.epochs), None)
    passes = {name: 1 if name == "test" else epochs or TUTORIAL_EPOCHS for name in splits}
    made = [file.record.made for file in files.values()]
    known = [one for one in made if one.tokens and one.seconds]
    encoded, seconds = sum(one.tokens or 0 for one in made), sum(one.seconds or 0.0 for one in made)
    rate = sum(one.tokens or 0 for one in known) / sum(one.seconds or 0.0 for one in known) if known else None
    tokens = sum(int(split.n_tokens.sum(dtype=np.int64)) for split in splits.values())
    tutorial = sum(passes[name] * padded_tokens(split.n_tokens) for name, split in splits.items())
    return ExtractionCost(
        epochs=epochs or TUTORIAL_EPOCHS,
        assumed_epochs=epochs is None,
        batch=TUTORIAL_BATCH,
        texts_once=sum(len(split.n_tokens) for split in splits.values()),
        tokens_once=tokens,
        tokens_encoded=encoded if known else None,
        extraction_seconds=seconds if known else None,
        heads=len(runs),
        head_seconds=sum(run.record.seconds for run in runs),
        texts_tutorial=sum(passes[name] * len(split.n_tokens) for name, split in splits.items()),
        tokens_tutorial=tutorial,
        tokens_a_second=rate,
        tutorial_seconds=None if rate is None else tutorial / rate,
        factor=tutorial / tokens if tokens else None,
    )


def padded_tokens(tokens: np.ndarray, batch: int = TUTORIAL_BATCH) -> int:
    """Tokens with padding, in batches of one random order that is always the same."""
    order = np.random.default_rng(0).permutation(tokens.astype(np.int64))
    batches = (order[start : start + batch] for start in range(0, len(order), batch))
    return sum(int(one.max()) * len(one) for one in batches)
